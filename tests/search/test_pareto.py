import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search import hypervolume, non_dominated


def brute_force_front(points):
    """Return the values of all points that no other point dominates."""

    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)

    return {tuple(p) for p in points if not any(dominates(q, p) for q in points)}


def test_empty_set_has_no_front_and_no_hypervolume():
    assert non_dominated([]) == []
    assert hypervolume([], (1, 1)) == 0


GRID = 4


@given(
    st.integers(1, 4).flatmap(
        lambda objectives: st.lists(
            st.tuples(*[st.integers(-1, GRID)] * objectives), min_size=1, max_size=12
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_hypervolume_of_any_points_equals_the_dominated_cells(points):
    """A small grid makes ties, duplicates and points beyond the reference common."""
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
@settings(max_examples=100, deadline=None)
def test_non_dominated_of_any_points_match_brute_force_in_order(points):
    front = non_dominated(points)
    assert [tuple(points[i]) for i in front] == sorted(brute_force_front(points))
    assert all(points.index(points[i]) == i for i in front)
