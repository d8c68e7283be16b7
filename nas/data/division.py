"""Division of groups of images among parts, so that each part has images of each class.

First, each group goes to the part that misses most of its classes, which gives parts of the right
sizes. Where this leaves a part without a class, groups are moved. If that does not help either, an
integer program decides whether there is a division: groups with images of several classes make this
a covering problem, which no count of groups answers.
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

MOVES_PER_GAP = 50
"""Groups that are moved for each class that a part lacks, before the integer program decides."""

RANDOM_MOVES = 0.2
"""Fraction of these moves that are random, so that they do not go round in circles."""

MAX_CANDIDATES = 100
"""Groups of which the best one is moved."""

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
    parts = _Parts(images, np.array(shares), np.array(fewest), rng)
    parts.place_all()
    if not parts.complete():
        _Program(images, parts, np.array(fewest)).solve()
    return parts.part_of[group_of]


class _Parts:
    """The part of each group, and what the parts still miss.

    Args:
        images: number of images by group and class.
        shares, fewest, rng: see `divide_groups`.
    """

    def __init__(
        self,
        images: sparse.csr_array,
        shares: NDArray[np.float64],
        fewest: Integers,
        rng: np.random.Generator,
    ) -> None:
        self._images, self._shares, self._fewest, self._rng = images, shares, fewest[:, None], rng
        self._fractions = images.data / images.sum(0)[images.indices]
        self._missing = np.repeat(shares[:, None], images.shape[1], axis=1)
        self._counts = np.zeros(self._missing.shape, np.int64)
        self.part_of = np.full(images.shape[0], -1)

    def place_all(self) -> None:
        """Put each group into the part that misses most of it, the largest groups first."""
        sizes = np.maximum.reduceat(self._fractions, self._images.indptr[:-1])
        weights = sizes * self._rng.uniform(LARGEST_FIRST, 1, len(sizes))
        by_chance = self._rng.permutation(len(self._shares))
        for group in np.argsort(-weights).tolist():
            self.place(group, int(by_chance[np.argmin(self.costs(group)[by_chance])]))

    def complete(self) -> bool:
        """Move groups until each part has enough images of each class; return whether it has."""
        by_class = self._images.tocsc()
        for _ in range(1 + MOVES_PER_GAP * np.count_nonzero(self._counts < self._fewest)):
            lacking = np.argwhere(self._counts < self._fewest)
            if not len(lacking):
                return True
            part, label = self._rng.choice(lacking).tolist()
            groups = by_class.indices[by_class.indptr[label] : by_class.indptr[label + 1]]
            groups = self._rng.permutation(groups[self.part_of[groups] != part])[:MAX_CANDIDATES]
            if not len(groups):
                return False
            if self._rng.random() < RANDOM_MOVES:
                self.place(int(groups[0]), part)
            else:
                self.place(min(groups.tolist(), key=lambda each: self._loss(each, part)), part)
        return False

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
            self._counts[old, own] -= images
        self._missing[part, own] -= fractions
        self._counts[part, own] += images
        self.part_of[group] = part

    def _loss(self, group: int, part: int) -> tuple[int, float]:
        """Return the images that lack more if a group is moved to a part, and what it costs."""
        row, old = self._row(group), self.part_of[group]
        own, images = self._images.indices[row], self._images.data[row]
        change = 0
        for at, sign in ((old, -1), (part, 1)):
            lacking = self._fewest[at] - self._counts[at, own]
            change += np.maximum(0, lacking - sign * images).sum() - np.maximum(0, lacking).sum()
        costs = self.costs(group)
        return int(change), float(costs[part] - costs[old])

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
        solution, is_proven = self._solution()
        if solution is None:
            labels = self._conflict() if is_proven else list(range(self._class_count))
            raise IndivisibleError(labels, is_proven=is_proven)
        for members, by_part in zip(self._members, solution.T.tolist(), strict=True):
            own = self._parts.part_of[members[0]]
            for part in range(self._part_count):
                for _ in range(by_part[part] if part != own else 0):
                    group = min(members, key=lambda each: self._parts.costs(each)[part])
                    members.remove(group)
                    self._parts.place(group, part)

    def _solution(self, labels: Sequence[int] | None = None) -> tuple[Integers | None, bool]:
        """Return the number of groups by part and kind, and whether there is none for certain.

        Args:
            labels: the classes of which the parts need images; by default, all.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # Takes half a second.

        sizes = np.array([len(each) for each in self._members])
        is_moved = np.ones((self._part_count, len(sizes)))
        is_moved[[self._parts.part_of[each[0]] for each in self._members], range(len(sizes))] = 0
        all_rows = np.arange(len(self._fewest)).reshape(self._part_count, -1)
        rows = all_rows[:, slice(None) if labels is None else labels].reshape(-1)
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
