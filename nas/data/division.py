"""Division of groups of images among parts, so that each part has images of each class.

First, each group goes to the part that misses most of its classes, which gives parts of the right
sizes. Where this leaves a part without a class, an integer program moves as few groups as it takes,
or proves that there is no division: groups with images of several classes make this a covering
problem, which no count of groups answers.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

LARGEST_FIRST = 0.5
"""A group is placed before those that are smaller than this fraction of it; otherwise the order is
random. With a strict order, the same large groups would be in training for every seed, and the same
small ones in the hold-out."""

MAX_PROGRAM_SECONDS = 60
"""Time limit of the integer programs of a division. It is reached where a hundred classes or more
are each in hardly more groups than there are parts; other programs take seconds at most."""

_INFEASIBLE = 2
"""The status of `scipy.optimize.milp` for a program that has no solution."""

Integers = NDArray[np.int64]


class IndivisibleError(Exception):
    """There is no division that gives each part enough images of some classes.

    Attributes:
        labels: the classes. If the time limit allowed it, they are as few as possible: with any of
            them left out there is a division.
        is_proven: whether there is none; otherwise none was found within the time limit.
    """

    def __init__(self, labels: Sequence[int], *, is_proven: bool) -> None:
        super().__init__(f"no division has enough images of the classes {labels} in each part")
        self.labels, self.is_proven = sorted(labels), is_proven


def divide_groups(
    groups: Integers,
    labels: Integers,
    shares: Sequence[float],
    fewest: Sequence[int],
    rng: np.random.Generator,
) -> Integers:
    """Return the part of each image, where all images of a group are in one part.

    Args:
        groups: Number of the group of each image.
        labels: Class of each image.
        shares: Share of the images of each class that each part should get; their sum is 1.
        fewest: Images of each class that each part has at least.
        rng: Generator of the random order of the groups, and of all other choices among equals.

    Raises:
        IndivisibleError: There is no division.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    images = sparse.coo_array((np.ones(len(labels), np.int64), (group_of, labels))).tocsr()
    parts = _Parts(images, np.array(shares), rng)
    parts.place_all()
    if (parts.counts < np.array(fewest)[:, None]).any():
        _Program(images, parts, np.array(fewest)).solve()
    return parts.part_of[group_of]


def divide_into_folds(
    groups: Integers, labels: Integers, count: int, rng: np.random.Generator
) -> Integers:
    """Return a fold from 0 to `count` - 1 for each image; none that has a number is empty.

    The images of each class are spread evenly over the folds, and no group is in two of them. Few
    groups may be in fewer folds. Where they would all be in one, groups are divided.

    Args:
        groups, labels, rng: See `divide_groups`.
        count: Most folds.
    """
    if len(np.unique(groups)) < len(groups):
        parts = divide_groups(groups, labels, [1 / count] * count, [0] * count, rng)
        used, numbers = np.unique(parts, return_inverse=True)
        if len(used) > 1:
            return numbers.astype(np.int64)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % count
    return folds


class _Parts:
    """The part of each group, and what the parts still miss.

    Args:
        images: number of images by group and class.
        shares, rng: see `divide_groups`.

    Attributes:
        counts: number of images by part and class.
        part_of: the part of each group.
    """

    def __init__(
        self, images: sparse.csr_array, shares: NDArray[np.float64], rng: np.random.Generator
    ) -> None:
        self._images, self._shares, self._rng = images, shares, rng
        self._fractions = images.data / images.sum(0)[images.indices]
        self._missing = np.repeat(shares[:, None], images.shape[1], axis=1)
        self.counts = np.zeros(self._missing.shape, np.int64)
        self.part_of = np.full(images.shape[0], -1)

    def place_all(self) -> None:
        """Put each group into the part that misses most of it, the largest groups first."""
        sizes = np.maximum.reduceat(self._fractions, self._images.indptr[:-1])
        weights = sizes * self._rng.uniform(LARGEST_FIRST, 1, len(sizes))
        by_chance = self._rng.permutation(len(self._shares))
        for group in np.argsort(-weights).tolist():
            self.place(group, int(by_chance[np.argmin(self.costs(group)[by_chance])]))

    def costs(self, group: int) -> NDArray[np.float64]:
        """Return how much farther from its share each part is with a group than without it.

        This is the change of the sum of `(share - fraction)^2 / share` over the classes, where
        `fraction` is that of the images of a class which are in the part.
        """
        row = self._row(group)
        fractions, missing = self._fractions[row], self._missing[:, self._images.indices[row]]
        if self.part_of[group] >= 0:
            missing[self.part_of[group]] += fractions
        return np.asarray((fractions @ fractions - 2 * missing @ fractions) / self._shares)

    def place(self, group: int, part: int) -> None:
        """Put a group into a part, and take it out of the one where it is."""
        row = self._row(group)
        own, fractions, images = (
            each[row] for each in (self._images.indices, self._fractions, self._images.data)
        )
        if (old := self.part_of[group]) >= 0:
            self._missing[old, own] += fractions
            self.counts[old, own] -= images
        self._missing[part, own] -= fractions
        self.counts[part, own] += images
        self.part_of[group] = part

    def _row(self, group: int) -> slice:
        return slice(self._images.indptr[group], self._images.indptr[group + 1])


class _Program:
    """The integer program of how many groups of each kind each part has.

    Groups are of one kind if they are in one part and have as many images of each class, where more
    than a part needs do not count.

    Args:
        images: number of images by group and class.
        parts: parts that the groups are in.
        fewest: see `divide_groups`.
    """

    def __init__(self, images: sparse.csr_array, parts: _Parts, fewest: Integers) -> None:
        self._parts = parts
        enough = images.minimum(int(fewest.max()))
        members: dict[tuple[int, bytes, bytes], list[int]] = defaultdict(list)
        for group, part in enumerate(parts.part_of.tolist()):
            row = slice(enough.indptr[group], enough.indptr[group + 1])
            kind = part, enough.indices[row].tobytes(), enough.data[row].tobytes()
            members[kind].append(group)
        self._members = list(members.values())
        first = enough[[each[0] for each in self._members]]
        self._images = sparse.block_diag(
            [first.minimum(each).T for each in fewest.tolist()], format="csr"
        )
        self._fewest = np.repeat(fewest, images.shape[1])
        self._part_count, self._class_count = len(fewest), images.shape[1]
        self._end = time.monotonic() + MAX_PROGRAM_SECONDS

    def solve(self) -> None:
        """Move as few groups as it takes for each part to have enough images of each class.

        Raises:
            IndivisibleError: There is no division.
        """
        every_class = list(range(self._class_count))
        solution, is_proven = self._solution(every_class)
        if solution is None:
            labels = self._conflict() if is_proven else every_class
            raise IndivisibleError(labels, is_proven=is_proven)
        for members, by_part in zip(self._members, solution.T.tolist(), strict=True):
            own = self._parts.part_of[members[0]]
            for part in range(self._part_count):
                for _ in range(by_part[part] if part != own else 0):
                    group = min(members, key=lambda each: self._parts.costs(each)[part])
                    members.remove(group)
                    self._parts.place(group, part)

    def _solution(self, labels: Sequence[int]) -> tuple[Integers | None, bool]:
        """Return the number of groups by part and kind, and whether there is none for certain.

        Args:
            labels: the classes of which the parts need images.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # Takes half a second.

        sizes = np.array([len(each) for each in self._members])
        is_moved = np.ones((self._part_count, len(sizes)))
        is_moved[[self._parts.part_of[each[0]] for each in self._members], range(len(sizes))] = 0
        rows = np.arange(len(self._fewest)).reshape(self._part_count, -1)[:, labels].reshape(-1)
        once = sparse.hstack([sparse.eye_array(len(sizes))] * self._part_count, format="csr")
        result = milp(
            is_moved.reshape(-1),
            integrality=np.ones(is_moved.size),
            bounds=Bounds(0, np.tile(sizes, self._part_count)),
            constraints=[
                LinearConstraint(self._images[rows], self._fewest[rows]),
                LinearConstraint(once, sizes, sizes),
            ],
            options={"time_limit": max(0.0, self._end - time.monotonic()), "mip_rel_gap": 1},
        )
        if result.x is None:
            return None, result.status == _INFEASIBLE
        return np.rint(result.x).astype(np.int64).reshape(is_moved.shape), False

    def _conflict(self) -> list[int]:
        """Return classes for which there is no division, but is with any of them left out.

        The classes are added one by one until there is no division. The last one belongs to the
        conflict, and those before it are searched in the same way.
        """
        chosen: list[int] = []
        others = list(range(self._class_count))
        while time.monotonic() < self._end and not self._solution(chosen)[1]:
            # The last one is not tried: with it there is no division.
            last = bisect_left(
                range(len(others) - 1),
                True,
                key=lambda at: self._solution(chosen + others[: at + 1])[1],
            )
            chosen.append(others[last])
            others = others[:last]
        return chosen if time.monotonic() < self._end else chosen + others
