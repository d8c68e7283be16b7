import numpy as np
import pytest

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
