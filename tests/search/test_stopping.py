import numpy as np
import pytest

from nas.errors import RequestError
from nas.search import hypervolume, run_search, study
from nas.search.budget import MIN_TRIALS_PER_SPACE, REASON
from nas.search.guided import GuidedOptimizer
from nas.search.posterior import REFERENCE_VALUE
from nas.search.trial import Trial
from tests.search.problems import additive, make_objective
from tests.search.test_study import SPACES, macs, summary

SMALL_SPACES = SPACES[:2]
OBJECTIVES = {"additive": additive, "macs": macs}


def points(architectures):
    return np.array([[additive(each), macs(each)] for each in architectures])


@pytest.fixture(scope="module")
def ended():
    """Return a search that its model ended."""
    return run_search(SMALL_SPACES, OBJECTIVES, seed=1)


def test_search_without_limits_ends_when_the_front_is_complete(ended):
    assert ended.stop_reason == REASON
    assert not ended.interrupted
    every = points([each for space in SMALL_SPACES for each in space.enumerate()])
    best, worst = every.min(axis=0), every.max(axis=0)

    def volume(values):
        return hypervolume((values - best) / (worst - best), [1.0, 1.0])

    scored = points([trial.architecture for trial in ended.trials])
    assert volume(scored) >= 0.995 * volume(every)
    assert MIN_TRIALS_PER_SPACE * 2 <= len(scored) < 0.75 * len(every)


def test_end_waits_for_a_number_of_trials_of_each_space(ended, monkeypatch):
    monkeypatch.setattr(study, "MAX_EXPECTED_GAIN", 10.0)
    trials = run_search(SMALL_SPACES, OBJECTIVES, seed=1).trials
    assert len(trials) == 2 * MIN_TRIALS_PER_SPACE
    monkeypatch.setattr(study, "MIN_TRIALS_PER_SPACE", 1)
    assert 10 < len(run_search(SMALL_SPACES, OBJECTIVES, seed=1).trials) < len(trials)


@pytest.mark.slow
def test_given_trials_are_completed_unless_the_model_is_asked_too(ended):
    count = len(ended.trials)
    longer = run_search(SMALL_SPACES, OBJECTIVES, seed=1, trials=count + 9)
    assert (len(longer.trials), longer.stop_reason) == (count + 9, "all trials done")
    assert summary(longer)[:count] == summary(ended)
    first = run_search(SMALL_SPACES, OBJECTIVES, seed=1, trials=count + 9, stall="auto")
    assert (summary(first), first.stop_reason) == (summary(ended), REASON)
    shorter = run_search(SMALL_SPACES, OBJECTIVES, seed=1, trials=30, stall="auto")
    assert (len(shorter.trials), shorter.stop_reason) == (30, "all trials done")


@pytest.mark.slow
def test_resumed_search_ends_at_the_same_trial(ended, tmp_path):
    journal = tmp_path / "study.journal"
    count = len(ended.trials)
    for trials in (15, count // 2, count - 1):
        run_search(SMALL_SPACES, OBJECTIVES, seed=1, storage=journal, trials=trials)
    for _ in range(2):
        resumed = run_search(SMALL_SPACES, OBJECTIVES, seed=1, storage=journal)
        assert summary(resumed) == summary(ended)
        assert resumed.stop_reason == REASON


def test_all_processes_of_a_search_end_with_the_first_one(ended, tmp_path, monkeypatch):
    shared = {"seed": 1, "storage": tmp_path / "study.journal", "shared": True}
    first = run_search(SMALL_SPACES, OBJECTIVES, **shared)
    assert (summary(first), first.stop_reason) == (summary(ended), REASON)
    # The model of another process never expects so little.
    monkeypatch.setattr(study, "MAX_EXPECTED_GAIN", -1.0)
    for is_shared in (True, False):
        other = run_search(SMALL_SPACES, OBJECTIVES, **{**shared, "shared": is_shared})
        assert (len(other.trials), other.stop_reason) == (len(ended.trials), REASON)
    more = run_search(SMALL_SPACES, OBJECTIVES, **shared, trials=len(ended.trials) + 2)
    assert len(more.trials) == len(ended.trials) + 2


def test_gain_of_known_values_is_the_hypervolume_that_they_add():
    objectives = [make_objective(*each, cheap=True) for each in OBJECTIVES.items()]
    optimizer = GuidedOptimizer(SMALL_SPACES, objectives, seed=0)
    rng = np.random.default_rng(0)
    known = [space.sample(rng) for space in SMALL_SPACES for _ in range(6)]
    known = list(dict.fromkeys(known))[:10]
    for each, values in zip(known, points(known), strict=True):
        values = dict(zip(OBJECTIVES, map(float, values), strict=True))
        optimizer.learn(Trial(each.digest, each, {}, "complete", values))
    gain = optimizer.expected_gain(1)
    # A plan of two, after ten trials.
    planned = [optimizer.propose(n).architecture for n in (0, 1)]
    best, worst = points(known).min(axis=0), points(known).max(axis=0)

    def volume(architectures):
        return hypervolume((points(architectures) - best) / (worst - best), [REFERENCE_VALUE] * 2)

    assert gain == pytest.approx(volume([*known, *planned]) / volume(known) - 1)
    assert gain > 0


def test_sampler_without_a_model_needs_a_limit():
    with pytest.raises(RequestError, match="random has no model"):
        run_search(SMALL_SPACES, OBJECTIVES, sampler="random", stall="auto")
    with pytest.raises(RequestError, match="never end"):
        run_search(SMALL_SPACES, OBJECTIVES, sampler="random")
    result = run_search(SMALL_SPACES, OBJECTIVES, sampler="random", stall=5)
    assert result.stop_reason == "5 trials in a row have not improved the front"
