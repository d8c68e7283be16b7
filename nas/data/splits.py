"""Division of the images into training, search, hold-out and test images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

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

MAX_FOLDS = 6
"""Most folds into which groups are divided, of which some become a part."""

_SHOWN_CLASSES = 5
"""Most classes that a message names."""


def split_images(
    source_splits: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    validation_fraction: float | None,
    seed: int,
    groups: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted positions of the training, search, hold-out and test images.

    No group is in two of these parts. If the splits of the source divide a group, its images stay
    in the test images, or else in the validation images, and the others are left out.

    Args:
        source_splits: Split of each image.
        labels: Label of each image.
        classes: Class names by label.
        validation_fraction: See `load_dataset`.
        seed: Seed of the random splits.
        groups: Number of the group of each image; an image in no group has a number of its own.

    Raises:
        DataError: There is only one class, a class has too few training images to be split, or a
            part would have no image of a class.
    """
    train, validation, test = (
        np.flatnonzero(source_splits == name) for name in ("train", "validation", "test")
    )
    if len(classes) < 2:
        raise DataError(
            f"There are images of {len(classes)} class; two are needed.",
            remedy="Check that each class has its own label or sub-folder.",
        )
    has_validation, has_test = len(validation) > 0, len(test) > 0
    if len(groups) > 1 and len(np.unique(groups)) == 1:
        raise DataError(
            "All images are in one group.", remedy="Use an expression that tells more groups."
        )
    validation = validation[~np.isin(groups[validation], groups[test])]
    train = train[~np.isin(groups[train], groups[np.concatenate([validation, test])])]
    are_grouped = len(np.unique(groups)) < len(groups)
    _require_enough(labels[train], classes, has_validation=has_validation, has_test=has_test)
    rng = np.random.default_rng(seed)
    if are_grouped:
        kept = np.concatenate([train, validation, test])
        _require_groups(labels[kept], groups[kept], classes, 4 - 2 * has_validation - has_test)

    def divide(
        positions: np.ndarray, fraction: float, fewest: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if are_grouped:
            return _group_split(positions, labels, groups, fraction, rng)
        return _stratified_split(positions, labels, fraction, fewest, rng)

    if not has_test:
        train, test = divide(train, TEST_FRACTION)
    if not has_validation:
        share = validation_fraction or _automatic_fraction(len(train))
        train, validation = divide(train, share, fewest=2)
    fraction = max(HOLDOUT_FRACTION, min(MIN_PART_IMAGES / max(1, len(validation)), 1 / 2))
    if are_grouped:
        search, holdout = divide(validation, fraction)
    else:
        search, holdout = _even_split(validation, labels, fraction, rng)
    parts = {"training": train, "search": search, "hold-out": holdout}
    if are_grouped or not has_test:
        parts["test"] = test
    _require_classes(parts, labels, classes, are_grouped=are_grouped)
    return train, search, holdout, test


def _automatic_fraction(count: int) -> float:
    """Return the fraction of `count` images that are used for validation by default.

    Of a small set it is more than usual, so that the hold-out has `MIN_PART_IMAGES`.
    """
    needed = MIN_PART_IMAGES / HOLDOUT_FRACTION / count
    return max(VALIDATION_FRACTION, min(needed, MAX_VALIDATION_FRACTION))


def _require_enough(
    labels: np.ndarray, classes: tuple[str, ...], *, has_validation: bool, has_test: bool
) -> None:
    """Raise DataError if a class has too few training images for the random splits.

    Args:
        labels: Labels of the training images of the source.
        classes: Class names by label.
        has_validation, has_test: Whether the source has these splits.
    """
    needs = [f"{MIN_TRAINING_IMAGES} to train"]
    needs += [] if has_validation else ["1 for the search", "1 for the hold-out"]
    needs += [] if has_test else ["1 to test"]
    required = MIN_TRAINING_IMAGES + len(needs) - 1
    counts = np.bincount(labels, minlength=len(classes))
    lacking = [f"{name!r} has {n}" for name, n in zip(classes, counts, strict=True) if n < required]
    if lacking:
        more = len(lacking) - _SHOWN_CLASSES
        shown = ", ".join(lacking[:_SHOWN_CLASSES]) + (f", and {more} more" if more > 0 else "")
        raise DataError(
            f"{len(lacking)} of {len(classes)} classes have too few training images: {shown}. "
            f"Each class needs at least {required}: {', '.join(needs)}.",
            remedy="Add images of these classes, or remove the classes. For accuracies in steps of "
            f"{100 / MIN_PART_IMAGES:g} points, {SUFFICIENT_IMAGES} images in all are needed.",
        )


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


def number_groups(names: Sequence[str | None]) -> np.ndarray:
    """Return the number of the group of each image; an image in no group has its own number."""
    numbers: dict[str | int, int] = {}
    keys = (index if name is None else name for index, name in enumerate(names))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def joined_groups(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the groups in which the images of each pair, `pairs x 2`, are in one."""
    first, second = groups[pairs].reshape(-1, 2).T
    count = int(groups.max()) + 1
    links = coo_matrix((np.ones(len(first)), (first, second)), (count, count))
    return np.asarray(connected_components(links, directed=False)[1][groups], np.int64)


def _group_split(
    positions: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Split off whole groups with about a fraction of each class; see `_stratified_split`."""
    from sklearn.model_selection import StratifiedGroupKFold  # Takes a second.

    taken, folds = min(
        ((taken, folds) for folds in range(2, MAX_FOLDS + 1) for taken in range(1, folds)),
        key=lambda each: (abs(each[0] / each[1] - fraction), each[1]),
    )
    splitter = StratifiedGroupKFold(
        folds, shuffle=True, random_state=int(rng.integers(np.iinfo(np.int32).max))
    )
    own, own_groups = labels[positions], groups[positions]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about rare classes, which `split_images` checks
            parts = [part for _, part in splitter.split(own, own, own_groups)]
    except ValueError as error:
        raise DataError(
            f"The images cannot be split by their groups: {error}.",
            remedy="Use an expression that tells more groups, or add images.",
        ) from None
    chosen = np.concatenate(parts[:taken])
    rest = np.concatenate(parts[taken:])
    return np.sort(positions[rest]), np.sort(positions[chosen])


def _require_groups(
    labels: np.ndarray, groups: np.ndarray, classes: tuple[str, ...], required: int
) -> None:
    """Raise DataError if the images of a class are in fewer groups than there are random parts."""
    for label, name in enumerate(classes):
        count = len(np.unique(groups[labels == label]))
        if count < required:
            raise DataError(
                f"The images of class {name!r} are in {count} group{'s' * (count != 1)}; "
                f"{required} are needed, since no group may be in two parts.",
                remedy="Add images of others, or use an expression that tells more groups.",
            )


def _require_classes(
    parts: Mapping[str, np.ndarray],
    labels: np.ndarray,
    classes: tuple[str, ...],
    *,
    are_grouped: bool,
) -> None:
    """Raise DataError if a part has no image of a class."""
    for part, positions in parts.items():
        lacking = sorted(set(range(len(classes))) - set(labels[positions].tolist()))
        if lacking:
            reason = ", since no group may be in two parts" if are_grouped else ""
            raise DataError(
                f"No {part} image would be of class {classes[lacking[0]]!r}{reason}.",
                remedy="Use another seed, add images, or an expression that tells more groups."
                if are_grouped
                else "Each class needs 2 validation images, one for the search and one for the "
                "hold-out. Add some, or remove the split: training images are then used.",
            )
