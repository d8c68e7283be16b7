import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kendalltau, norm

from nas.search.acquisition import expected_hypervolume_improvement, expected_improvement
from nas.search.pareto import hypervolume, non_dominated


def improvement(point, front, reference):
    """What one certain point adds, by the difference of two exact volumes."""
    return hypervolume([*front, point], reference) - hypervolume(front, reference)


def estimated(mean, deviation, front, reference, *, draws, seed=0):
    """The mean over random points, and its standard error."""
    rng = np.random.default_rng(seed)
    points = mean + deviation * rng.standard_normal((draws, len(mean)))
    known = hypervolume(front, reference)
    added = np.array([hypervolume([*front, point], reference) for point in points]) - known
    return added.mean(), added.std() / np.sqrt(draws)


def random_front(rng, count, objectives):
    """Points on a quarter of a sphere around (1, 1, ...), none of which dominates another."""
    directions = np.abs(rng.standard_normal((count, objectives)))
    return 1 - 0.8 * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def candidates(rng, count, objectives):
    means = rng.uniform(-0.1, 1.2, (count, objectives))
    return means, rng.uniform(0.01, 0.4, (count, objectives))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (2.0, 0.5), (-1.0, 0.3), (5.0, 2.0)])
def test_expected_improvement_is_the_integral(mean, deviation):
    expected, _ = quad(
        lambda y: (1.0 - y) * norm.pdf(y, mean, deviation), mean - 12 * deviation, 1.0
    )
    found = expected_improvement(np.array(1.0), np.array(mean), np.array(deviation))
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_expected_improvement_of_what_is_certain_is_the_improvement():
    found = expected_improvement(np.array(1.0), np.array([0.25, 1.0, 3.0]), np.zeros(3))
    assert found.tolist() == [0.75, 0.0, 0.0]


def test_expected_improvement_is_never_negative_however_far_away():
    gaps = np.array([1e-9, 1.0, 8.0, 40.0, 1e6, 1e12])
    assert (expected_improvement(np.array(0.0), gaps, np.ones(6)) >= 0).all()
    assert expected_improvement(np.array(0.0), -gaps, np.ones(6))[-1] == pytest.approx(1e12)


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("known", [0, 1, 6])
def test_up_to_three_objectives_are_those_of_monte_carlo(objectives, known):
    rng = np.random.default_rng(objectives)
    front = random_front(rng, known, objectives)
    means, deviations = candidates(rng, 6, objectives)
    reference = [1.1] * objectives
    found = expected_hypervolume_improvement(means, deviations, front, reference)
    for value, mean, deviation in zip(found, means, deviations, strict=True):
        expected, error = estimated(mean, deviation, front, reference, draws=2500)
        assert value == pytest.approx(expected, abs=4.5 * error + 1e-4)


def test_two_objectives_of_a_single_known_point_in_closed_form():
    """The rectangle below the reference, without the one that the known point dominates."""
    mean, deviation = np.array([[0.3, 0.6]]), np.array([[0.2, 0.1]])

    def reach(limit, of):
        return float(expected_improvement(np.array(limit), mean[0, of], deviation[0, of]))

    known = np.array([[0.5, 0.4]])
    found = expected_hypervolume_improvement(mean, deviation, known, (1.0, 1.0))
    # The part to the left of the known point, and the part to its right that lies below it.
    left = reach(0.5, 0) * reach(1.0, 1)
    below = (reach(1.0, 0) - reach(0.5, 0)) * reach(0.4, 1)
    assert found[0] == pytest.approx(left + below)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_a_certain_point_adds_exactly_its_volume(objectives):
    rng = np.random.default_rng(3)
    reference = [1.1] * objectives
    for known in (0, 1, 2, 9):
        front = random_front(rng, known, objectives)
        points = rng.uniform(-0.2, 1.3, (30, objectives))
        found = expected_hypervolume_improvement(points, np.zeros_like(points), front, reference)
        assert found == pytest.approx([improvement(p, front, reference) for p in points], abs=1e-12)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_points_beyond_the_reference_add_nothing_if_they_are_certain(objectives):
    rng = np.random.default_rng(4)
    front = random_front(rng, 5, objectives)
    beyond = rng.uniform(0, 1, (10, objectives))
    beyond[:, 0] = 1.1 + rng.uniform(0, 1, 10)
    reference = [1.1] * objectives
    found = expected_hypervolume_improvement(beyond, np.zeros_like(beyond), front, reference)
    assert (found == 0).all()
    # Those that may lie within it add something.
    found = expected_hypervolume_improvement(beyond, np.full_like(beyond, 0.5), front, reference)
    assert (found >= 0).all()
    assert objectives > 3 or (found > 0).all()


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_what_is_known_counts_by_its_front_within_the_reference(objectives):
    rng = np.random.default_rng(5)
    known = rng.uniform(0, 1.3, (40, objectives))
    means, deviations = candidates(rng, 20, objectives)
    reference = [1.0] * objectives
    front = known[non_dominated(known)]
    front = front[(front < 1).all(axis=1)]
    found = expected_hypervolume_improvement(means, deviations, known, reference)
    assert found == pytest.approx(
        expected_hypervolume_improvement(means, deviations, front, reference)
    )
    shuffled = rng.permutation(known)
    assert found == pytest.approx(
        expected_hypervolume_improvement(means, deviations, shuffled, reference)
    )


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_without_a_front_it_is_the_box_below_the_reference(objectives):
    means, deviations = candidates(np.random.default_rng(6), 8, objectives)
    found = expected_hypervolume_improvement(
        means, deviations, np.empty((0, objectives)), [1.1] * objectives
    )
    boxes = expected_improvement(np.array(1.1), means, deviations).prod(axis=1)
    assert found == pytest.approx(boxes)


def test_of_three_objectives_one_that_is_certain_for_all_leaves_the_other_two():
    """A slab: everything is known to be equally thick."""
    rng = np.random.default_rng(7)
    front = random_front(rng, 8, 2)
    means, deviations = candidates(rng, 20, 2)
    flat = expected_hypervolume_improvement(means, deviations, front, (1.0, 1.0))
    for at in range(3):
        thick = expected_hypervolume_improvement(
            np.insert(means, at, 0.6, axis=1),
            np.insert(deviations, at, 0.0, axis=1),
            np.insert(front, at, 0.6, axis=1),
            (1.0, 1.0, 1.0),
        )
        assert thick == pytest.approx(0.4 * flat)


def test_of_four_objectives_the_order_is_that_of_monte_carlo():
    rng = np.random.default_rng(7)
    front = random_front(rng, 6, 4)
    means = 0.8 * rng.uniform(0, 1, (16, 4))
    deviations = rng.uniform(0.01, 0.3, (16, 4))
    reference = [1.1] * 4
    found = expected_hypervolume_improvement(means, deviations, front, reference)
    expected = [
        estimated(mean, deviation, front, reference, draws=150)[0]
        for mean, deviation in zip(means, deviations, strict=True)
    ]
    assert kendalltau(found, expected).statistic > 0.7
    assert found.sum() == pytest.approx(sum(expected), rel=0.3)


def test_of_four_objectives_certain_points_come_in_the_order_of_their_volumes():
    rng = np.random.default_rng(8)
    front = random_front(rng, 10, 4)
    points = 0.9 * rng.uniform(0, 1, (60, 4))
    found = expected_hypervolume_improvement(points, np.zeros_like(points), front, [1.1] * 4)
    exact = [improvement(point, front, [1.1] * 4) for point in points]
    assert kendalltau(found, exact).statistic > 0.7


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_same_question_has_the_same_answer(objectives):
    rng = np.random.default_rng(9)
    front = random_front(rng, 5, objectives)
    means, deviations = candidates(rng, 12, objectives)
    reference = [1.1] * objectives
    found = expected_hypervolume_improvement(means, deviations, front, reference)
    again = expected_hypervolume_improvement(means, deviations, front, reference)
    assert (found == again).all()
    # An answer is of its own point, whatever else was asked.
    half = expected_hypervolume_improvement(means[:6], deviations[:6], front, reference)
    assert half == pytest.approx(found[:6])
