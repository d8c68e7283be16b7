from functools import cache

import numpy as np
import pytest

from nas.errors import RequestError
from nas.search import SAMPLERS, Objective, run_search
from nas.search.parameters import Parameters
from nas.search.proposals import proposer_for
from nas.space import SearchSpace, Stage
from tests.search.problems import additive
from tests.search.test_study import OBJECTIVES, SPACES, macs, summary

MOBILENET = SPACES[0]

TRIALS_AND_STARTUP = dict.fromkeys(SAMPLERS, (30, 14)) | {"gp": (13, 12)}
"""Trials, and how many of them come before the model proposes, by sampler.

Optuna's Gaussian process needs half a second for a proposal, so it makes only a few.
"""


def run_sampler(sampler, objectives=OBJECTIVES, **settings):
    trials, startup = TRIALS_AND_STARTUP[sampler]
    settings = {"trials": trials, "startup": startup, "seed": 7, **settings}
    return run_search(SPACES, objectives, sampler=sampler, **settings)


@cache
def uninterrupted(sampler):
    """Return the result of a search with a sampler; it is made once for all tests."""
    return run_sampler(sampler)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_searches_several_spaces(sampler):
    trials = uninterrupted(sampler).trials
    assert [trial.state for trial in trials] == ["complete"] * TRIALS_AND_STARTUP[sampler][0]
    assert len({trial.architecture for trial in trials}) == len(trials)
    assert {trial.architecture.space.name for trial in trials} == {space.name for space in SPACES}
    parameters = Parameters(SPACES)
    for trial in trials:
        space = trial.architecture.space
        # The parameters need not be the canonical form of the network.
        choices = parameters.choices(space.name, trial.parameters)
        assert space.architecture(choices) == trial.architecture
        assert trial.parameters["space"] == space.name


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(name, marks=pytest.mark.long if name == "gp" else ())
        for name in SAMPLERS
        if name != "auto"
    ],
)
def test_continued_search_with_failures_and_limits_equals_the_uninterrupted_one(sampler, tmp_path):
    trials, startup = TRIALS_AND_STARTUP[sampler]

    def unreliable(architecture):
        number = int(macs(architecture)) // 64 % 5
        if number == 0:
            raise ValueError("evaluation failed")
        return float("nan") if number == 1 else additive(architecture)

    objectives = [
        Objective("macs", lambda b: [macs(a) for a in b], cheap=True, limit=300_000.0),
        Objective("additive", lambda b: [unreliable(a) for a in b]),
    ]
    expected = run_sampler(sampler, objectives)
    assert {trial.state for trial in expected.trials} == {"complete", "infeasible", "failed"}
    for count in (startup - 1, (startup + trials) // 2, trials):
        result = run_sampler(sampler, objectives, trials=count, storage=tmp_path / "study.jsonl")
    assert summary(result) == summary(expected)
    other = run_sampler(sampler, objectives, trials=startup, seed=8)
    assert summary(other) != summary(expected)[: len(other.trials)]


def test_auto_is_the_guided_sampler():
    assert summary(uninterrupted("auto")) == summary(uninterrupted("guided"))


def test_unknown_sampler_is_refused_with_the_known_names():
    with pytest.raises(RequestError, match="no sampler 'best'.*guided.*tpe") as caught:
        run_search(SPACES, OBJECTIVES, trials=3, sampler="best")
    assert all(name in str(caught.value) for name in SAMPLERS)
    with pytest.raises(RequestError, match="no sampler"):
        proposer_for("", SPACES, [], seed=0, startup=None)


TRIALS = {"guided": 60, "tpe": 60, "nsga2": 130, "nsga3": 130}
"""Trials by sampler; evolutionary ones learn only when their first population of 50 is full."""


@pytest.mark.slow
@pytest.mark.parametrize("sampler", TRIALS)
def test_late_proposals_are_better_than_random_ones(sampler):
    functions = {"additive": additive}
    result = run_search(SPACES, functions, trials=TRIALS[sampler], sampler=sampler, startup=5)
    late = [trial.values["additive"] for trial in result.trials[-30:]]
    rng = np.random.default_rng(0)
    random = [
        additive(space.sample(rng, uniform_over="choices")) for space in SPACES for _ in range(300)
    ]
    assert np.mean(late) < np.mean(random) - 0.5 * np.std(random)


@pytest.mark.parametrize("sampler", ["guided", "tpe", "nsga2", "nsga3", "random"])
@pytest.mark.parametrize("widths", [(8,), (4, 8, 16)])
def test_space_of_a_few_networks_is_searched_completely(sampler, widths):
    stem = Stage("stem", "conv", widths, per_stage={"kernel": 3})
    stages = (stem, Stage("head", "linear_classifier"))
    space = SearchSpace("few", stages, image_size=8, channels=1, classes=3)
    for startup in (None, 1):
        result = run_search(
            space, {"a": lambda each: len(str(each))}, trials=9, sampler=sampler, startup=startup
        )
        assert len(result.trials) == space.size == len(widths)
        assert "no new feasible architecture" in result.stop_reason
