"""Division of the images into training, search, hold-out and test images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nas.data.division import IndivisibleError, divide_groups
from nas.errors import DataError

TEST_FRACTION = 0.2
"""Fraction of the images that become test images if the source has no test split."""

MIN_PART_IMAGES = 50
"""Images that the search and the hold-out have at least, if there are enough images.

One of 50 images is 2 points of accuracy, and the standard error of an accuracy of 90% is 4 points.
"""

VALIDATION_FRACTION = 0.2
"""Fraction of the training images that is used for validation, if that is enough images."""

MAX_VALIDATION_FRACTION = 5 / 12
"""Largest such fraction that is chosen automatically: a third of all images if a fifth are test
images. The training then has more images than the search and the hold-out together."""

HOLDOUT_FRACTION = 1 / 3
"""Fraction of the validation images that score the final Pareto front.

The search never sees these images. The fraction is up to a half if they are fewer than
`MIN_PART_IMAGES` otherwise.
"""

MIN_TRAINING_IMAGES = 2
"""Fewest images of each class that are left for training."""

SUFFICIENT_IMAGES = round(2 * MIN_PART_IMAGES / MAX_VALIDATION_FRACTION / (1 - TEST_FRACTION))
"""Images of a source without splits from which on every part has `MIN_PART_IMAGES`."""

_SHOWN = 5
"""Most classes or groups that a message names."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of images, of which none may be in two parts.

    Attributes:
        numbers: Number of the group of each image; an image in no group has a number of its own.
        names: Name of the group of each image; where the image is if the source tells no group.
        are_given: Whether the source tells groups.
        are_joined: Whether duplicates joined images.
    """

    numbers: np.ndarray
    names: Sequence[str]
    are_given: bool = False
    are_joined: bool = False

    def joined(self, pairs: np.ndarray) -> Groups:
        """Return the groups in which the images of each pair, `pairs x 2`, are in one."""
        first, second = self.numbers[pairs].reshape(-1, 2).T
        count = int(self.numbers.max()) + 1
        links = coo_matrix((np.ones(len(first)), (first, second)), (count, count))
        left, joined = connected_components(links, directed=False)
        numbers = np.asarray(joined[self.numbers], np.int64)
        return replace(self, numbers=numbers, are_joined=left < count)

    @property
    def remedy(self) -> str:
        """What to do if there are too few groups."""
        by_name = "Let `group` in [data] tell more groups, or add images of others."
        by_duplicates = (
            'Duplicates joined images: `nas data` lists them, and on_duplicate = "warn" does not '
            "join them."
        )
        texts = [by_name] if self.are_given or not self.are_joined else ["Add other images."]
        return " ".join(texts + [by_duplicates] * self.are_joined)


def groups_of(names: Sequence[str | None], locations: Sequence[str]) -> Groups:
    """Return the groups that a source tells.

    Args:
        names: Group of each image; None for one that is in no group.
        locations: Where each image is, for messages.
    """
    numbers: dict[str | int, int] = {}
    keys = (index if name is None else name for index, name in enumerate(names))
    return Groups(
        np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64),
        [place if name is None else name for name, place in zip(names, locations, strict=True)],
        are_given=any(name is not None for name in names),
    )


def split_images(
    source_splits: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    validation_fraction: float | None,
    seed: int,
    groups: Groups,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted positions of the training, search, hold-out and test images.

    Each part has images of each class. No group is in two of them. If the splits of the source
    divide a group, its images stay in the test images, or else in the validation images, and the
    others are left out.

    Args:
        source_splits: Split of each image.
        labels: Label of each image.
        classes: Class names by label.
        validation_fraction: See `load_dataset`.
        seed: Seed of the random splits.
        groups: Groups of the images.

    Raises:
        DataError: There is only one class, or a part cannot have images of a class.
    """
    if len(classes) < 2:
        raise DataError(
            f"There are images of {len(classes)} class; two are needed.",
            remedy="Check that each class has its own label or sub-folder.",
        )
    train, validation, test = (
        np.flatnonzero(source_splits == name) for name in ("train", "validation", "test")
    )
    has_validation, has_test = len(validation) > 0, len(test) > 0
    numbers = groups.numbers
    validation = validation[~np.isin(numbers[validation], numbers[test])]
    train = train[~np.isin(numbers[train], numbers[np.concatenate([validation, test])])]
    splits = {"training": labels[train]}
    splits |= {"validation": labels[validation]} if has_validation else {}
    splits |= {"test": labels[test]} if has_test else {}
    _require_enough(splits, classes, len(numbers) - sum(map(len, splits.values())))
    rng = np.random.default_rng(seed)
    if len(np.unique(numbers)) < len(numbers):
        parts = _PartsOfGroups(labels, classes, groups, rng)
        return parts.split(train, validation, test, validation_fraction)
    if not has_test:
        train, test = _stratified_split(train, labels, TEST_FRACTION, 1, rng)
    if not has_validation:
        share = validation_fraction or _automatic_fraction(len(train))
        train, validation = _stratified_split(train, labels, share, 2, rng)
    search, holdout = _even_split(validation, labels, _holdout_fraction(len(validation)), rng)
    return train, search, holdout, test


def _automatic_fraction(count: int) -> float:
    """Return the fraction of `count` images that are used for validation by default.

    Of a small set it is more than usual, so that the hold-out has `MIN_PART_IMAGES`.
    """
    needed = MIN_PART_IMAGES / HOLDOUT_FRACTION / count
    return max(VALIDATION_FRACTION, min(needed, MAX_VALIDATION_FRACTION))


def _holdout_fraction(count: float) -> float:
    """Return the fraction of `count` validation images that the hold-out gets."""
    return max(HOLDOUT_FRACTION, min(MIN_PART_IMAGES / max(1, count), 1 / 2))


def _require_enough(
    splits: Mapping[str, np.ndarray], classes: tuple[str, ...], left_out: int
) -> None:
    """Raise DataError if a class has too few images in a split of the source.

    Args:
        splits: Labels of the training images, and of the validation and test images if the source
            has these splits.
        classes: Class names by label.
        left_out: Number of images that are left out, because their groups are in two splits.
    """
    needs = {
        "training": [f"{MIN_TRAINING_IMAGES} to train"],
        "validation": ["1 for the search", "1 for the hold-out"],
        "test": ["1 to test"],
    }
    for split in ("validation", "test"):
        needs["training"] += [] if split in splits else needs[split]
    for split, labels in splits.items():
        fewest = len(needs[split]) + (MIN_TRAINING_IMAGES - 1 if split == "training" else 0)
        counts = np.bincount(labels, minlength=len(classes)).tolist()
        has = [
            f"{name!r} has {count}"
            for name, count in zip(classes, counts, strict=True)
            if count < fewest
        ]
        if not has:
            continue
        because = (
            f" {left_out} images are left out, because other images of their groups are in "
            "another split of the source."
            if left_out
            else ""
        )
        remedy = (
            "Add images of these classes, or remove the classes. For accuracies in steps of "
            f"{100 / MIN_PART_IMAGES:g} points, {SUFFICIENT_IMAGES} images in all are needed."
            if split == "training"
            else f"Add images of these classes, or give a source without a {split} split: its "
            "images are then cut from the training images."
        )
        raise DataError(
            f"{len(has)} of {len(classes)} classes have too few {split} images: {_listed(has)}. "
            f"Each class needs at least {fewest}: {', '.join(needs[split])}.{because}",
            remedy=remedy,
        )


def _listed(texts: Iterable[str]) -> str:
    """Return some texts as a list in a message."""
    all_texts = list(texts)
    more = len(all_texts) - _SHOWN
    return ", ".join(all_texts[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _stratified_split(
    positions: np.ndarray,
    labels: np.ndarray,
    fraction: float,
    fewest: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Split off a random fraction of each class: at least the fewest images.

    `MIN_TRAINING_IMAGES` of each class are left.

    Returns:
        The sorted positions of the rest, and those of the fraction.
    """
    chosen: list[int] = []
    for label in np.unique(labels[positions]):
        shuffled = rng.permutation(positions[labels[positions] == label])
        count = max(fewest, round(len(shuffled) * fraction))
        chosen.extend(shuffled[: min(count, len(shuffled) - MIN_TRAINING_IMAGES)].tolist())
    return np.setdiff1d(positions, chosen), np.sort(np.array(chosen, np.int64))


def _even_split(
    positions: np.ndarray, labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Split off a fraction of all images, and of each class with two or more at least one.

    Images are taken at even distances from the shuffled images sorted by class. Unlike a split of
    each class alone, this gives the right fraction even if each class has only a few images.

    Returns:
        The sorted positions of the rest, and those of the fraction.
    """
    by_class = rng.permutation(positions)
    by_class = by_class[np.argsort(labels[by_class], kind="stable")]
    is_chosen = np.diff(np.ceil(np.arange(len(by_class) + 1) * fraction - 0.5)) > 0
    for label in np.unique(labels[by_class]):
        own = np.flatnonzero(labels[by_class] == label)
        if len(own) > 1 and not is_chosen[own].any():
            is_chosen[own[0]] = True
    return np.sort(by_class[~is_chosen]), np.sort(by_class[is_chosen])


@dataclass(frozen=True, eq=False)
class _PartsOfGroups:
    """The division of images by their groups.

    Attributes:
        labels: Label of each image.
        classes: Class names by label.
        groups: Groups of the images.
        rng: Generator of the random divisions.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    groups: Groups
    rng: np.random.Generator

    def split(
        self,
        train: np.ndarray,
        validation: np.ndarray,
        test: np.ndarray,
        validation_fraction: float | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the positions of the training, search, hold-out and test images.

        Args:
            train: Positions of the training images of the source.
            validation, test: Positions of its validation and test images; empty if it has none.
            validation_fraction: See `load_dataset`.

        Raises:
            DataError: A part cannot have images of a class.
        """
        rest = 1.0 if len(test) else 1 - TEST_FRACTION
        shares = {"training": rest}
        parts: dict[str, np.ndarray] = {}
        if len(validation):
            fraction = _holdout_fraction(len(validation))
            parts |= self._divided(validation, {"search": 1 - fraction, "hold-out": fraction})
        else:
            share = rest * (validation_fraction or _automatic_fraction(round(len(train) * rest)))
            fraction = _holdout_fraction(len(train) * share)
            shares["training"] -= share
            shares |= {"search": share * (1 - fraction), "hold-out": share * fraction}
        if len(test):
            parts["test"] = test
        else:
            shares["test"] = TEST_FRACTION
        parts |= self._divided(train, shares)
        return parts["training"], parts["search"], parts["hold-out"], parts["test"]

    def _divided(self, positions: np.ndarray, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Return the positions of each part, given its share of these images."""
        if len(shares) == 1:
            return dict.fromkeys(shares, positions)
        labels, numbers = self.labels[positions], self.groups.numbers[positions]
        fewest = [MIN_TRAINING_IMAGES if part == "training" else 1 for part in shares]
        try:
            part_of = divide_groups(numbers, labels, list(shares.values()), fewest, self.rng)
        except IndivisibleError as error:
            raise self._indivisible(error, positions, shares) from None
        return {part: positions[part_of == at] for at, part in enumerate(shares)}

    def _indivisible(
        self, error: IndivisibleError, positions: np.ndarray, shares: Mapping[str, float]
    ) -> DataError:
        """Return the error for classes whose groups cannot be divided."""
        names = _listed(repr(self.classes[label]) for label in error.labels)
        own = positions[np.isin(self.labels[positions], error.labels)]
        first = np.unique(self.groups.numbers[own], return_index=True)[1]
        groups = _listed(repr(self.groups.names[at]) for at in own[np.sort(first)])
        return DataError(
            f"No division by groups {'gives' if error.is_proven else 'was found that gives'} each "
            f"of the parts {_listed(shares)} images of the class{'es' * (len(error.labels) > 1)} "
            f"{names}, whose images are in the groups {groups}. No group may be in two parts.",
            remedy=self.groups.remedy,
        )
