"""Images, decoded and split once: training, the search's validation, a hold-out, the test."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from nas.data.decoding import Step, decode
from nas.data.image_cache import Decoded, Picked, Pixels, in_parts
from nas.data.sources import Source, open_source
from nas.errors import DataError, RequestError

Part = Literal["train", "search", "holdout"]
"""What training and search may read; the test is not among them."""

TEST_FRACTION = 0.2
"""Of a source without a test split of its own."""

HOLDOUT_FRACTION = 1 / 3
"""Of the validation images: they score the final front, and the search never sees them."""


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images and their labels `n` (int64)."""

    pixels: Pixels
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A classified image set, decoded and split.

    Attributes:
        source: where it came from.
        classes: names; a label is a position in them.
        train, search, holdout: the parts that training, search and the final scores use.
        test: read once, for the final model; never by training or search.
        natural: whether a mirrored image is still of its class.
        skipped: place and reason of every image that was left out.
    """

    source: str
    classes: tuple[str, ...]
    train: Images
    search: Images
    holdout: Images
    test: Images
    natural: bool
    skipped: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return int(self.train.pixels.shape[1])

    @property
    def channels(self) -> int:
        """1 where every image is grey, else 3."""
        return int(self.train.pixels.shape[3])

    @property
    def counts(self) -> dict[str, int]:
        """Images by part."""
        return {
            "train": len(self.train),
            "search": len(self.search),
            "holdout": len(self.holdout),
            "test": len(self.test),
        }

    def part(self, name: Part) -> Images:
        """A part that training and search may read. Raises RequestError for any other."""
        if name not in ("train", "search", "holdout"):
            raise RequestError(
                f"Part {name!r} cannot be used here.", remedy="Parts: train, search, holdout."
            )
        images: Images = getattr(self, name)
        return images

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of the training pixels by channel, in [0, 1]."""
        return self._moments[0]

    @cached_property
    def std(self) -> np.ndarray:
        """Standard deviation of the training pixels by channel, in [0, 1], at least 1/255."""
        return np.maximum(self._moments[1], 1 / 255)

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation by channel, in [0, 1], from how often each level occurs."""
        counts = np.zeros((self.channels, 256), np.int64)
        for part in in_parts(self.train.pixels):
            for channel, own in enumerate(counts):
                own += np.bincount(part[..., channel].reshape(-1), minlength=256)
        levels = np.arange(256) / 255
        share = counts / counts.sum(1, keepdims=True)
        mean = share @ levels
        std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
        return mean.astype(np.float32), std.astype(np.float32)

    @cached_property
    def digest(self) -> str:
        """16 hex digits over pixels, labels, class names and splits."""
        found = hashlib.sha256(repr(self.classes).encode())
        for images in (self.train, self.search, self.holdout, self.test):
            found.update(repr(images.pixels.shape).encode())
            for part in in_parts(images.pixels):
                found.update(np.ascontiguousarray(part).data)
            found.update(np.ascontiguousarray(images.labels).data)
        return found.hexdigest()[:16]


def load_dataset(
    source: str | Path,
    *,
    image_size: int | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
    progress: Step | None = None,
    keep: bool = True,
) -> ImageDataset:
    """Decodes a whole data set and splits it: in memory, or on disk where there are many images.

    What was decoded once is read back the next time; see `nas.data.decoding`.

    The test is the source's own split, or `TEST_FRACTION` of it. The validation images are the
    source's own split, or `validation_fraction` of what is left, and are cut again into a part for
    the search and a hold-out. Cuts are stratified and depend on `seed` alone.

    Args:
        source: "digits", or a path: parquet in the Hugging Face layout, or a folder a class.
        image_size: pixels a side; larger or oblong images are scaled and cropped to the centre.
            Without it, what suits the source.
        validation_fraction: of the training images, in (0, 1).
        seed: of the cuts.
        on_bad_image: "fail", or "skip" to go on without (`ImageDataset.skipped` names them).
        progress: see `nas.data.decoding.Step`.
        keep: whether decoded images are kept for the next time.

    Raises:
        DataError: nothing there, no labels, images that cannot be decoded, too few of a class.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(
            f"validation_fraction is {validation_fraction}.", remedy="Use a number between 0 and 1."
        )
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}.", remedy="Use a positive number of pixels.")
    if on_bad_image not in ("fail", "skip"):
        raise DataError(f"on_bad_image is {on_bad_image!r}.", remedy='Use "fail" or "skip".')
    opened = open_source(source)
    decoded = decode(opened, image_size or opened.image_size, progress, keep=keep)
    if decoded.bad and on_bad_image == "fail":
        named = "; ".join(decoded.bad[:3]) + ("; ..." if len(decoded.bad) > 3 else "")
        raise DataError(
            f"{len(decoded.bad)} of {len(decoded.bad) + len(decoded.labels)} images cannot be "
            f"used: {named}.",
            remedy='Replace or remove them, or set on_bad_image = "skip".',
        )
    classes, labels = _classes(opened, decoded)
    parts = _split(decoded.splits, labels, classes, validation_fraction, seed)
    pixels = decoded.pixels
    train, search, holdout, test = (
        Images(Picked(pixels, at) if isinstance(pixels, np.memmap) else pixels[at], labels[at])
        for at in parts
    )
    return ImageDataset(
        opened.name, classes, train, search, holdout, test, opened.natural, decoded.bad
    )


def _classes(source: Source, decoded: Decoded) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes, and for each image its position among them.

    A class of which no image can be used is still a class. Raises DataError for a label that has no
    name, and for a name that is no line of text.
    """
    if source.classes is not None:
        classes = source.classes
        unknown = set(decoded.label_values) - set(range(len(classes)))
        if unknown:
            raise DataError(
                f"{source.name} has label {min(unknown, key=str)}, but only {len(classes)} class "
                "names.",
                remedy="Correct the labels or the names.",
            )
        labels = np.array(decoded.labels, np.int64)
    else:
        classes = tuple(map(str, decoded.label_values))
        place = {value: index for index, value in enumerate(decoded.label_values)}
        labels = np.array([place[label] for label in decoded.labels], np.int64)
    for name in classes:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise DataError(
                f"{source.name} has the class name {name!a}, which has control characters or "
                "is no valid UTF-8.",
                remedy="Rename the class.",
            )
    return classes, labels


def _split(
    given: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    validation_fraction: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the training, search, hold-out and test images."""
    train, validation, test = (
        np.flatnonzero(given == name) for name in ("train", "validation", "test")
    )
    if len(classes) < 2:
        raise DataError(
            f"There are images of {len(classes)} class; two are needed.",
            remedy="Check that each class has its own label or sub-folder.",
        )
    # What is cut off each class needs an image of it, and one must stay for training.
    needed = 1 + (len(validation) == 0) + (len(test) == 0)
    have = Counter(labels[train].tolist())
    for label, name in enumerate(classes):
        if have[label] < needed:
            raise DataError(
                f"Class {name!r} has {have[label]} training images; at least {needed} are needed.",
                remedy="Add images of this class, or remove the class.",
            )
    rng = np.random.default_rng(seed)
    if len(test) == 0:
        train, test = _cut(train, labels, TEST_FRACTION, rng)
    if len(validation) == 0:
        train, validation = _cut(train, labels, validation_fraction, rng)
    # Class after class in random order, every third: right for classes of a few images too.
    mixed = rng.permutation(validation)
    mixed = mixed[np.argsort(labels[mixed], kind="stable")]
    held = np.diff(np.floor(np.arange(len(mixed) + 1) * HOLDOUT_FRACTION + 0.5)) > 0
    return train, np.sort(mixed[~held]), np.sort(mixed[held]), test


def _cut(
    positions: np.ndarray, labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `fraction` off each class, at least one and never all; a single image stays."""
    cut: list[int] = []
    for label in np.unique(labels[positions]):
        mine = rng.permutation(positions[labels[positions] == label])
        count = min(max(1, round(len(mine) * fraction)), len(mine) - 1)
        cut.extend(mine[:count].tolist())
    return np.setdiff1d(positions, cut), np.sort(np.array(cut, np.int64))
