"""Whether limits can be met, against all architectures of a space."""

import numpy as np
import pytest

from nas.errors import InfeasibleError
from nas.search import Infeasible, Objective, require_feasible, search
from nas.search.pareto import non_dominated
from nas.space import load_space

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)


@pytest.fixture(scope="module")
def everyone():
    """MACs and parameters of all architectures."""
    return {
        each: (float(graph.macs), float(graph.params))
        for each in SPACE.enumerate()
        for graph in [each.graph]
    }


def limited(everyone, most_macs, least_parameters):
    return [
        Objective("macs", lambda b: [everyone[a][0] for a in b], cheap=True, limit=most_macs),
        Objective(
            "params", lambda b: [everyone[a][1] for a in b], "maximize", True, least_parameters
        ),
    ]


@pytest.fixture(scope="module")
def front(everyone):
    """Most MACs and least parameters that an architecture can just meet."""
    points = np.array([(macs, -params) for macs, params in everyone.values()])
    return sorted((macs, -params) for macs, params in points[non_dominated(points)])[::5]


def meeting(everyone, most_macs, least_parameters):
    return {a for a, (m, p) in everyone.items() if m <= most_macs and p >= least_parameters}


def test_what_hardly_any_architecture_meets_is_possible(everyone, front):
    rare = [(1.02 * macs, 0.98 * params) for macs, params in front]
    shares = [len(meeting(everyone, *each)) / len(everyone) for each in rare]
    assert sum(share < 0.001 for share in shares) >= 5
    for each in rare:
        require_feasible([SPACE], limited(everyone, *each), seed=0)


def test_what_none_meets_together_is_not(everyone, front):
    for macs, params in front[1::20]:
        assert not meeting(everyone, macs - 1, params)
        with pytest.raises(InfeasibleError, match="all limits together: .* macs .* params "):
            require_feasible([SPACE], limited(everyone, macs - 1, params), seed=0)


def test_a_limit_that_alone_is_impossible_is_the_one_that_is_named(everyone):
    most = max(params for _, params in everyone.values())
    with pytest.raises(InfeasibleError, match=f"limit params {most + 1:.6g}: .* has {most:.6g}"):
        require_feasible([SPACE], limited(everyone, 1e9, most + 1), seed=0)


def test_values_that_are_missing_everywhere_are_told_with_the_reason():
    latency = Objective("us", lambda b: [Infeasible("no kernel") for _ in b], cheap=True, limit=9.0)
    with pytest.raises(InfeasibleError, match="No architecture has a us: no kernel"):
        require_feasible([SPACE], [latency], seed=0)


def test_nothing_is_asked_without_a_limit(everyone):
    def never(batch):
        raise AssertionError

    require_feasible([SPACE], [Objective("macs", never, cheap=True)], seed=0)


@pytest.mark.parametrize("sampler", ["guided", "random", "tpe"])
def test_limits_that_leave_hardly_anything_are_searched_all_the_same(everyone, front, sampler):
    limits = next(
        (1.02 * macs, 0.98 * params)
        for macs, params in front
        if 5 <= len(meeting(everyone, 1.02 * macs, 0.98 * params)) < 0.002 * len(everyone)
    )
    error = Objective("error", lambda batch: [1 / everyone[a][1] for a in batch])
    found = search([SPACE], [error, *limited(everyone, *limits)], trials=5, sampler=sampler, seed=1)
    done = {trial.architecture for trial in found.trials if trial.state == "complete"}
    assert len(done) == 5
    assert done <= meeting(everyone, *limits)
