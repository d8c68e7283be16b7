"""What an observation is expected to add to a front: expected hypervolume improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from nas.search.encoding import Array
from nas.search.pareto import non_dominated

DIRECTIONS = 128
"""Directions in which three and more objectives are looked at."""


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

    Exact for one and two objectives (a sum over the steps of the front, after Emmerich et al.
    2011); for more the volume is averaged over random directions (Zhang and Golovin 2020, "Random
    hypervolume scalarizations"), always the same ones.
    """
    corner = np.asarray(reference, dtype=float)
    front = front.reshape(-1, len(corner))
    front = front[(front < corner).all(axis=1)]
    if len(corner) > 2:
        return _over_directions(means, deviations, front, corner)
    if len(corner) == 1:
        best = min([float(corner[0]), *front[:, 0]])
        return expected_improvement(np.array(best), means[:, 0], deviations[:, 0])
    front = front[non_dominated(front)]
    # Between edges i and i + 1 of the first objective, points below `tops[i]` add to the front.
    edges = np.append(front[:, 0], corner[0])
    tops = np.append(corner[1], front[:, 1])
    widths = expected_improvement(edges[None, :], means[:, :1], deviations[:, :1])
    widths = np.diff(widths, axis=1, prepend=0.0)
    heights = expected_improvement(tops[None, :], means[:, 1:], deviations[:, 1:])
    found: Array = (widths * heights).sum(axis=1)
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
