"""The decoded dataset with its four parts: training, search, hold-out and test images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from nas.data.division import divide_into_folds
from nas.data.duplicates import Duplicates, cached_duplicates
from nas.data.image_cache import ExampleFile, Pixels, iter_chunks, joined_pixels
from nas.data.sources import printable_line
from nas.data.splits import MIN_PART_IMAGES, SUFFICIENT_IMAGES
from nas.display.progress import Advance
from nas.errors import RequestError

Metric = Literal["accuracy", "balanced_accuracy"]

IMBALANCED = 3.0
"""Ratio of the training images of the largest and the smallest class from which the accuracy
misleads."""

Part = Literal["train", "search", "holdout"]
"""The parts that training and search may read; the test images are not among them."""

PART_NAMES = {"train": "train", "search": "search", "holdout": "hold-out", "test": "test"}
"""What the parts of a dataset are called in messages, by their attributes."""

MAX_CROP_LOSS = 0.5
"""Largest share of an image that the crop may cut off without a warning: 44% of photos of 16:9."""

MIN_CROPPED_SHARE = 0.01
"""Smallest share of the images that lose more from which a warning says so."""

_MAX_CLASSES_IN_LINE = 10


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images with their labels.

    Attributes:
        pixels: Images, `n x height x width x channels` (uint8).
        labels: Positions in `ImageDataset.classes`, `n` (int64).
        groups: Number of the group of each image, `n` (int64), see `nas.data.splits.Groups`; by
            default, each image is in one of its own.
    """

    pixels: Pixels
    labels: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray | slice) -> Images:
        """Return the images at these positions, with their labels and groups."""
        groups = None if self.groups is None else self.groups[positions]
        return Images(self.pixels[positions], self.labels[positions], groups)

    @property
    def has_groups(self) -> bool:
        """Whether some of the images are in one group."""
        return self.groups is not None and len(np.unique(self.groups)) < len(self)

    def folds(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the fold of each image, `n` (int64), see `divide_into_folds`."""
        groups = np.arange(len(self)) if self.groups is None else self.groups
        return divide_into_folds(groups, self.labels, count, rng)


def joined(parts: Sequence[Images]) -> Images:
    """Return the images of several parts, one after the other; see `joined_pixels`."""
    known = [each.groups for each in parts if each.groups is not None]
    free = 1 + max((int(each.max(initial=0)) for each in known), default=0)
    numbers = []
    for each in parts:
        numbers.append(np.arange(free, free + len(each)) if each.groups is None else each.groups)
        free += len(each)
    return Images(
        joined_pixels([each.pixels for each in parts]),
        np.concatenate([each.labels for each in parts]),
        np.concatenate(numbers),
    )


@dataclass(frozen=True, eq=False)
class Inventory:
    """All images of a source that can be used, in its order, and behind them further ones.

    Attributes:
        images: The images with their labels; the pixels of a large set stay on disk.
        parts: Part of each image, `n`; "left out" for one that would be on two sides of a split.
        locations: Where each image is below its source, for messages and records.
        sizes: Width and height of each image before it was scaled, `n x 2`.
        cache: File for what is known about the images; None without a cache.
        are_duplicates_grouped: Whether duplicates are in one part, except those of which
            `nas.data.duplicates.joining_pairs` says why they are not.
    """

    images: Images
    parts: np.ndarray
    locations: tuple[str, ...]
    sizes: np.ndarray
    cache: Path | None = None
    are_duplicates_grouped: bool = False

    def duplicates(self, progress: Advance | None = None) -> Duplicates:
        """Return the duplicates among the images; looked for once, and then read from the cache."""
        is_scored = ~np.isin(self.parts, ["train", "left out"])
        return cached_duplicates(self.cache, self.images.pixels, is_scored, progress)


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
        resize: How oblong images became squares, one of `nas.data.image_reading.RESIZES`.
        examples: An image file of each kind that the source has, which stands in `inventory`; none
            for a source without files.
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
    resize: str = "cover"
    examples: tuple[ExampleFile, ...] = ()
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
        counts = np.array(self.part_class_counts["train"])
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
        return {name: len(images) for name, images in self._parts.items()}

    @property
    def _parts(self) -> dict[str, Images]:
        return {name: getattr(self, name) for name in PART_NAMES}

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images by class name, in all parts."""
        totals = np.sum(list(self.part_class_counts.values()), axis=0).tolist()
        return dict(zip(self.classes, totals, strict=True))

    @property
    def part_class_counts(self) -> dict[str, list[int]]:
        """Number of images of each class by part, in the order of `classes`."""
        return {
            name: np.bincount(images.labels, minlength=len(self.classes)).tolist()
            for name, images in self._parts.items()
        }

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

    @property
    def lost_to_crop(self) -> str:
        """How many images lose much to the crop to squares, and what to do; empty for few."""
        if self.resize != "cover" or self.inventory is None:
            return ""
        sizes = self.inventory.sizes
        lost = 1 - sizes.min(1) / sizes.max(1)
        count = int((lost > MAX_CROP_LOSS).sum())
        if count < MIN_CROPPED_SHARE * len(lost):
            return ""
        return (
            f"{count} of {len(lost)} images ({count / len(lost):.0%}) lose more than "
            f"{MAX_CROP_LOSS:.0%} of their pixels (up to {math.floor(100 * lost.max())}%) to the "
            "crop to the centre, which may cut away what they show; "
            'set resize = "contain" in [data], which fits whole images in, with a border'
        )

    def part(self, *names: Part) -> Images:
        """Return a part that training and search may read, or several such parts, one by one.

        Several are a copy in memory unless they are on disk.

        Raises RequestError for the name of another part.
        """
        for name in names:
            if name not in ("train", "search", "holdout"):
                raise RequestError(
                    f"Part {name!r} cannot be used here.", remedy="Parts: train, search, holdout."
                )
        parts = [self._parts[name] for name in names]
        return parts[0] if len(parts) == 1 else joined(parts)

    @property
    def refit_count(self) -> int:
        """Number of images that a refit learns: all but the test images."""
        return sum(self.counts.values()) - len(self.test)

    def for_refit(self) -> ImageDataset:
        """Return a dataset that trains on all images but the test images, and has none to judge by.

        Its pixels are normalised as those of this one are, so that networks of both read an image
        alike. The images are the same in all, and so is the digest.
        """
        none = self.train.take(slice(0))
        images = self.part("train", "search", "holdout")
        result = replace(self, train=images, search=none, holdout=none)
        vars(result).update(_pixel_statistics=self._pixel_statistics, digest=self.digest)
        return result

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of the training pixels by channel, in [0, 1]; `channels` (float32)."""
        return self._pixel_statistics[0]

    @cached_property
    def std(self) -> np.ndarray:
        """Standard deviation of the training pixels by channel; `channels` (float32).

        Pixels count as numbers in [0, 1]. The value is at least 1/255, so that one can divide by
        it.
        """
        return np.maximum(self._pixel_statistics[1], 1 / 255)

    @cached_property
    def _pixel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
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
        return self.digest_of(*PART_NAMES)

    def digest_of(self, *names: str) -> str:
        """Return the digest of some parts, as that of all of them."""
        digest = hashlib.sha256(repr((self.classes, self.metric)).encode())
        for images in map(self._parts.__getitem__, names):
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
