import numpy as np
import pytest

from nas.errors import InfeasibleError
from nas.search import Infeasible, Objective, require_feasible, run_search
from nas.search.feasibility import idle_limits
from nas.search.pareto import non_dominated
from nas.space import load_space

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)


@pytest.fixture(scope="module")
def sizes():
    """The MACs and parameters of every architecture of the space."""
    return {each: (float(each.macs), float(each.params)) for each in SPACE.enumerate()}


@pytest.fixture(scope="module")
def tightest_limits(sizes):
    """Pairs of most MACs and fewest parameters that an architecture only just meets."""
    points = np.array([(macs, -params) for macs, params in sizes.values()])
    return sorted((macs, -params) for macs, params in points[non_dominated(points)])[::10]


def limited_objectives(sizes, max_macs, min_params):
    return [
        Objective("macs", lambda b: [sizes[a][0] for a in b], cheap=True, limit=max_macs),
        Objective("params", lambda b: [sizes[a][1] for a in b], "maximize", True, min_params),
    ]


def feasible_architectures(sizes, max_macs, min_params):
    return {a for a, (m, p) in sizes.items() if m <= max_macs and p >= min_params}


def test_require_feasible_accepts_limits_that_few_architectures_meet(sizes, tightest_limits):
    limits = [(1.02 * macs, 0.98 * params) for macs, params in tightest_limits]
    shares = [len(feasible_architectures(sizes, *each)) / len(sizes) for each in limits]
    assert sum(share < 0.001 for share in shares) >= 2
    for each in limits:
        require_feasible([SPACE], limited_objectives(sizes, *each), seed=0)


def test_require_feasible_refuses_limits_that_nothing_meets_together(sizes, tightest_limits):
    for macs, params in tightest_limits[1::20]:
        assert not feasible_architectures(sizes, macs - 1, params)
        with pytest.raises(InfeasibleError, match="all limits together: .* macs .* params "):
            require_feasible([SPACE], limited_objectives(sizes, macs - 1, params), seed=0)


def test_a_limit_is_idle_if_it_excludes_no_architecture(sizes):
    most = max(macs for macs, _ in sizes.values())
    fewest = min(params for _, params in sizes.values())
    idle = idle_limits([SPACE], limited_objectives(sizes, most, fewest), seed=0)
    assert [each.split(" excludes nothing")[0] for each in idle] == [
        f"the limit macs {most:,.0f}",
        f"the limit params {fewest:,.0f}" if fewest >= 1000 else f"the limit params {fewest:.4g}",
    ]
    assert f"has is {most:,.0f}" in idle[0], "the largest architecture is among them"
    assert idle_limits([SPACE], limited_objectives(sizes, most - 1, fewest + 1), seed=0) == []
    nothing = Objective("us", lambda b: [Infeasible("no kernel") for _ in b], cheap=True, limit=9)
    assert idle_limits([SPACE], [nothing], seed=0) == []


def test_require_feasible_names_the_limit_that_alone_is_impossible(sizes):
    most = max(params for _, params in sizes.values())
    with pytest.raises(InfeasibleError, match=f"limit params {most + 1:,.0f}: .* has {most:,.0f}"):
        require_feasible([SPACE], limited_objectives(sizes, 1e9, most + 1), seed=0)


def test_require_feasible_gives_the_reason_when_no_architecture_has_a_value():
    latency = Objective("us", lambda b: [Infeasible("no kernel") for _ in b], cheap=True, limit=9.0)
    with pytest.raises(InfeasibleError, match="No architecture has a us: no kernel"):
        require_feasible([SPACE], [latency], seed=0)


def test_require_feasible_evaluates_nothing_without_a_limit():
    def fail(batch):
        raise AssertionError

    require_feasible([SPACE], [Objective("macs", fail, cheap=True)], seed=0)


@pytest.mark.parametrize("sampler", ["guided", "random", "tpe"])
def test_search_finds_the_few_feasible_architectures(sizes, tightest_limits, sampler):
    limits = next(
        (1.02 * macs, 0.98 * params)
        for macs, params in tightest_limits
        if 5 <= len(feasible_architectures(sizes, 1.02 * macs, 0.98 * params)) < 0.002 * len(sizes)
    )
    error = Objective("error", lambda batch: [1 / sizes[a][1] for a in batch])
    objectives = [error, *limited_objectives(sizes, *limits)]
    result = run_search([SPACE], objectives, trials=5, sampler=sampler, seed=1)
    completed = {trial.architecture for trial in result.trials if trial.state == "complete"}
    assert len(completed) == 5
    assert completed <= feasible_architectures(sizes, *limits)
