import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kendalltau, norm

from nas.search.acquisition import expected_hypervolume_improvement, expected_improvement
from nas.search.pareto import hypervolume, non_dominated


def hypervolume_gain(point, front, reference):
    """Return the exact hypervolume that one point adds to a front."""
    return hypervolume([*front, point], reference) - hypervolume(front, reference)


def random_front(rng, count, objectives):
    """Return points on a sphere around (1, 1, ...), none of which dominates another."""
    directions = np.abs(rng.standard_normal((count, objectives)))
    return 1 - 0.8 * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def random_candidates(rng, count, objectives):
    """Return means and standard deviations of the objectives of some candidates."""
    means = rng.uniform(-0.1, 1.2, (count, objectives))
    return means, rng.uniform(0.01, 0.4, (count, objectives))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (2.0, 0.5), (-1.0, 0.3), (5.0, 2.0)])
def test_expected_improvement_equals_its_integral(mean, deviation):
    expected, _ = quad(
        lambda y: (1.0 - y) * norm.pdf(y, mean, deviation), mean - 12 * deviation, 1.0
    )
    improvement = expected_improvement(np.array(1.0), np.array(mean), np.array(deviation))
    assert float(improvement) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_expected_improvement_without_uncertainty_is_the_improvement():
    improvement = expected_improvement(np.array(1.0), np.array([0.25, 1.0, 3.0]), np.zeros(3))
    assert improvement.tolist() == [0.75, 0.0, 0.0]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_hypervolume_improvement_of_up_to_three_objectives_matches_monte_carlo(objectives):
    """The gains of the points that are drawn are exact, see the next test."""
    rng = np.random.default_rng(objectives)
    front = random_front(rng, 6, objectives)
    means, deviations = random_candidates(rng, 6, objectives)
    reference = [1.1] * objectives
    gains = expected_hypervolume_improvement(means, deviations, front, reference)
    for value, mean, deviation in zip(gains, means, deviations, strict=True):
        points = mean + deviation * rng.standard_normal((10_000, objectives))
        exact = expected_hypervolume_improvement(points, np.zeros_like(points), front, reference)
        assert value == pytest.approx(exact.mean(), abs=4.5 * exact.std() / 100 + 1e-4)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_hypervolume_improvement_without_uncertainty_is_exact(objectives):
    rng = np.random.default_rng(3)
    reference = [1.1] * objectives
    for front_size in (0, 1, 2, 9):
        front = random_front(rng, front_size, objectives)
        points = rng.uniform(-0.2, 1.3, (30, objectives))
        gains = expected_hypervolume_improvement(points, np.zeros_like(points), front, reference)
        assert gains == pytest.approx(
            [hypervolume_gain(p, front, reference) for p in points], abs=1e-12
        )


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_dominated_points_and_points_beyond_the_reference_are_ignored(objectives):
    rng = np.random.default_rng(5)
    observed = rng.uniform(0, 1.3, (40, objectives))
    means, deviations = random_candidates(rng, 20, objectives)
    reference = [1.0] * objectives
    front = observed[non_dominated(observed)]
    front = front[(front < 1).all(axis=1)]
    gains = expected_hypervolume_improvement(means, deviations, observed, reference)
    assert gains == pytest.approx(
        expected_hypervolume_improvement(means, deviations, front, reference)
    )
    shuffled = rng.permutation(observed)
    assert gains == pytest.approx(
        expected_hypervolume_improvement(means, deviations, shuffled, reference)
    )


@pytest.mark.slow
def test_ranking_by_four_objectives_matches_monte_carlo():
    rng = np.random.default_rng(7)
    front = random_front(rng, 4, 4)
    means = 0.8 * rng.uniform(0, 1, (12, 4))
    deviations = rng.uniform(0.01, 0.3, (12, 4))
    reference = [1.1] * 4
    gains = expected_hypervolume_improvement(means, deviations, front, reference)
    drawn = means[:, None] + deviations[:, None] * rng.standard_normal((12, 100, 4))
    expected = [
        np.mean([hypervolume_gain(point, front, reference) for point in points]) for points in drawn
    ]
    assert kendalltau(gains, expected).statistic > 0.7
    assert gains.sum() == pytest.approx(sum(expected), rel=0.3)
