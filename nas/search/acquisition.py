"""Acquisition functions: expected improvement and expected hypervolume improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from nas.search.pareto import Array, non_dominated

NUM_SCALARIZATIONS = 128
"""Random directions that approximate the hypervolume for four and more objectives.

Enough to rank candidates nearly as a Monte Carlo estimate of the hypervolume does (see the tests).
"""

NUM_POSTERIOR_SAMPLES = 8
"""Samples of each candidate's objectives, for four and more objectives."""


def expected_improvement(limit: Array, mean: Array, deviation: Array) -> Array:
    """Return the expectation of `max(0, limit - y)` for normally distributed `y`.

    This is expected improvement (Jones et al. 1998) for an objective that is minimised.

    Args:
        limit: the value to improve on.
        mean: of `y`.
        deviation: standard deviation of `y`; zero for a value that is known exactly.

    The arguments are broadcast against each other.
    """
    gap = limit - mean
    is_exact = deviation < 1e-12
    safe_deviation = np.where(is_exact, 1.0, deviation)
    z = gap / safe_deviation
    density = np.exp(-0.5 * np.clip(z, -37.0, 37.0) ** 2) / np.sqrt(2 * np.pi)
    improvement: Array = np.where(
        is_exact, np.maximum(gap, 0.0), gap * ndtr(z) + safe_deviation * density
    )
    return np.maximum(improvement, 0.0)


def expected_hypervolume_improvement(
    means: Array, deviations: Array, front: Array, reference: Sequence[float]
) -> Array:
    """Return the hypervolume that each of `n` candidates is expected to add to a front, `n`.

    The objectives of a candidate are independent normal variables and are minimised. Up to three
    objectives the result is exact: a sum over the cells between the steps of the front and, for
    three objectives, over its slices (after Emmerich et al. 2011). For more objectives it is an
    average over random scalarizations (Zhang and Golovin 2020, "Random hypervolume scalarizations
    for provable multi-objective black box optimization"), the same ones at every call.

    Args:
        means: `n x m` means of the candidates' objectives.
        deviations: `n x m` standard deviations; zero for values that are known exactly.
        front: `f x m` observed values; dominated ones are ignored.
        reference: `m`, the reference point of the hypervolume.
    """
    corner = np.asarray(reference, dtype=float)
    front = front.reshape(-1, len(corner))
    front = front[(front < corner).all(axis=1)]
    if len(corner) > 3:
        return _by_random_scalarizations(means, deviations, front, corner)
    front = front[non_dominated(front)]
    # One `n x (f + 1)` array for each objective: the improvement on each point of the front and,
    # in the last column, on the reference point.
    improvements = [
        expected_improvement(limits, means[:, [column]], deviations[:, [column]])
        for column, limits in enumerate(np.vstack([front, corner]).T)
    ]
    if len(corner) == 1:
        return improvements[0][:, 0]
    if len(corner) == 2:
        return _expected_area(improvements, list(range(len(front))))
    # Between two neighbouring values of the third objective, the front is a staircase in the other
    # two: the steps of all points up to there.
    order = np.argsort(front[:, 2], kind="stable")
    depths = np.diff(improvements[2].take([*order, -1], axis=1), axis=1, prepend=0.0).T
    steps: list[int] = []
    volume = depths[0] * _expected_area(improvements, steps)
    for index, depth in zip(order, depths[1:], strict=True):
        steps = [*steps, int(index)]
        steps = [steps[i] for i in non_dominated(front[steps, :2])]
        volume += depth * _expected_area(improvements, steps)
    return volume


def _expected_area(improvements: Sequence[Array], steps: list[int]) -> Array:
    """Return the expected area that is added in the first two objectives, `n`.

    Args:
        improvements: `n x (f + 1)` for each objective, the last column for the reference point.
        steps: indices of the front's points, sorted by the first objective.
    """
    # Between two steps, an area is added below the second objective of the left one.
    right, top = [*steps, -1], [-1, *steps]
    widths = np.diff(improvements[0].take(right, axis=1), axis=1, prepend=0.0)
    area: Array = (widths * improvements[1].take(top, axis=1)).sum(axis=1)
    return area


def _by_random_scalarizations(
    means: Array, deviations: Array, front: Array, corner: Array
) -> Array:
    """Estimate the expected hypervolume improvement from random directions and samples, `n`."""
    rng = np.random.default_rng(0)
    num_objectives = len(corner)
    directions = np.abs(rng.standard_normal((NUM_SCALARIZATIONS, num_objectives)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    noise = rng.standard_normal((NUM_POSTERIOR_SAMPLES, 1, num_objectives))

    def scalarize(points: Array) -> Array:
        """Return how far each point reaches from the corner in each direction, to the power m."""
        gaps = np.maximum(corner - points, 0.0)[..., None, :]
        scalarized: Array = (gaps / directions).min(axis=-1) ** num_objectives
        return scalarized

    best = scalarize(front).max(axis=0) if len(front) else np.zeros(NUM_SCALARIZATIONS)
    # The volume of the unit ball's positive orthant turns the mean of powers into a hypervolume.
    orthant_volume = math.pi ** (num_objectives / 2) / (
        2**num_objectives * math.gamma(num_objectives / 2 + 1)
    )
    added = np.maximum(scalarize(means + noise * deviations) - best, 0.0)
    improvement: Array = orthant_volume * added.mean(axis=(0, 2))
    return improvement
