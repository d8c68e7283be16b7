"""The decoded dataset with its four parts: training, search, hold-out and test images."""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import ImageColor

from nas.arguments import Seed, checked
from nas.data import image_cache
from nas.data.decoding import DecodingProgress, decode, remedy_for
from nas.data.duplicates import Duplicates, cached_duplicates, joining_pairs
from nas.data.image_cache import DecodedImages, Pixels, PixelsOnDisk, iter_chunks
from nas.data.sources import ClassFolders, Source, open_source, printable_line
from nas.data.splits import (
    MIN_PART_IMAGES,
    SUFFICIENT_IMAGES,
    groups_of,
    split_images,
)
from nas.data.unlabelled import decode_unlabelled, open_unlabelled
from nas.errors import DataError, RequestError

Metric = Literal["accuracy", "balanced_accuracy"]

IMBALANCED = 3.0
"""Ratio of the training images of the largest and the smallest class from which the accuracy
misleads."""

Part = Literal["train", "search", "holdout"]
"""The parts that training and search may read; the test images are not among them."""

PART_NAMES = {"train": "train", "search": "search", "holdout": "hold-out", "test": "test"}
"""What the parts of a dataset are called in messages, by their attributes."""

_MAX_CLASSES_IN_LINE = 10

_NO_LABEL = "no label"


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images with their labels.

    Attributes:
        pixels: Images, `n x height x width x channels` (uint8).
        labels: Positions in `ImageDataset.classes`, `n` (int64).
    """

    pixels: Pixels
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray | slice) -> Images:
        """Return the images at these positions, with their labels."""
        return Images(self.pixels[positions], self.labels[positions])


@dataclass(frozen=True, eq=False)
class ImageExample:
    """An image file of a dataset that stands for all of its kind, with its decoded pixels.

    Attributes:
        kind: What matters to reading the file, such as "PNG RGBA, alpha".
        count: Number of images of this kind in the dataset.
        content: Content of the file; empty if it is too large to be stored.
        pixels: Decoded pixels, `height x width x channels` (uint8).
        label: Position in `ImageDataset.classes`.
    """

    kind: str
    count: int
    content: bytes
    pixels: np.ndarray
    label: int


@dataclass(frozen=True, eq=False)
class Inventory:
    """All images of a source that can be used, in its order.

    Attributes:
        pixels: Images, `n x height x width x channels` (uint8).
        labels: Positions in `ImageDataset.classes`, `n` (int64).
        parts: Part of each image, `n`; "left out" for one that would be on two sides of a split.
        locations: Where each image is, for messages.
        sizes: Width and height of each image before it was scaled, `n x 2`.
        kinds: Number of images by kind, such as "PNG RGBA, alpha".
        cache: File for what was found out about the images; None without a cache.
        are_duplicates_grouped: Whether duplicates are in one part, except those of which
            `nas.data.duplicates.joining_pairs` says why they are not.
    """

    pixels: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    locations: tuple[str, ...]
    sizes: np.ndarray
    kinds: Mapping[str, int]
    cache: Path | None = None
    are_duplicates_grouped: bool = False

    def duplicates(self, progress: Callable[[int, int], None] | None = None) -> Duplicates:
        """Return the duplicates among the images; looked for once, and then read from the cache."""
        is_scored = self.parts != "train"
        return cached_duplicates(self.cache, self.pixels, is_scored, progress)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A labelled image dataset, decoded and split.

    Attributes:
        source: Name or path of the source.
        classes: Class names by label.
        train: Images for training.
        search: Images that score the candidates of a search.
        holdout: Images that score the final Pareto front.
        test: Images that are read once, for the final model; never by training or search.
        flip_preserves_class: Whether a mirrored image still belongs to its class; None if that is
            not known.
        skipped: Location and reason of each image that was skipped.
        skipped_by_class: Number of these images by class name.
        layout: How splits and classes were recognised; empty if there is nothing to say.
        background: Colour behind transparent pixels, as `#rrggbb`.
        examples: An image file of each kind that the source has; none for a source without files.
        inventory: All images in the order of the source; None for a dataset that was not loaded.
        metric: What judges a network: the accuracy, or the mean of the accuracies of all classes.
        unknown: Images of no class, `n x height x width x channels` (uint8); None without any.
    """

    source: str
    classes: tuple[str, ...]
    train: Images
    search: Images
    holdout: Images
    test: Images
    flip_preserves_class: bool | None
    skipped: tuple[str, ...] = ()
    skipped_by_class: Mapping[str, int] = field(default_factory=dict)
    layout: str = ""
    background: str = "#ffffff"
    examples: tuple[ImageExample, ...] = ()
    inventory: Inventory | None = None
    metric: Metric = "accuracy"
    unknown: np.ndarray | None = None

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        """Return the `metric` of predicted classes `n` of images with these labels, in [0, 1]."""
        right = predictions == labels
        if self.metric == "accuracy":
            return float(right.mean())
        counts = np.bincount(labels, minlength=len(self.classes))
        by_class = np.bincount(labels, right, minlength=len(self.classes))
        return float((by_class[counts > 0] / counts[counts > 0]).mean())

    @cached_property
    def log_priors(self) -> np.ndarray | None:
        """Logarithms of the shares of the classes in the training images, `classes` (float32).

        They correct the logits in training (Menon et al. 2021, "Long-tail learning via logit
        adjustment"), so that a network learns all classes alike. None for the metric accuracy.
        """
        if self.metric == "accuracy":
            return None
        counts = np.bincount(self.train.labels, minlength=len(self.classes))
        return np.log(counts / counts.sum()).astype(np.float32)

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return int(self.train.pixels.shape[1])

    @property
    def channels(self) -> int:
        """Number of channels: 1 if all images are grey, otherwise 3."""
        return int(self.train.pixels.shape[3])

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by part."""
        return {
            "train": len(self.train),
            "search": len(self.search),
            "holdout": len(self.holdout),
            "test": len(self.test),
        }

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images by class name, in all parts."""
        labels = [part.labels for part in (self.train, self.search, self.holdout, self.test)]
        counts = np.bincount(np.concatenate(labels), minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    @property
    def part_class_counts(self) -> dict[str, list[int]]:
        """Number of images of each class by part, in the order of `classes`."""
        return {part: list(self.class_counts_of(part).values()) for part in PART_NAMES}

    def class_counts_of(self, part: str) -> dict[str, int]:
        """Return the number of images of a part by class name."""
        counts = np.bincount(getattr(self, part).labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    @property
    def summary(self) -> str:
        """One line that says what was understood of the source: classes and parts with counts."""
        counts = self.counts
        parts = (f"{name} {counts[key]}" for key, name in PART_NAMES.items())
        text = (
            f"{sum(counts.values())} images of {len(self.classes)} classes: "
            f"{count_text(self.class_counts)}; {', '.join(parts)}"
        )
        if self.metric != "accuracy":
            text += "; judged by the balanced accuracy, the mean of those of all classes"
        if self.layout:
            text += f" ({self.layout})"
        if self.skipped:
            text += f"; left out, unreadable: {count_text(self.skipped_by_class)}"
        return text

    @property
    def worth_of_an_image(self) -> str:
        """What one image is worth in the accuracies of each part, and what to do if it is much."""
        holdout, search, test = (
            f"{100 / len(images):{'.1f' if len(images) < 100 else '.2g'}}"
            for images in (self.holdout, self.search, self.test)
        )
        text = (
            f"one hold-out image is {holdout} points of accuracy, one search image {search}, "
            f"one test image {test}"
        )
        fewest = min(len(self.search), len(self.holdout), len(self.test))
        if fewest >= MIN_PART_IMAGES:
            return text
        return (
            f"{text}; smaller differences between networks cannot be seen. "
            f"{SUFFICIENT_IMAGES} images in all, or validation and test splits of "
            f"{2 * MIN_PART_IMAGES} and {MIN_PART_IMAGES} images, make it "
            f"{100 / MIN_PART_IMAGES:g} points. With fewer images, cross-validate: run the job "
            "with several seeds, each of which splits the images in another way"
        )

    def part(self, *names: Part) -> Images:
        """Return a part that training and search may read, or several such parts, one by one.

        Several are a copy in memory. Raises RequestError for the name of another part.
        """
        for name in names:
            if name not in ("train", "search", "holdout"):
                raise RequestError(
                    f"Part {name!r} cannot be used here.", remedy="Parts: train, search, holdout."
                )
        first, *others = parts = [getattr(self, name) for name in names]
        if not others:
            return cast(Images, first)
        return Images(
            np.concatenate([each.pixels[:] for each in parts]),
            np.concatenate([each.labels for each in parts]),
        )

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of the training pixels by channel, in [0, 1]; `channels` (float32)."""
        return self._moments[0]

    @cached_property
    def std(self) -> np.ndarray:
        """Standard deviation of the training pixels by channel; `channels` (float32).

        Pixels count as numbers in [0, 1]. The value is at least 1/255, so that one can divide by
        it.
        """
        return np.maximum(self._moments[1], 1 / 255)

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation by channel, worked out from the histogram of each channel."""
        counts = np.zeros((self.channels, 256), np.int64)
        for chunk in iter_chunks(self.train.pixels):
            for channel, histogram in enumerate(counts):
                histogram += np.bincount(chunk[..., channel].reshape(-1), minlength=256)
        levels = np.arange(256) / 255
        frequencies = counts / counts.sum(1, keepdims=True)
        mean = frequencies @ levels
        std = np.sqrt((frequencies * (levels - mean[:, None]) ** 2).sum(1))
        return mean.astype(np.float32), std.astype(np.float32)

    @cached_property
    def digest(self) -> str:
        """Digest of pixels, labels, class names, parts and metric: 16 hexadecimal digits."""
        digest = hashlib.sha256(repr((self.classes, self.metric)).encode())
        for images in (self.train, self.search, self.holdout, self.test):
            digest.update(repr(images.pixels.shape).encode())
            for chunk in iter_chunks(images.pixels):
                digest.update(np.ascontiguousarray(chunk).data)
            digest.update(np.ascontiguousarray(images.labels).data)
        return digest.hexdigest()[:16]


def count_text(counts: Mapping[str, int]) -> str:
    """Return counts by class as text, shortened if there are many: "apple 90, 7: 85"."""
    shown = [
        f"{printable_line(name if name == name.strip() else repr(name))}"
        f"{':' if name[-1:].isdigit() else ''} {count}"
        for name, count in counts.items()
    ]
    if len(shown) <= _MAX_CLASSES_IN_LINE:
        return ", ".join(shown)
    low, high = min(counts.values()), max(counts.values())
    spread = f"{low} each" if low == high else f"{low} to {high} each"
    return f"{', '.join(shown[: _MAX_CLASSES_IN_LINE // 2])}, ... ({spread})"


@checked(error=DataError)
def load_dataset(
    source: str | Path | Source,
    *,
    image_size: int | None = None,
    validation_fraction: float | None = None,
    seed: Seed = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
    class_folders: ClassFolders = "auto",
    group: str = "",
    on_duplicate: Literal["warn", "group", "fail"] = "warn",
    metric: Literal["auto", "accuracy", "balanced_accuracy"] = "auto",
    background: str = "white",
    unknown: str | Path | None = None,
    progress: DecodingProgress | bool | None = True,
    write_cache: bool = True,
) -> ImageDataset:
    """Decode and split a dataset, or read the decoded images from the cache.

    The test images are the source's test split, or `TEST_FRACTION` of its images. The validation
    images are the source's validation split, or `validation_fraction` of the rest; they are divided
    into the parts `search` and `holdout`. Random splits are stratified by class. The constants at
    the top of this module say how many images each part gets.

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
    with reported(
        progress, "images", "image", lambda done, total: (done, total, ""), at_once=False
    ) as report:
        decoded = decode(
            opened,
            image_size or opened.image_size,
            report,
            background=colour,
            write_cache=write_cache,
        )
    _warn_about_silhouettes(opened, decoded, background)
    classes, labels, bad_labels = _number_classes(opened, decoded)
    bad_by_class = _count_by_class(classes, bad_labels)
    if decoded.bad and on_bad_image == "fail":
        examples = "; ".join(decoded.bad[:3])
        remedy = (
            f'{remedy_for(decoded.bad)} Replace them, move them away, or set on_bad_image = "skip".'
        )
        raise DataError(
            f"{len(decoded.bad)} of {len(decoded.bad) + len(decoded.labels)} images cannot be "
            f"used: {count_text(bad_by_class)}. "
            f"{'They are' if len(decoded.bad) <= 3 else 'The first three are'} {examples}.",
            remedy=remedy.lstrip(),
        )
    _warn_about_similar_names(opened.name, classes)
    cache = image_cache.cache_path(opened, image_size or opened.image_size, colour)
    found = (
        None
        if cache is None or not write_cache
        else cache.with_suffix(image_cache.DUPLICATES_SUFFIX)
    )
    groups = groups_of(decoded.groups, decoded.locations)
    if on_duplicate == "group":
        scored = decoded.splits != "train"
        same = cached_duplicates(found, decoded.pixels, scored if scored.any() else None)
        groups = groups.joined(joining_pairs(same, decoded.pixels, groups.numbers))
    parts = split_images(decoded.splits, labels, classes, validation_fraction, seed, groups)
    train, search, holdout, test = (
        Images(_select(decoded.pixels, positions), labels[positions]) for positions in parts
    )
    inventory = Inventory(
        decoded.pixels,
        labels,
        _part_of_each(len(labels), parts),
        decoded.locations,
        decoded.sizes,
        {each.kind: each.count for each in decoded.examples},
        found,
        are_duplicates_grouped=on_duplicate == "group",
    )
    if on_duplicate == "fail":
        _require_no_duplicates(opened.name, inventory, inventory.duplicates())
    if metric == "auto":
        counts = np.bincount(train.labels, minlength=len(classes))
        metric = "accuracy" if counts.max() < IMBALANCED * counts.min() else "balanced_accuracy"
    if unlabelled is None:
        unknown_pixels = None
    else:
        side, channels = train.pixels.shape[2:]
        unknown_pixels = decode_unlabelled(
            unlabelled, side, channels, colour, write_cache=write_cache
        )
    return ImageDataset(
        source=opened.name,
        classes=classes,
        train=train,
        search=search,
        holdout=holdout,
        test=test,
        flip_preserves_class=opened.flip_preserves_class,
        skipped=decoded.bad,
        skipped_by_class=bad_by_class,
        layout=opened.layout,
        background=colour,
        examples=tuple(
            ImageExample(
                each.kind,
                each.count,
                each.content,
                np.asarray(decoded.pixels[each.position]),
                int(labels[each.position]),
            )
            for each in decoded.examples
        ),
        inventory=inventory,
        metric=metric,
        unknown=unknown_pixels,
    )


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


def _warn_about_silhouettes(source: Source, decoded: DecodedImages, background: str) -> None:
    """Warn of images that differ in their transparency only."""
    if decoded.silhouettes < 2:
        return
    invisible = (
        f" {decoded.invisible} of them have that colour themselves and become empty."
        if decoded.invisible
        else ""
    )
    warnings.warn(
        f"{decoded.silhouettes} of {len(decoded.labels)} images of {source.name} are drawn by "
        "their transparency alone: the visible pixels of each have one colour. They are composited "
        f"on {background}.{invisible} Set background in [data] to a colour that contrasts with "
        "them, if this one does not.",
        stacklevel=3,
    )


def _select(pixels: np.ndarray, positions: np.ndarray) -> Pixels:
    """Return some images of an array; images on disk stay there."""
    return PixelsOnDisk(pixels, positions) if isinstance(pixels, np.memmap) else pixels[positions]


def _number_classes(
    source: Source, decoded: DecodedImages
) -> tuple[tuple[str, ...], np.ndarray, list[int | None]]:
    """Return the class names, and the position among them of each image that can be used, and not.

    A class without an image that can be used is still a class. Names that are equal in the Unicode
    form NFC are one class, because systems write accents in different forms.

    Raises:
        DataError: A label has no class name, or a class name is not one line of text.
    """
    if source.classes is not None:
        unknown = set(decoded.label_values) - set(range(len(source.classes)))
        if unknown:
            raise DataError(
                f"{source.name} has label {min(unknown, key=str)}, but only {len(source.classes)} "
                "class names.",
                remedy="Correct the labels or the names.",
            )
        name_of: dict[int | str, str] = dict(enumerate(source.classes))
    else:
        name_of = {value: str(value) for value in decoded.label_values}
    name_of = {value: unicodedata.normalize("NFC", name) for value, name in name_of.items()}
    if any(isinstance(value, str) for value in name_of):
        classes = tuple(sorted(set(name_of.values())))
    else:
        classes = tuple(dict.fromkeys(name_of.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    position = {value: label_of[name] for value, name in name_of.items()}
    labels = np.array([position[label] for label in decoded.labels], np.int64)
    bad_labels = [None if label is None else position[label] for label in decoded.bad_labels]
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


def _require_no_duplicates(source: str, inventory: Inventory, found: Duplicates) -> None:
    """Raise DataError for duplicates in two parts or of two classes."""
    for first, second in found.pairs:
        parts, labels = (each[[first, second]] for each in (inventory.parts, inventory.labels))
        if parts[0] != parts[1] or labels[0] != labels[1]:
            reason = "two parts" if parts[0] != parts[1] else "two classes"
            raise DataError(
                f"{source} has duplicates in {reason}, such as {inventory.locations[first]} and "
                f"{inventory.locations[second]}.",
                remedy='Remove them (`nas data` lists them), or set on_duplicate = "group".',
            )
