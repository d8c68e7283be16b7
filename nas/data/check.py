"""What is in a dataset, and what is wrong with it: rare classes, bad images, and duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas.data.dataset import IMBALANCED, PART_NAMES, ImageDataset, Inventory
from nas.data.duplicates import Duplicates
from nas.display.progress import Advance
from nas.errors import DataError

FEW_IMAGES = 10
"""A class with fewer images than this can hardly be learned or judged."""

MAX_EXAMPLES = 10
"""Pairs of duplicates that are listed."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are duplicates.

    Args:
        first, second: where they are.
        parts: part of each, see `nas.data.dataset.Inventory`.
        classes: class of each.
        is_exact: whether their pixels are equal.
    """

    first: str
    second: str
    parts: tuple[str, str]
    classes: tuple[str, str]
    is_exact: bool

    @property
    def is_harmful(self) -> bool:
        """Whether they are in two parts, or of two classes; what is left out harms nothing."""
        is_alike = self.parts[0] == self.parts[1] and self.classes[0] == self.classes[1]
        return not is_alike and "left out" not in self.parts


@dataclass(frozen=True)
class DataCheck:
    """What is in a dataset.

    Args:
        source: name or path of the source.
        counts: number of images by part and class.
        formats: number of image files by kind.
        sizes: smallest, median and largest width x height of the images before they were scaled.
        skipped: location and reason of each image that was left out because it cannot be read.
        left_out: number of images left out because they would be on two sides of a split.
        duplicates: number of pairs of duplicates by their parts: `train+test`.
        leaked: number of images of each part that have a duplicate among the training images.
        exact: number of images whose pixels equal those of an earlier one.
        near: number of pairs of other images that show the same.
        conflicts: number of pairs of duplicates of two classes.
        examples: some pairs, harmful ones first.
        are_duplicates_grouped: see `nas.data.dataset.Inventory`.
        lost_to_crop: see `nas.data.dataset.ImageDataset`.
    """

    source: str
    counts: Mapping[str, Mapping[str, int]]
    formats: Mapping[str, int]
    sizes: tuple[str, ...]
    skipped: tuple[str, ...]
    left_out: int
    duplicates: Mapping[str, int]
    leaked: Mapping[str, int]
    exact: int
    near: int
    conflicts: int
    examples: tuple[DuplicatePair, ...]
    are_duplicates_grouped: bool
    lost_to_crop: str

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images by class, in all parts."""
        totals: Counter[str] = Counter()
        for counts in self.counts.values():
            totals.update(counts)
        return dict(totals)

    @property
    def imbalance(self) -> float:
        """The ratio of the training images of the largest class to those of the smallest."""
        counts = self.counts["train"].values()
        return max(counts) / max(1, min(counts))

    @property
    def rare_classes(self) -> list[str]:
        """The classes with fewer than `FEW_IMAGES` images."""
        return [name for name, count in self.class_counts.items() if count < FEW_IMAGES]

    @property
    def problems(self) -> list[str]:
        """What makes accuracies wrong or hard to judge, a sentence each; empty if nothing does."""
        problems = []
        if any(self.leaked.values()):
            parts = ", ".join(
                f"{count} of {sum(self.counts[part].values())} {PART_NAMES[part]} images"
                for part, count in self.leaked.items()
                if count
            )
            advice = (
                "they are of one colour, or like many others, so that they are not grouped"
                if self.are_duplicates_grouped
                else 'set on_duplicate = "group" in [data]'
            )
            problems.append(
                f"{parts} have a duplicate among the training images, so accuracies are too high; "
                f"{advice}"
            )
        if self.conflicts:
            problems.append(f"{self.conflicts} pairs of duplicates have two classes")
        if rare := self.rare_classes:
            shown = ", ".join(rare[:5]) + (", ..." if len(rare) > 5 else "")
            have = "1 class has" if len(rare) == 1 else f"{len(rare)} classes have"
            problems.append(f"{have} fewer than {FEW_IMAGES} images: {shown}")
        if self.imbalance >= IMBALANCED:
            problems.append(f"the largest class has {self.imbalance:.1f} times the smallest one's")
        if self.lost_to_crop:
            problems.append(self.lost_to_crop)
        if self.skipped:
            problems.append(f"{len(self.skipped)} images cannot be read and are left out")
        return problems

    def to_json(self) -> dict[str, Any]:
        """Return what `nas data --json` prints."""
        return {
            **asdict(self),
            "classes": self.class_counts,
            "imbalance": self.imbalance,
            "rare_classes": self.rare_classes,
            "problems": self.problems,
        }


def check_data(data: ImageDataset, progress: Advance | None = None) -> DataCheck:
    """Return what is in a loaded dataset; finding duplicates takes seconds for 50,000 images.

    Args:
        data: a dataset that `load_dataset` returned.
        progress: called with the number of images that were compared and that of all images.
    """
    inventory = data.inventory
    if inventory is None:
        raise ValueError("the dataset was not loaded from a source")
    duplicates = _with_used_first(inventory.duplicates(progress), inventory.parts)
    pairs = [
        *_pairs(data, inventory, duplicates.exact, is_exact=True),
        *_pairs(data, inventory, duplicates.near, is_exact=False),
    ]
    by_parts = Counter("+".join(each.parts) for each in pairs)
    positions, parts = duplicates.pairs, inventory.parts[duplicates.pairs]
    in_training = np.unique(positions[(parts[:, ::-1] == "train") & (parts != "train")])
    return DataCheck(
        source=data.source,
        counts={
            part: dict(zip(data.classes, counts, strict=True))
            for part, counts in data.part_class_counts.items()
        },
        formats={each.kind: each.count for each in data.examples},
        sizes=_sizes(inventory.sizes),
        skipped=data.skipped,
        left_out=int((inventory.parts == "left out").sum()),
        duplicates=dict(by_parts.most_common()),
        leaked={
            part: int((inventory.parts[in_training] == part).sum())
            for part in PART_NAMES
            if part != "train"
        },
        exact=len(duplicates.exact),
        near=len(duplicates.near),
        conflicts=sum(each.is_harmful and len(set(each.classes)) > 1 for each in pairs),
        examples=tuple(sorted(pairs, key=lambda each: not each.is_harmful)[:MAX_EXAMPLES]),
        are_duplicates_grouped=inventory.are_duplicates_grouped,
        lost_to_crop=data.lost_to_crop,
    )


def require_no_duplicates(data: ImageDataset) -> None:
    """Raise DataError for duplicates in two parts or of two classes of a loaded dataset."""
    for pair in check_data(data).examples[:1]:  # Harmful ones are first.
        if pair.is_harmful:
            reason = "two parts" if pair.parts[0] != pair.parts[1] else "two classes"
            raise DataError(
                f"{data.source} has duplicates in {reason}, such as {pair.first} and "
                f"{pair.second}.",
                remedy='Remove them (`nas data` lists them), or set on_duplicate = "group".',
            )


def _with_used_first(duplicates: Duplicates, parts: np.ndarray) -> Duplicates:
    """Return duplicates in which a training image stands for all that equal it.

    Without one, another image stands for them; one that is left out only if all are.

    Args:
        duplicates: duplicates, of which the first of equal images stands for all.
        parts: part of each image.
    """
    rank = np.select(
        [parts == each for each in PART_NAMES], range(len(PART_NAMES)), len(PART_NAMES)
    )
    first = np.arange(len(parts))
    first[duplicates.exact[:, 1]] = duplicates.exact[:, 0]
    order = np.argsort(rank, kind="stable")
    originals, at = np.unique(first[order], return_index=True)
    chosen = np.arange(len(parts))
    chosen[originals] = order[at]
    stands_for = chosen[first]
    others = np.flatnonzero(stands_for != np.arange(len(parts)))
    near = np.unique(np.sort(stands_for[duplicates.near], axis=1), axis=0)
    return Duplicates(np.stack([stands_for[others], others], axis=1), near)


def _pairs(
    data: ImageDataset, inventory: Inventory, pairs: np.ndarray, *, is_exact: bool
) -> list[DuplicatePair]:
    order, labels = ["left out", *PART_NAMES], inventory.images.labels
    result = []
    for pair in pairs.tolist():
        first, second = sorted(pair, key=lambda at: order.index(str(inventory.parts[at])))
        result.append(
            DuplicatePair(
                inventory.locations[first],
                inventory.locations[second],
                (str(inventory.parts[first]), str(inventory.parts[second])),
                (data.classes[labels[first]], data.classes[labels[second]]),
                is_exact,
            )
        )
    return result


def _sizes(sizes: np.ndarray) -> tuple[str, ...]:
    """Return the smallest, the median and the largest size, or the only one."""
    by_area = sizes[np.argsort(sizes.prod(1), kind="stable")]
    chosen = by_area[[0, len(by_area) // 2, -1]]
    return tuple(dict.fromkeys(f"{width}x{height}" for width, height in chosen.tolist()))
