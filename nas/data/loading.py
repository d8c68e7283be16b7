"""`load_dataset`: from a source to a decoded and split dataset."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import ImageColor

from nas.data import image_cache
from nas.data.check import require_no_duplicates
from nas.data.dataset import (
    IMBALANCED,
    PART_NAMES,
    ImageDataset,
    Images,
    Inventory,
    Metric,
)
from nas.data.decoding import decode
from nas.data.duplicates import cached_duplicates, joining_pairs
from nas.data.further import read_further, with_further
from nas.data.image_cache import ImageRecord, select, with_channels
from nas.data.labels import (
    bad_images_error,
    count_by_class,
    number_classes,
    warn_about_similar_names,
)
from nas.data.sources import ClassFolders, Sample, Source, open_source
from nas.data.splits import groups_of, split_images
from nas.data.unlabelled import decode_unlabelled, open_unlabelled
from nas.display.progress import Advance
from nas.errors import DataError
from nas.files.names import require_choice
from nas.files.paths import without_folders

OnBadImage = Literal["fail", "skip"]

OnDuplicate = Literal["warn", "group", "fail"]

Resize = Literal["cover", "contain"]

SAMPLED_PARTS = ("train", "search", "holdout")
"""The parts of which `decode_sample` decodes images: all but the test images."""


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
    resize: Resize = "cover",
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
        image_size: Side of the images, in pixels, to which others are scaled. The default depends
            on the source.
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
        background: Colour behind transparent pixels and of borders: a name of CSS, or `#rrggbb`.
        resize: How oblong images become squares: "cover" crops them to the centre, "contain" fits
            them in with a border.
        extra: Further folders of images of these classes, such as labelled ones from the field. All
            of their images are for training; the other parts stay as they are without them. Images
            that are in another part, too, or whose group is, are left out.
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
        ("resize", resize, get_args(Resize)),
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
    how = {"background": colour, "resize": resize}
    with reported(progress, "images", "image", at_once=False) as report:
        decoded = decode(opened, size, report, **how, write_cache=write_cache)
    record = decoded.record
    _warn_about_silhouettes(opened, record, background)
    classes, labels, bad_labels = number_classes(opened, record)
    skipped_by_class = count_by_class(classes, bad_labels)
    if record.bad and on_bad_image == "fail":
        raise bad_images_error(opened.name, record, skipped_by_class)
    warn_about_similar_names(opened.name, classes)
    duplicates_file = None
    if write_cache and (cache := image_cache.cache_path(opened, size, **how)) is not None:
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
    train, search, holdout, test = (
        Images(select(decoded.pixels, positions), labels[positions], groups.numbers[positions])
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
        resize=resize,
        examples=tuple(record.examples),
        inventory=inventory,
        metric=_metric(train, classes) if metric == "auto" else metric,
    )
    if extra:
        further = [
            read_further(
                data,
                open_source(folder, class_folders, group),
                skips_bad=on_bad_image == "skip",
                write_cache=write_cache,
            )
            for folder in extra
        ]
        data = with_further(data, inventory, record.groups, further)
    if on_duplicate == "fail":
        require_no_duplicates(data)
    if unlabelled is None:
        return data
    pixels = decode_unlabelled(
        unlabelled, data.image_size, data.channels, **how, write_cache=write_cache
    )
    return replace(data, unknown=pixels)


def decode_sample(
    data: ImageDataset,
    source: str | Path,
    image_size: int,
    most: int,
    class_folders: ClassFolders = "auto",
    extra: Sequence[str | Path] = (),
) -> ImageDataset:
    """Decode a random sample of the images of a loaded dataset in another size, without the cache.

    Args:
        data: The dataset.
        source, class_folders, extra: Where it was loaded from, see `load_dataset`.
        image_size: Side of the decoded images, in pixels.
        most: Most images of each part.

    Returns:
        The dataset with this sample in `train`, `search` and `holdout`, in the same order. Its test
        images, and what is known of all images, stay as they are.

    Raises:
        DataError: No image can be read any more.
    """
    inventory = data.inventory
    assert inventory is not None, "a loaded dataset has one"
    of_part = {part: np.flatnonzero(inventory.parts == part) for part in SAMPLED_PARTS}
    wanted = {
        inventory.locations[at]: at
        for own in of_part.values()
        for at in np.random.default_rng(0).permutation(own)[:most].tolist()
    }

    def samples() -> Iterator[Sample]:
        for number, path in enumerate((source, *extra)):
            opened = open_source(path, class_folders)
            folder = f"{without_folders(opened.name)}/" if number else ""
            for sample in opened.samples:
                if (location := f"{folder}{sample.location}") in wanted:
                    yield sample._replace(location=location)

    decoded = decode(
        Source(data.source, samples(), len(wanted), None),
        image_size,
        background=data.background,
        resize=data.resize,
    )
    positions = np.array([wanted[location] for location in decoded.record.locations])
    pixels = with_channels(decoded.pixels, data.channels)
    parts = {}
    for part, own in of_part.items():
        is_own = inventory.parts[positions] == part
        images = getattr(data, part).take(np.searchsorted(own, positions[is_own]))
        parts[part] = replace(images, pixels=pixels[is_own])
    return replace(data, **parts)


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


def _part_of_each(count: int, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the name of the part of each image."""
    names = np.full(count, "left out")
    for name, positions in zip(PART_NAMES, parts, strict=True):
        names[positions] = name
    return names
