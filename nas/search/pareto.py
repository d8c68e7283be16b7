"""Pareto fronts and hypervolume. All objectives are minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def non_dominated(points: ArrayLike) -> list[int]:
    """Return the indices of the non-dominated points, sorted by the first objective.

    One point dominates another if it is nowhere worse and somewhere better. Among points with
    equal values only the first counts as non-dominated, so a front contains no duplicates.

    Args:
        points: `n x m` objective values, smaller is better.
    """
    values = np.asarray(points, dtype=float)
    if values.size == 0:
        return []
    if values.shape[1] == 2:
        # In lexicographic order, a point is on the front if its second value is below all before.
        order = np.lexsort((values[:, 1], values[:, 0]))
        second = values[order, 1]
        lowest = np.minimum.accumulate(second)
        on_front = np.append(True, second[1:] < lowest[:-1])
        return order[on_front].tolist()
    _, first = np.unique(values, axis=0, return_index=True)  # in lexicographic order
    front: list[int] = []
    for index in first:
        if not front or not (values[front] <= values[index]).all(axis=1).any():
            front.append(int(index))
    return front


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """Return the volume between a set of points and the reference point (Zitzler & Thiele 1998).

    The volume is sliced along the last objective, and the slices are volumes with one objective
    less. This is exact, and fast enough for two to four objectives.

    Args:
        points: `n x m` objective values, smaller is better. Points that are not below the
            reference point in every objective add nothing.
        reference: `m` values.
    """
    values = np.asarray(points, dtype=float).reshape(-1, len(reference))
    corner = np.asarray(reference, dtype=float)
    values = values[(values < corner).all(axis=1)]
    if not len(values):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - values.min())
    values = values[np.argsort(values[:, -1], kind="stable")]
    if len(corner) == 2:
        # Two objectives are the base case that every recursion reaches many times.
        lowest = np.minimum.accumulate(values[:, 0])
        return float(np.diff(values[:, 1], append=corner[1]) @ (corner[0] - lowest))
    tops = np.append(values[1:, -1], corner[-1])
    return float(
        sum(
            (top - bottom) * hypervolume(values[: count + 1, :-1], reference[:-1])
            for count, (bottom, top) in enumerate(zip(values[:, -1], tops, strict=True))
            if top > bottom
        )
    )
