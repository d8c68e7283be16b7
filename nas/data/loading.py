"""`load_dataset`: from a source to a decoded and split dataset."""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import ImageColor

from nas.data import image_cache
from nas.data.dataset import (
    IMBALANCED,
    PART_NAMES,
    ImageDataset,
    Images,
    Inventory,
    Metric,
    count_text,
    joined,
)
from nas.data.decoding import decode, remedy_for
from nas.data.duplicates import cached_duplicates, joining_pairs
from nas.data.image_cache import ImageRecord, Pixels, PixelsOnDisk, iter_chunks
from nas.data.sources import ClassFolders, Source, open_source, printable_line
from nas.data.splits import groups_of, split_images
from nas.data.unlabelled import decode_unlabelled, open_unlabelled, with_channels
from nas.display.progress import Advance
from nas.errors import DataError
from nas.files.names import require_choice

OnBadImage = Literal["fail", "skip"]

OnDuplicate = Literal["warn", "group", "fail"]

_NO_LABEL = "no label"


def load_dataset(
    source: str | Path | Source,
    *,
    image_size: int | None = None,
    validation_fraction: float | None = None,
    seed: int = 0,
    on_bad_image: OnBadImage = "fail",
    class_folders: ClassFolders = "auto",
    group: str = "",
    on_duplicate: OnDuplicate = "warn",
    metric: Literal["auto", "accuracy", "balanced_accuracy"] = "auto",
    background: str = "white",
    extra: Sequence[str | Path] = (),
    unknown: str | Path | None = None,
    progress: Advance | bool | None = True,
    write_cache: bool = True,
) -> ImageDataset:
    """Decode and split a dataset, or read the decoded images from the cache.

    The test images are the source's test split, or `TEST_FRACTION` of its images. The validation
    images are the source's validation split, or `validation_fraction` of the rest; they are divided
    into the parts `search` and `holdout`. Random splits are stratified by class. The constants at
    the top of `nas.data.splits` say how many images each part gets.

    Args:
        source: "digits" or the name of a plug-in; a path: parquet files in the Hugging Face
            layout, or a folder with a sub-folder for each class; or an opened source.
        image_size: Side of the images, in pixels; larger and oblong images are scaled and cropped
            to the centre. The default depends on the source.
        validation_fraction: Fraction of the training images that are used for validation, in
            (0, 1). By default as many as accuracies need: `VALIDATION_FRACTION`, and more of a
            small set.
        seed: Seed of the random splits.
        on_bad_image: What to do about images that cannot be used: "fail", or "skip" to leave them
            out and list them in `ImageDataset.skipped`.
        class_folders: Which folders of an image folder are the classes: "top" for those directly
            below the source or its splits, "lowest" for those that hold the images, "auto" for the
            top ones unless that is unclear.
        group: What tells the groups of images that show one object, patient or video: a regular
            expression with one group, which is searched in the path of an image file, or the name
            of a column of parquet files. No group is in two parts. Empty for no groups.
        on_duplicate: What to do about duplicates (`nas.data.duplicates`): "warn" leaves them to
            `nas.data.check`, "group" keeps each and its duplicates in one part (except images with
            little in them, see `nas.data.duplicates.joining_pairs`), "fail" raises DataError if
            there are any in two parts or of two classes.
        metric: What judges networks: the accuracy; the balanced accuracy, the mean of those of all
            classes; "auto" takes the latter if a class has `IMBALANCED` times the training images
            of another one.
        background: Colour behind transparent pixels: a name of CSS, or `#rrggbb`.
        extra: Further folders of images of these classes, such as labelled ones from the field. All
            of their images are for training; the other parts stay as they are without them. Images
            that are in another part, too, are left out.
        unknown: Folder of images of no class, which are no part of the digest. They tell how many
            such images a trained network would answer.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or a function that
            is called with (images decoded, images in all) while images are decoded.
        write_cache: Whether to add decoded images to the cache.

    Returns:
        The dataset; its pixels are in memory, or on disk if they need more than
        `nas.data.decoding.MAX_BYTES_IN_MEMORY`.

    Raises:
        DataError: There is no dataset, an argument is out of range, images have no labels or cannot
            be decoded, or a part cannot have images of a class.
    """
    from nas.display.console import reported

    for option, value, choices in (
        ("on_bad_image", on_bad_image, get_args(OnBadImage)),
        ("class_folders", class_folders, get_args(ClassFolders)),
        ("on_duplicate", on_duplicate, get_args(OnDuplicate)),
        ("metric", metric, ("auto", *get_args(Metric))),
    ):
        require_choice(value, choices, option, DataError)
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise DataError(
            f"validation_fraction is {validation_fraction}.", remedy="Use a number between 0 and 1."
        )
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}.", remedy="Use a positive number of pixels.")
    try:
        colour = hex_colour(background)
    except ValueError as error:
        raise DataError(f"background is {background!r}: {error}.") from None
    opened = open_source(source, class_folders, group)
    unlabelled = None if unknown is None else open_unlabelled(unknown, source)
    size = image_size or opened.image_size
    with reported(progress, "images", "image", at_once=False) as report:
        decoded = decode(opened, size, report, background=colour, write_cache=write_cache)
    record = decoded.record
    _warn_about_silhouettes(opened, record, background)
    classes, labels, bad_labels = _number_classes(opened, record)
    skipped_by_class = _count_by_class(classes, bad_labels)
    if record.bad and on_bad_image == "fail":
        raise _bad_images_error(record, skipped_by_class)
    _warn_about_similar_names(opened.name, classes)
    duplicates_file = None
    if write_cache and (cache := image_cache.cache_path(opened, size, colour)) is not None:
        duplicates_file = image_cache.duplicates_path(cache, record.files)
    splits = np.array(record.splits)
    groups = groups_of(record.groups, record.locations)
    if on_duplicate == "group":
        is_scored = splits != "train"
        duplicates = cached_duplicates(
            duplicates_file, decoded.pixels, is_scored if is_scored.any() else None
        )
        groups = groups.joined(joining_pairs(duplicates, decoded.pixels, groups.numbers))
    parts = split_images(splits, labels, classes, validation_fraction, seed, groups)
    inventory = Inventory(
        Images(decoded.pixels, labels),
        _part_of_each(len(labels), parts),
        tuple(record.locations),
        np.array(record.sizes),
        duplicates_file,
        are_duplicates_grouped=on_duplicate == "group",
    )
    if on_duplicate == "fail":
        _require_no_duplicates(opened.name, inventory)
    train, search, holdout, test = (
        Images(_select(decoded.pixels, positions), labels[positions], groups.numbers[positions])
        for positions in parts
    )
    data = ImageDataset(
        source=opened.name,
        classes=classes,
        train=train,
        search=search,
        holdout=holdout,
        test=test,
        flip_preserves_class=opened.flip_preserves_class,
        skipped=tuple(record.bad),
        skipped_by_class=skipped_by_class,
        layout=opened.layout,
        background=colour,
        examples=tuple(record.examples),
        inventory=inventory,
        metric=_metric(train, classes) if metric == "auto" else metric,
    )
    if extra:
        sources = [open_source(folder, class_folders, group) for folder in extra]
        data = _with_extra(data, sources, on_bad_image, write_cache=write_cache)
    if unlabelled is None:
        return data
    pixels = decode_unlabelled(
        unlabelled, data.image_size, data.channels, colour, write_cache=write_cache
    )
    return replace(data, unknown=pixels)


def _with_extra(
    data: ImageDataset, sources: Iterable[Source], on_bad_image: OnBadImage, *, write_cache: bool
) -> ImageDataset:
    """Return a dataset whose training images are followed by those of other sources.

    Raises the errors of `_further_images`.
    """
    judging = {
        image_digest
        for part in (data.search, data.holdout, data.test)
        for image_digest in _digests(part.pixels)
    }
    train = [data.train]
    for source in sources:
        train += [_further_images(data, source, judging, on_bad_image, write_cache=write_cache)]
    return replace(data, train=joined(train))


def _digests(pixels: Pixels) -> list[bytes]:
    """Return the digest of the pixels of each image."""
    return [
        hashlib.sha256(image.tobytes()).digest() for chunk in iter_chunks(pixels) for image in chunk
    ]


def _further_images(
    data: ImageDataset,
    source: Source,
    judging: Container[bytes],
    on_bad_image: OnBadImage,
    *,
    write_cache: bool,
) -> Images:
    """Return the images of a source of further images, with the labels of a dataset.

    Images whose digests are among `judging` are left out.

    Raises:
        DataError: The source has another class, or images that cannot be used.
    """
    decoded = decode(source, data.image_size, background=data.background, write_cache=write_cache)
    record = decoded.record
    classes, labels, bad_labels = _number_classes(source, record)
    if record.bad and on_bad_image == "fail":
        raise _bad_images_error(record, _count_by_class(classes, bad_labels))
    position = {name: label for label, name in enumerate(data.classes)}
    if others := [name for name in classes if name not in position]:
        raise DataError(
            f"The further images in {source.name} have the class {printable_line(others[0])}, "
            f"which {data.source} does not have.",
            remedy=f"Its classes are {count_text(data.class_counts)}.",
        )
    pixels = with_channels(np.asarray(decoded.pixels), data.channels)
    is_new = np.array([each not in judging for each in _digests(pixels)], bool)
    if not is_new.all():
        warnings.warn(
            f"{np.sum(~is_new)} of {len(pixels)} further images in {source.name} are left out: "
            "they are among the images that judge networks.",
            stacklevel=4,
        )
    own = np.array([position[name] for name in classes], np.int64)[labels[is_new]]
    return Images(pixels[is_new], own)


def _bad_images_error(record: ImageRecord, by_class: Mapping[str, int]) -> DataError:
    """Return the error for images that cannot be used, given their number by class."""
    bad = record.bad
    remedy = f'{remedy_for(bad)} Replace them, move them away, or set on_bad_image = "skip".'
    return DataError(
        f"{len(bad)} of {len(bad) + len(record.labels)} images cannot be used: "
        f"{count_text(by_class)}. {'They are' if len(bad) <= 3 else 'The first three are'} "
        f"{'; '.join(bad[:3])}.",
        remedy=remedy.lstrip(),
    )


def _metric(train: Images, classes: Sequence[str]) -> Metric:
    """Return what judges networks by default, see `load_dataset`."""
    counts = np.bincount(train.labels, minlength=len(classes))
    return "accuracy" if counts.max() < IMBALANCED * counts.min() else "balanced_accuracy"


def hex_colour(text: str) -> str:
    """Return a colour as `#rrggbb`, given a name of CSS or any text that Pillow reads.

    Raises:
        ValueError: The text is no colour, or a transparent one.
    """
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        raise ValueError('expected a colour, such as "white" or "#ffffff"') from None
    if alpha not in ([], [255]):
        raise ValueError("expected a colour without transparency, such as white or #ffffff")
    return f"#{red:02x}{green:02x}{blue:02x}"


def _warn_about_silhouettes(source: Source, record: ImageRecord, background: str) -> None:
    """Warn of images that differ in their transparency only."""
    if record.silhouettes < 2:
        return
    invisible = (
        f" {record.invisible} of them have that colour themselves and become empty."
        if record.invisible
        else ""
    )
    warnings.warn(
        f"{record.silhouettes} of {len(record.labels)} images of {source.name} are drawn by "
        "their transparency alone: the visible pixels of each have one colour. They are composited "
        f"on {background}.{invisible} Set background in [data] to a colour that contrasts with "
        "them, if this one does not.",
        stacklevel=3,
    )


def _select(pixels: np.ndarray, positions: np.ndarray) -> Pixels:
    """Return some images of an array; images on disk stay there."""
    return PixelsOnDisk(pixels, positions) if isinstance(pixels, np.memmap) else pixels[positions]


def _number_classes(
    source: Source, record: ImageRecord
) -> tuple[tuple[str, ...], np.ndarray, list[int | None]]:
    """Return the class names, and the position among them of each image that can be used, and not.

    A class without an image that can be used is still a class. Names that are equal in the Unicode
    form NFC are one class, because systems write accents in different forms.

    Raises:
        DataError: A label has no class name, or a class name is not one line of text.
    """
    if source.classes is not None:
        unknown = set(record.label_values) - set(range(len(source.classes)))
        if unknown:
            raise DataError(
                f"{source.name} has label {min(unknown, key=str)}, but only {len(source.classes)} "
                "class names.",
                remedy="Correct the labels or the names.",
            )
        name_of: dict[int | str, str] = dict(enumerate(source.classes))
    else:
        name_of = {value: str(value) for value in record.label_values}
    name_of = {value: unicodedata.normalize("NFC", name) for value, name in name_of.items()}
    if any(isinstance(value, str) for value in name_of):
        classes = tuple(sorted(set(name_of.values())))
    else:
        classes = tuple(dict.fromkeys(name_of.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    position = {value: label_of[name] for value, name in name_of.items()}
    labels = np.array([position[label] for label in record.labels], np.int64)
    bad_labels = [None if label is None else position[label] for label in record.bad_labels]
    for name in classes:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise DataError(
                f"{source.name} has the class name {name!a}, which has control characters or "
                "is not valid UTF-8.",
                remedy="Rename the class.",
            )
    return classes, labels, bad_labels


def _count_by_class(classes: tuple[str, ...], labels: Iterable[int | None]) -> dict[str, int]:
    """Return the number of labels of each class that has any, and of those that are missing."""
    counts = Counter(labels)
    missing = {_NO_LABEL: counts[None]} if counts[None] else {}
    return {name: counts[i] for i, name in enumerate(classes) if counts[i]} | missing


def _warn_about_similar_names(source: str, classes: tuple[str, ...]) -> None:
    """Warn of class names that differ only in case or in blanks."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike["".join(name.split()).casefold()].append(name)
    groups = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if groups:
        warnings.warn(
            f"Class names in {source} differ only in case or blanks: "
            f"{printable_line('; '.join(groups))}. They are different classes; rename them if they "
            "are meant to be one.",
            stacklevel=3,
        )


def _part_of_each(count: int, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the name of the part of each image."""
    names = np.full(count, "left out")
    for name, positions in zip(PART_NAMES, parts, strict=True):
        names[positions] = name
    return names


def _require_no_duplicates(source: str, inventory: Inventory) -> None:
    """Raise DataError for duplicates in two parts or of two classes."""
    for first, second in inventory.duplicates().pairs:
        parts = inventory.parts[[first, second]]
        labels = inventory.images.labels[[first, second]]
        if parts[0] != parts[1] or labels[0] != labels[1]:
            reason = "two parts" if parts[0] != parts[1] else "two classes"
            raise DataError(
                f"{source} has duplicates in {reason}, such as {inventory.locations[first]} and "
                f"{inventory.locations[second]}.",
                remedy='Remove them (`nas data` lists them), or set on_duplicate = "group".',
            )
