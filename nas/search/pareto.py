"""Pareto fronts and hypervolume. All objectives are minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def non_dominated(points: ArrayLike) -> list[int]:
    """Positions of the points that no other point dominates, in the order of the first objective.

    Args:
        points: `n x m` values, smaller is better.

    One point dominates another if it is nowhere worse and somewhere better. Of points with equal
    values only the first is kept, so a front has no repeats.
    """
    values = np.asarray(points, dtype=float)
    if values.size == 0:
        return []
    if values.shape[1] == 2:
        # Sorted by both, a point is on the front if its second value is below all before it.
        order = np.lexsort((values[:, 1], values[:, 0]))
        second = values[order, 1]
        below = np.minimum.accumulate(second)
        kept_here = np.append(True, second[1:] < below[:-1])
        return order[kept_here].tolist()
    _, first = np.unique(values, axis=0, return_index=True)  # sorted by the first objective
    kept: list[int] = []
    for position in first:
        found = values[kept]
        if not len(kept) or not (found <= values[position]).all(axis=1).any():
            kept.append(int(position))
    return kept


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """The volume that the points dominate below the reference point (Zitzler & Thiele 1998).

    Args:
        points: `n x m` values, smaller is better; points beyond the reference count nothing.
        reference: `m` values.

    Slices along the last objective and adds up volumes of one dimension less, which is exact and
    fast enough for two to four objectives.
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
        # Without recursion, since more dimensions end here again and again.
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
