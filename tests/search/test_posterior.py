import numpy as np
import pytest

from nas.search import Objective, run_search
from nas.search.encoding import ArchitectureEncoder
from nas.search.pareto import non_dominated
from nas.search.posterior import (
    Candidates,
    CheapObjectives,
    Observations,
    PosteriorModel,
)
from tests.search.problems import additive
from tests.search.test_study import SPACES, macs


def make_objective(name, function, **settings):
    return Objective(name, lambda batch: [function(each) for each in batch], **settings)


def fail_for_xception(architecture):
    if "xception" in dict(architecture.choices).values():
        raise ValueError("evaluation failed")
    return additive(architecture)


OBJECTIVES = [
    make_objective("macs", macs, cheap=True, limit=250_000.0),
    make_objective("gain", lambda each: -fail_for_xception(each), direction="maximize"),
]


@pytest.fixture(scope="module")
def observations():
    trials = run_search(SPACES, OBJECTIVES, trials=40, sampler="random", seed=2).trials
    completed = [trial for trial in trials if trial.state == "complete"]
    assert {trial.state for trial in trials} == {"complete", "infeasible", "failed"}
    return Observations(OBJECTIVES, completed, trials)


@pytest.fixture(scope="module")
def model(observations):
    encoder = ArchitectureEncoder(SPACES)
    return PosteriorModel(observations, encoder, CheapObjectives(OBJECTIVES), {})


@pytest.fixture(scope="module")
def architectures(observations):
    """Feasible architectures that were not tried."""
    rng = np.random.default_rng(3)
    sample = dict.fromkeys(
        space.sample(rng, uniform_over="choices") for space in SPACES for _ in range(60)
    )
    tried = {trial.architecture for trial in observations.trials}
    return [each for each in sample if each not in tried and macs(each) <= 250_000]


def test_observed_values_are_minimised(observations):
    values = observations.values()
    assert values.shape == (40, 2)
    for row, trial in zip(values, observations.completed, strict=True):
        assert row.tolist() == [trial.values["macs"], -trial.values["gain"]]
    best, value_range = observations.scale()
    assert (best == values.min(axis=0)).all()
    assert best + value_range == pytest.approx(values.max(axis=0))


def test_evaluation_beyond_a_limit_is_a_success(observations):
    architectures, labels = observations.successes()
    assert architectures == [trial.architecture for trial in observations.trials]
    failed = [trial.state == "failed" for trial in observations.trials]
    assert labels.tolist() == [0.0 if each else 1.0 for each in failed]
    assert observations.head(40, 0).successes() is None


def test_front_is_that_of_the_normalised_values(observations, model):
    values = observations.values()
    best, value_range = observations.scale()
    front = (values[non_dominated(values)] - best) / value_range
    assert model.front == pytest.approx(front)


def test_architectures_that_probably_fail_rank_below_the_others(model, architectures):
    values = Candidates(model, architectures).acquisition_values()
    fails = np.array(["xception" in dict(each.choices).values() for each in architectures])
    assert values[~fails].mean() > values[fails].mean()
    assert values.max() >= 0


def test_fantasies_lower_the_acquisition_values_of_all_candidates(model, architectures):
    candidates = Candidates(model, architectures)
    before = candidates.acquisition_values()
    best = int(np.argmax(before))
    candidates.fantasize(best)
    after = candidates.acquisition_values()
    # The candidate itself promises much less than before, as its value is known up to the noise.
    assert after[best] < 0.5 * before[best]
    assert after.sum() < before.sum()
    # Other candidates of the same model do not change.
    assert Candidates(model, architectures).acquisition_values() == pytest.approx(before)
