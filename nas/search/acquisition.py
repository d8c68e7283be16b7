"""What an observation is expected to add to a front: expected hypervolume improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from nas.search.encoding import Array
from nas.search.pareto import non_dominated

DIRECTIONS = 128
"""Directions in which four and more objectives are looked at."""


def expected_improvement(limit: Array, mean: Array, deviation: Array) -> Array:
    """The expectation of `max(0, limit - y)` for normal `y` (Jones et al. 1998); broadcasts."""
    gap = limit - mean
    sure = deviation < 1e-12
    safe = np.where(sure, 1.0, deviation)
    z = gap / safe
    density = np.exp(-0.5 * np.minimum(z * z, 1400.0)) / np.sqrt(2 * np.pi)
    found: Array = np.where(sure, np.maximum(gap, 0.0), gap * ndtr(z) + safe * density)
    return np.maximum(found, 0.0)


def expected_hypervolume_improvement(
    means: Array, deviations: Array, front: Array, reference: Sequence[float]
) -> Array:
    """The volume that each of `n` points is expected to add to a front, `n`.

    Args:
        means, deviations: `n x m`, of independent normal objectives, smaller is better.
        front: `f x m`, what is known.
        reference: `m`, the corner beyond which nothing counts.

    Exact up to three objectives: a sum over the steps of the front, and of each of its slices
    (after Emmerich et al. 2011). For more the volume is averaged over random directions (Zhang and
    Golovin 2020, "Random hypervolume scalarizations"), always the same ones.
    """
    corner = np.asarray(reference, dtype=float)
    front = front.reshape(-1, len(corner))
    front = front[(front < corner).all(axis=1)]
    if len(corner) > 3:
        return _over_directions(means, deviations, front, corner)
    front = front[non_dominated(front)]
    # How far each point is expected to lie below each limit: by objective, `n x (f + 1)`.
    below = [
        expected_improvement(limits, means[:, [at]], deviations[:, [at]])
        for at, limits in enumerate(np.vstack([front, corner]).T)
    ]
    if len(corner) == 1:
        return below[0][:, 0]
    if len(corner) == 2:
        return _area(below, list(range(len(front))))
    order = np.argsort(front[:, 2], kind="stable")
    depths = np.diff(below[2].take([*order, -1], axis=1), axis=1, prepend=0.0).T
    steps: list[int] = []
    found = depths[0] * _area(below, steps)
    for position, depth in zip(order, depths[1:], strict=True):
        steps = [*steps, int(position)]
        steps = [steps[each] for each in non_dominated(front[steps, :2])]
        found += depth * _area(below, steps)
    return found


def _area(below: Sequence[Array], steps: list[int]) -> Array:
    """What is added in the first two objectives; the front's steps in the order of the first."""
    # Between two edges of the first objective, points below the second's top add to the front.
    edges, tops = [*steps, -1], [-1, *steps]
    widths = np.diff(below[0].take(edges, axis=1), axis=1, prepend=0.0)
    found: Array = (widths * below[1].take(tops, axis=1)).sum(axis=1)
    return found


def _over_directions(means: Array, deviations: Array, front: Array, corner: Array) -> Array:
    rng = np.random.default_rng(0)
    count = len(corner)
    directions = np.abs(rng.standard_normal((DIRECTIONS, count)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    drawn = rng.standard_normal((8, 1, count))

    def reach(points: Array) -> Array:
        """How far from the corner each point reaches in each direction."""
        gaps = np.maximum(corner - points, 0.0)[..., None, :]
        far: Array = (gaps / directions).min(axis=-1) ** count
        return far

    known = reach(front).max(axis=0) if len(front) else np.zeros(DIRECTIONS)
    # The ball's share of volume that lies in one corner turns the mean of powers into a volume.
    corner_of_ball = math.pi ** (count / 2) / (2**count * math.gamma(count / 2 + 1))
    added = np.maximum(reach(means + drawn * deviations) - known, 0.0)
    found: Array = corner_of_ball * added.mean(axis=(0, 2))
    return found
