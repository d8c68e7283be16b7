import numpy as np
import pytest

from nas.errors import RequestError
from nas.search import SAMPLERS, Objective, search
from nas.search.proposals import proposer_for
from nas.space import SearchSpace, Stage
from tests.search.test_study import OBJECTIVES, SPACES, macs, summary
from tests.search.test_surrogate import additive

MOBILE = SPACES[0]
_ADDED = {space.name: additive(space) for space in SPACES}

# Optuna's Gaussian process needs half a second for a proposal, so it makes a few only.
COUNTS = dict.fromkeys(SAMPLERS, (40, 20)) | {"gp": (14, 12)}
"""Trials and those of them before the model proposes, by sampler."""


def added(architecture):
    """Something that is learned from choices, and has nothing to do with sizes."""
    return _ADDED[architecture.space.name](architecture)


def searched(sampler, objectives=OBJECTIVES, **settings):
    trials, startup = COUNTS[sampler]
    settings = {"trials": trials, "startup": startup, "seed": 7, **settings}
    return search(SPACES, objectives, sampler=sampler, **settings)


@pytest.fixture(scope="module")
def undisturbed():
    return {name: searched(name) for name in SAMPLERS}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_searches_several_spaces(undisturbed, sampler):
    found = undisturbed[sampler].trials
    assert [trial.state for trial in found] == ["complete"] * COUNTS[sampler][0]
    assert len({trial.architecture for trial in found}) == len(found)
    assert {trial.architecture.space.name for trial in found} == {space.name for space in SPACES}
    for trial in found:
        space = trial.architecture.space
        chosen = {
            key: trial.parameters[f"{space.name}.{key}"] for key, _ in trial.architecture.choices
        }
        assert trial.parameters["space"] == space.name
        # Parameters may be another way to write the network.
        assert space.architecture({**trial_choices(trial, space), **chosen}) == trial.architecture


def trial_choices(trial, space):
    start = f"{space.name}."
    return {k.removeprefix(start): v for k, v in trial.parameters.items() if k.startswith(start)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_repeats_and_another_does_not(undisturbed, sampler):
    trials = COUNTS[sampler][1] + 1
    first = summary(undisturbed[sampler])[:trials]
    assert summary(searched(sampler, trials=trials)) == first
    assert summary(searched(sampler, trials=trials, seed=8)) != first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_continued_search_equals_the_undisturbed_one(undisturbed, sampler, tmp_path):
    trials, startup = COUNTS[sampler]
    for count in (3, startup - 1, startup + 1, trials):
        result = searched(sampler, trials=count, storage=tmp_path / "study.jsonl")
    assert summary(result) == summary(undisturbed[sampler])


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("auto", "gp")])
def test_one_that_had_failures_and_limits_is_continued_as_well(sampler, tmp_path):
    def troubled(architecture):
        number = int(macs(architecture)) // 64 % 5
        if number == 0:
            raise ValueError("no luck")
        return float("nan") if number == 1 else added(architecture)

    objectives = [
        Objective("macs", lambda b: [macs(a) for a in b], cheap=True, limit=300_000.0),
        Objective("added", lambda b: [troubled(a) for a in b]),
    ]
    whole = searched(sampler, objectives)
    assert {trial.state for trial in whole.trials} == {"complete", "infeasible", "failed"}
    for count in (2, 19, 22, 31, 40):
        result = searched(sampler, objectives, trials=count, storage=tmp_path / "study.jsonl")
    assert summary(result) == summary(whole)


def test_automatic_is_the_one_of_our_own(undisturbed):
    assert summary(undisturbed["auto"]) == summary(undisturbed["guided"])


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(RequestError, match="no sampler 'best'.*guided.*tpe") as caught:
        search(SPACES, OBJECTIVES, trials=3, sampler="best")
    assert all(name in str(caught.value) for name in SAMPLERS)
    with pytest.raises(RequestError, match="no sampler"):
        proposer_for("", SPACES, [], seed=0, startup=None)


# Evolution begins when its first population of fifty is full.
LEARNED = {"guided": 60, "tpe": 60, "nsga2": 130, "nsga3": 130}


@pytest.mark.parametrize("sampler", LEARNED)
def test_later_proposals_are_better_than_random_ones(sampler):
    def late(name, seed):
        asked = {"added": added}
        found = search(SPACES, asked, trials=LEARNED[name], seed=seed, sampler=name, startup=5)
        return np.mean([trial.values["added"] for trial in found.trials[-30:]])

    found = np.mean([late(sampler, seed) for seed in range(2)])
    rng = np.random.default_rng(0)
    random = [
        added(space.sample(rng, uniform_over="choices")) for space in SPACES for _ in range(300)
    ]
    assert found < np.mean(random) - 0.5 * np.std(random)


def test_later_proposals_of_optunas_gaussian_process_are_better_than_random_ones():
    found = search(MOBILE, {"added": added}, trials=18, sampler="gp", startup=8).trials
    rng = np.random.default_rng(0)
    random = [added(MOBILE.sample(rng, uniform_over="choices")) for _ in range(300)]
    late = np.mean([trial.values["added"] for trial in found[8:]])
    assert late < np.mean(random) - 0.5 * np.std(random)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
@pytest.mark.parametrize("widths", [(8,), (8, 16), (4, 8, 16)])
def test_a_space_of_a_few_networks_is_searched_to_its_end(sampler, widths):
    stem = Stage("stem", "conv", widths, per_stage={"kernel": 3})
    stages = (stem, Stage("head", "linear_classifier"))
    space = SearchSpace("few", stages, image_size=8, channels=1, classes=3)
    for startup in (None, 1):
        result = search(
            space, {"a": lambda each: len(str(each))}, trials=9, sampler=sampler, startup=startup
        )
        assert len(result.trials) == space.size == len(widths)
        assert "no new feasible architecture" in result.stop_reason
