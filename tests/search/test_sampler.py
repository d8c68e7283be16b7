import doctest
import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from nas.errors import SearchError
from nas.search import GuidedSampler, run_search, suggest
from nas.search import sampler as sampler_module
from nas.space import SearchSpace, Stage, load_space
from tests.search.problems import additive
from tests.search.test_study import SPACES, macs

MOBILENET, SHUFFLENET, SQUEEZENET = SPACES


@pytest.fixture(autouse=True)
def _quiet_optuna():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def additive_and_macs(architecture):
    return additive(architecture), macs(architecture)


def optimize(sampler, spaces, score=additive_and_macs, *, trials, study=None, **settings):
    """Optimize a study, a new one by default; return it and the architectures that it tried."""
    tried = []

    def objective(trial):
        tried.append(suggest(trial, spaces))
        return score(tried[-1])

    study = study or optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=trials, **settings)
    return study, tried


@pytest.mark.slow
def test_failed_and_pruned_trials_count_as_in_a_search():
    def unreliable(architecture):
        number = int(macs(architecture)) // 64 % 5
        if number == 0:
            raise ValueError("evaluation failed")
        return float("nan") if number == 1 else additive(architecture)

    def pruned(architecture):
        value = unreliable(architecture)
        if math.isnan(value):
            raise optuna.TrialPruned
        return value

    expected = run_search(SPACES, {"additive": unreliable}, trials=40).trials
    assert {trial.state for trial in expected} == {"complete", "infeasible", "failed"}
    study = optuna.create_study(sampler=GuidedSampler(SPACES))
    _, tried = optimize(
        None, SPACES, pruned, trials=len(expected), study=study, catch=(ValueError,)
    )
    assert tried == [trial.architecture for trial in expected]
    states = {trial.state for trial in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED}


def space_with(widths, name="mine"):
    """Return a space whose stem has one of several widths."""
    stages = (
        Stage("stem", "conv", widths, per_stage={"kernel": 3}),
        Stage("body", "fire", (16, 32), (1, 2), per_block={"squeeze": 0.5, "share3x3": 0.5}),
        Stage("head", "conv_classifier"),
    )
    return SearchSpace(name, stages).adapt(image_size=8, channels=1, classes=10)


@pytest.mark.parametrize("make_sampler", [GuidedSampler, lambda _: RandomSampler(0)])
@pytest.mark.parametrize(
    ("earlier", "later", "difference"),
    [
        (
            space_with((4, 8)),
            space_with((4, 8, 12)),
            "the options of mine.stem.width are 4, 8, 12, and in its trial 0 they are 4, 8.",
        ),
        (
            [space_with((4, 8)), space_with((4, 8), "other")],
            [space_with((4, 8)), space_with((4, 8), "third")],
            "the options of space are 'mine', 'third', and in its trial 0 they are 'mine', 'other'",
        ),
    ],
)
def test_study_of_another_space_is_refused_with_the_difference(
    earlier, later, difference, make_sampler
):
    def sizes(architecture):
        return architecture.params, macs(architecture)

    study, _ = optimize(make_sampler(earlier), earlier, sizes, trials=3)
    study.sampler = make_sampler(later)
    with pytest.raises(SearchError, match=re.escape(difference)):
        optimize(None, later, sizes, trials=1, study=study)
    # The study goes on with its own space.
    study.sampler = make_sampler(earlier)
    optimize(None, earlier, sizes, trials=2, study=study)
    states = [trial.state for trial in study.trials]
    assert states == [*[TrialState.COMPLETE] * 3, TrialState.FAIL, *[TrialState.COMPLETE] * 2]


def test_repeated_trials_are_one_observation():
    study, _ = optimize(GuidedSampler(MOBILENET), MOBILENET, trials=14)
    again = optuna.create_study(directions=study.directions)
    for trial in study.trials:
        again.add_trial(trial)
        # Repeat the trial with another value, and with a failure.
        again.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, values=[-99.0, 0.0]
            )
        )
        again.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, state=TrialState.FAIL
            )
        )
    study.sampler, again.sampler = GuidedSampler(MOBILENET), GuidedSampler(MOBILENET)
    for _ in range(5):
        assert suggest(study.ask(), MOBILENET) == suggest(again.ask(), MOBILENET)


def test_trial_that_failed_at_first_counts_once_it_is_completed():
    study, _ = optimize(GuidedSampler(MOBILENET), MOBILENET, trials=14)
    again = optuna.create_study(directions=study.directions, sampler=GuidedSampler(MOBILENET))
    for trial in study.trials[:5]:
        again.add_trial(trial)
    for trial in study.trials[5:]:
        again.enqueue_trial(trial.params)
        failing = again.ask()
        suggest(failing, MOBILENET)
        again.tell(failing, state=TrialState.FAIL)
        again.add_trial(trial)
    completed = [t for t in again.trials if t.state == TrialState.COMPLETE]
    assert [t.params for t in completed] == [t.params for t in study.trials]
    assert suggest(again.ask(), MOBILENET) not in {
        suggest(optuna.trial.FixedTrial(t.params), MOBILENET) for t in completed
    }


@pytest.mark.parametrize("finished", [2, 12])
def test_concurrent_trials_try_different_architectures(finished):
    study, tried = optimize(GuidedSampler(SPACES), SPACES, trials=finished)
    running = [study.ask() for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        suggested = list(threads.map(lambda trial: suggest(trial, SPACES), running))
    assert len({*tried, *suggested}) == finished + 8
    # A new sampler, as in another process, sees the running trials in the storage.
    study.sampler = GuidedSampler(SPACES)
    assert suggest(study.ask(), SPACES) not in {*tried, *suggested}


def test_one_sampler_serves_several_studies():
    sampler = GuidedSampler(SPACES, seed=2)
    _, expected = optimize(GuidedSampler(SPACES, seed=2), SPACES, trials=15)
    first, second = (
        optuna.create_study(directions=["minimize", "minimize"], sampler=sampler) for _ in range(2)
    )
    tried_by_study = [[], []]
    for _ in range(5):
        for study, tried in zip((first, second), tried_by_study, strict=True):
            tried += optimize(None, SPACES, trials=3, study=study)[1]
    assert tried_by_study == [expected, expected]


def test_copy_continues_as_the_sampler_would():
    sampler = GuidedSampler(SPACES, seed=4)
    study, _ = optimize(sampler, SPACES, trials=14)
    again = optuna.create_study(
        directions=study.directions, sampler=pickle.loads(pickle.dumps(sampler))
    )
    again.add_trials(study.trials)
    _, expected = optimize(None, SPACES, trials=6, study=study)
    assert optimize(None, SPACES, trials=6, study=again)[1] == expected


def test_trials_with_infinite_values_are_not_repeated():
    study = optuna.create_study(sampler=GuidedSampler(MOBILENET))

    def infinite(architecture):
        is_narrow = dict(architecture.choices)["stem.width"] == 4
        return math.inf if is_narrow else additive(architecture)

    _, tried = optimize(None, MOBILENET, infinite, trials=40, study=study)
    assert len(set(tried)) == 40


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_fixed_parameter_keeps_its_value():
    name = "mobilenet_tiny.stem.width"
    fixed = optuna.samplers.PartialFixedSampler({name: 8}, GuidedSampler(MOBILENET))
    _, tried = optimize(fixed, MOBILENET, trials=20)
    assert {dict(each.choices)["stem.width"] for each in tried} == {8}
    assert len(set(tried)) > 10


def test_trials_without_an_architecture_are_ignored():
    study = optuna.create_study(sampler=GuidedSampler(SPACES))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    study.enqueue_trial({"space": "mobilenet_tiny"})
    _, tried = optimize(None, SPACES, additive, trials=12, study=study)
    assert len(set(tried)) == 12


@pytest.mark.parametrize(
    "space",
    [*SPACES, load_space("mobilenet_v3_small", image_size=32)],
    ids=lambda space: space.name,
)
def test_suggest_asks_only_for_choices_that_matter(space):
    rng = np.random.default_rng(0)
    for _ in range(20):
        expected = space.sample(rng, uniform_over="choices")
        parameters = {f"{space.name}.{key}": value for key, value in expected.choices.items()}
        trial = optuna.trial.FixedTrial(parameters)
        assert suggest(trial, space) == expected
        assert trial.params == parameters
        trial = optuna.trial.FixedTrial({"space": space.name, **parameters})
        others = [other for other in SPACES if other.name != space.name]
        assert suggest(trial, [*others, space]) == expected
        assert trial.params == {"space": space.name, **parameters}


def test_examples_of_the_docstrings_run():
    result = doctest.testmod(sampler_module)
    assert result.attempted > 10
    assert result.failed == 0


def macs_limit():
    rng = np.random.default_rng(0)
    return float(np.quantile([MOBILENET.sample(rng).macs for _ in range(500)], 0.25))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["constraint", "prune"])
def test_constraints_and_pruned_trials_are_learned(how):
    """The best networks of `additive` within a limit on the MACs that most networks exceed."""
    limit = macs_limit()

    def objective(trial):
        architecture = suggest(trial, MOBILENET)
        if how == "constraint":
            trial.set_constraint("macs", architecture.macs - limit)
        elif architecture.macs > limit:
            raise optuna.TrialPruned
        return -architecture.params

    def run(sampler):
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=50)
        tried = [suggest(optuna.trial.FixedTrial(t.params), MOBILENET) for t in study.trials]
        feasible = [each for each in tried if each.macs <= limit]
        return len(feasible), max(each.params for each in feasible)

    guided = run(GuidedSampler(MOBILENET, seed=0))
    drawn = run(optuna.samplers.RandomSampler(seed=0))
    assert guided[0] > 1.2 * drawn[0]
    assert guided[1] > drawn[1]


def test_study_with_constraints_continues_as_an_undisturbed_one():
    """The second constraint comes late, is not set in every trial, and can be infinite."""
    limit = macs_limit()

    def objective(trial):
        architecture = suggest(trial, MOBILENET)
        trial.set_constraint("macs", architecture.macs / limit - 1)
        if trial.number > 12 and trial.number % 2:
            late = math.inf if trial.number == 15 else architecture.params / 1000 - 1
            trial.set_constraint("params", late)
        return additive(architecture)

    def run(stops):
        study = optuna.create_study()
        for count in np.diff([0, *stops]):
            study.sampler = GuidedSampler(MOBILENET, seed=3)
            study.optimize(objective, n_trials=count)
        return [trial.params for trial in study.trials]

    assert run([26]) == run([5, 13, 14, 15, 21, 26])
