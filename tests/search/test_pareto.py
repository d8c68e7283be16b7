import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search import hypervolume, non_dominated


def brute_force_front(points):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)

    return {tuple(p) for p in points if not any(dominates(q, p) for q in points)}


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_front_is_that_of_brute_force(objectives):
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(0, 8, size=(30, objectives))
        kept = non_dominated(points)
        assert {tuple(points[i]) for i in kept} == brute_force_front(points)
        assert len({tuple(points[i]) for i in kept}) == len(kept)
        assert [points[i][0] for i in kept] == sorted(points[i][0] for i in kept)


def test_of_equal_points_the_first_is_kept():
    assert non_dominated([[2, 2], [1, 3], [2, 2], [1, 3]]) == [1, 0]


def test_no_points():
    assert non_dominated([]) == []
    assert hypervolume([], (1, 1)) == 0


def test_hypervolume_in_closed_form():
    assert hypervolume([[1, 2], [2, 1]], (3, 3)) == 3
    assert hypervolume([[0, 0, 0]], (2, 3, 4)) == 24
    assert hypervolume([[1, 1], [5, 0]], (3, 3)) == 4


@pytest.mark.parametrize("objectives", [2, 3])
def test_hypervolume_counts_the_cells_of_a_grid(objectives):
    rng = np.random.default_rng(1)
    for _ in range(20):
        points = rng.integers(0, 6, size=(8, objectives))
        cells = np.stack(np.meshgrid(*[np.arange(6)] * objectives), -1).reshape(-1, objectives)
        dominated = (points[:, None, :] <= cells[None]).all(-1).any(0).sum()
        assert hypervolume(points, (6,) * objectives) == dominated


def by_inclusion_and_exclusion(points, reference):
    """The volume of a union of boxes: those of one, less those of two, and so on."""
    found = 0.0
    for count in range(1, len(points) + 1):
        for chosen in combinations(points, count):
            shared = np.maximum(reference - np.max(chosen, axis=0), 0)
            found -= (-1) ** count * np.prod(shared)
    return found


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_that_of_a_union_of_boxes(objectives):
    rng = np.random.default_rng(2)
    reference = np.full(objectives, 1.0)
    for count in range(1, 8):
        points = rng.uniform(-0.5, 1.2, size=(count, objectives))
        expected = by_inclusion_and_exclusion(points, reference)
        assert hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


GRID = 4


@given(
    st.integers(1, 4).flatmap(
        lambda objectives: st.lists(
            st.tuples(*[st.integers(-1, GRID)] * objectives), min_size=1, max_size=12
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_hypervolume_counts_cells_whatever_the_points(points):
    """Ties, repeats and points beyond the reference are common on a small grid."""
    objectives = len(points[0])
    axes = [np.arange(-1, GRID)] * objectives
    cells = np.stack(np.meshgrid(*axes), -1).reshape(-1, objectives)
    dominated = (np.array(points)[:, None, :] <= cells[None]).all(-1).any(0).sum()
    assert hypervolume(points, (GRID,) * objectives) == dominated


@given(
    st.integers(1, 4).flatmap(
        lambda objectives: st.lists(
            st.tuples(*[st.integers(0, 3)] * objectives), min_size=1, max_size=15
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_the_front_is_that_of_brute_force_whatever_the_points(points):
    kept = non_dominated(points)
    assert [tuple(points[i]) for i in kept] == sorted(brute_force_front(points))
    assert all(points.index(points[i]) == i for i in kept)


def test_only_the_front_makes_the_hypervolume():
    rng = np.random.default_rng(3)
    for objectives in (1, 2, 3, 4):
        points = rng.uniform(0, 1, size=(30, objectives))
        front = points[non_dominated(points)]
        reference = (1.0,) * objectives
        assert hypervolume(front, reference) == pytest.approx(hypervolume(points, reference))
        shuffled = rng.permutation(points)
        assert hypervolume(shuffled, reference) == pytest.approx(hypervolume(points, reference))


def test_hypervolume_scales_with_its_units():
    points = np.random.default_rng(4).uniform(0, 1, size=(12, 3))
    units = np.array([1e-9, 1.0, 1e12])
    found = hypervolume(points * units + 5 * units, 6 * units)
    assert found == pytest.approx(units.prod() * hypervolume(points, (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(("objectives", "count"), [(2, 3000), (3, 300), (4, 40)])
def test_large_fronts_do_not_take_seconds(objectives, count):
    """All on a sphere, so that none dominates another: the worst case."""
    directions = np.abs(np.random.default_rng(5).standard_normal((count, objectives)))
    points = 1 - directions / np.linalg.norm(directions, axis=1, keepdims=True)
    start = time.process_time()
    assert len(non_dominated(points)) == count
    assert 0 < hypervolume(points, (1.0,) * objectives) < 1
    assert time.process_time() - start < 2
