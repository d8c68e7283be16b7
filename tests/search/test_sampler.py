import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from nas.errors import RequestError
from nas.search import GuidedSampler, hypervolume, search, suggest
from nas.space import load_space
from tests.search.test_study import OBJECTIVES, SPACES, error, macs
from tests.search.test_surrogate import additive

MOBILE, SHUFFLE, SQUEEZE = SPACES
_ADDED = {space.name: additive(space) for space in SPACES}


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def added(architecture):
    """Something that is learned from choices, and has nothing to do with sizes."""
    return _ADDED[architecture.space.name](architecture)


def two(architecture):
    return added(architecture), macs(architecture)


def optimised(sampler, spaces, function=two, *, trials, study=None, **settings):
    """A study, and the architectures that were tried in it."""
    tried = []

    def objective(trial):
        tried.append(suggest(trial, spaces))
        return function(tried[-1])

    study = study or optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=trials, **settings)
    return study, tried


@pytest.mark.parametrize("spaces", [SPACES, SQUEEZE], ids=["three", "one"])
def test_a_study_tries_what_a_search_does(spaces):
    expected = search(spaces, {"added": added, "macs": macs}, trials=40, seed=3)
    _, tried = optimised(GuidedSampler(spaces, seed=3), spaces, trials=40)
    assert tried == [trial.architecture for trial in expected.trials]


def test_a_study_that_maximises_tries_what_a_search_does():
    expected = search(SPACES, {"added": added, "macs": macs}, trials=30)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=GuidedSampler(SPACES, names=["gain", "macs"])
    )
    _, tried = optimised(
        None, SPACES, lambda each: (-added(each), macs(each)), trials=30, study=study
    )
    assert tried == [trial.architecture for trial in expected.trials]


def test_failed_and_pruned_trials_are_those_of_a_search_without_values():
    def troubled(architecture):
        number = int(macs(architecture)) // 64 % 5
        if number == 0:
            raise ValueError("no luck")
        return float("nan") if number == 1 else added(architecture)

    def pruned(architecture):
        found = troubled(architecture)
        if found != found:
            raise optuna.TrialPruned
        return found

    expected = search(SPACES, {"added": troubled}, trials=40).trials
    assert {trial.state for trial in expected} == {"complete", "infeasible", "failed"}
    study = optuna.create_study(sampler=GuidedSampler(SPACES))
    _, tried = optimised(
        None, SPACES, pruned, trials=len(expected), study=study, catch=(ValueError,)
    )
    assert tried == [trial.architecture for trial in expected]
    states = {trial.state for trial in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED}


def test_the_front_is_clearly_better_than_a_random_one():
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng, uniform_over="choices") for space in SPACES for _ in range(200)]
    points = np.array([two(each) for each in drawn])
    best, worst = points.min(axis=0), points.max(axis=0)

    def volume(sampler):
        _, tried = optimised(sampler, SPACES, trials=50)
        found = np.array([two(each) for each in tried])
        return hypervolume((found - best) / (worst - best), (1.1, 1.1))

    guided = [volume(GuidedSampler(SPACES, seed=seed)) for seed in range(3)]
    random = [volume(optuna.samplers.RandomSampler(seed)) for seed in range(3)]
    assert min(guided) > max(random) + 0.05


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_study_in_a_storage_goes_on_where_it_stopped(kind, tmp_path):
    def storage():
        if kind == "sqlite":
            return optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
        return optuna.storages.JournalStorage(backend)

    _, whole = optimised(GuidedSampler(SPACES), SPACES, trials=24)
    tried = []
    for trials in (3, 9, 12):
        study = optuna.create_study(
            storage=storage(),
            study_name="s",
            directions=["minimize", "minimize"],
            load_if_exists=True,
            sampler=GuidedSampler(SPACES),
        )
        tried += optimised(None, SPACES, trials=trials, study=study)[1]
    assert tried == whole


def test_repeats_are_one_observation():
    study, _ = optimised(GuidedSampler(MOBILE), MOBILE, trials=14)
    again = optuna.create_study(directions=study.directions)
    for trial in study.trials:
        again.add_trial(trial)
        # The second time with another value, and with a failure.
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
    study.sampler, again.sampler = GuidedSampler(MOBILE), GuidedSampler(MOBILE)
    for _ in range(5):
        assert suggest(study.ask(), MOBILE) == suggest(again.ask(), MOBILE)


def test_what_failed_at_first_counts_when_it_is_completed():
    study, _ = optimised(GuidedSampler(MOBILE), MOBILE, trials=14)
    again = optuna.create_study(directions=study.directions, sampler=GuidedSampler(MOBILE))
    for trial in study.trials[:5]:
        again.add_trial(trial)
    for trial in study.trials[5:]:
        again.enqueue_trial(trial.params)
        failing = again.ask()
        suggest(failing, MOBILE)
        again.tell(failing, state=TrialState.FAIL)
        again.add_trial(trial)
    completed = [t for t in again.trials if t.state == TrialState.COMPLETE]
    assert [t.params for t in completed] == [t.params for t in study.trials]
    # Nothing that is known is tried again.
    assert suggest(again.ask(), MOBILE) not in {
        suggest(optuna.trial.FixedTrial(t.params), MOBILE) for t in completed
    }


def test_nothing_is_tried_twice_while_there_are_others():
    study, tried = optimised(GuidedSampler(SHUFFLE), SHUFFLE, trials=SHUFFLE.size + 5)
    most = round(0.9 * SHUFFLE.size)
    assert len(set(tried[:most])) == most
    # Then there is nothing new, and the study goes on all the same.
    assert len(study.trials) == SHUFFLE.size + 5


@pytest.mark.parametrize("asked", [2, 12])
def test_trials_at_the_same_time_try_different_architectures(asked):
    study, tried = optimised(GuidedSampler(SPACES), SPACES, trials=asked)
    running = [study.ask() for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda trial: suggest(trial, SPACES), running))
    assert len({*tried, *found}) == asked + 8
    # Another process sees them in the storage.
    study.sampler = GuidedSampler(SPACES)
    assert suggest(study.ask(), SPACES) not in {*tried, *found}


def test_several_threads_optimise():
    study, tried = optimised(GuidedSampler(SPACES), SPACES, trials=40, n_jobs=3)
    assert len(study.trials) == len(set(tried)) == 40


def test_one_sampler_serves_several_studies():
    sampler = GuidedSampler(SPACES, seed=2)
    _, whole = optimised(GuidedSampler(SPACES, seed=2), SPACES, trials=15)
    first, second = (
        optuna.create_study(directions=["minimize", "minimize"], sampler=sampler) for _ in range(2)
    )
    found = [[], []]
    for _ in range(5):
        for study, tried in zip((first, second), found, strict=True):
            tried += optimised(None, SPACES, trials=3, study=study)[1]
    assert found == [whole, whole]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_goes_on_as_the_sampler_would(copied):
    sampler = GuidedSampler(SPACES, seed=4, names=["a", "b"])
    study, _ = optimised(sampler, SPACES, trials=14)
    again = optuna.create_study(directions=study.directions, sampler=copied(sampler))
    again.add_trials(study.trials)
    _, expected = optimised(None, SPACES, trials=6, study=study)
    assert optimised(None, SPACES, trials=6, study=again)[1] == expected


def test_other_parameters_are_drawn_and_can_be_reseeded():
    def drawn(reseeded):
        sampler = GuidedSampler(MOBILE, seed=1)
        if reseeded:
            sampler.reseed_rng()
        study = optuna.create_study(sampler=sampler)

        def objective(trial):
            return added(suggest(trial, MOBILE)) + trial.suggest_float("rate", 0, 1)

        study.optimize(objective, n_trials=12)
        return [trial.params["rate"] for trial in study.trials]

    assert len(set(drawn(False))) == 12
    assert drawn(False) == drawn(False)
    assert drawn(True) != drawn(False)


def test_infinite_values_are_none():
    study = optuna.create_study(sampler=GuidedSampler(MOBILE))

    def infinite(architecture):
        return (
            float("inf") if dict(architecture.choices)["stem.width"] == 4 else added(architecture)
        )

    _, tried = optimised(None, MOBILE, infinite, trials=40, study=study)
    assert len(set(tried)) == 40


def test_it_works_with_hyperband():
    """Whose brackets are studies of their own to a sampler."""
    pruner = optuna.pruners.HyperbandPruner(max_resource=9)
    study = optuna.create_study(sampler=GuidedSampler(MOBILE), pruner=pruner)

    def reported(trial):
        value = added(suggest(trial, MOBILE))
        for step in range(9):
            trial.report(value + 1 / (1 + step), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(reported, n_trials=40)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({tuple(trial.params.items()) for trial in study.trials}) >= 15


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_a_fixed_parameter_is_kept():
    name = "mobilenet_tiny.stem.width"
    fixed = optuna.samplers.PartialFixedSampler({name: 8}, GuidedSampler(MOBILE))
    _, tried = optimised(fixed, MOBILE, trials=20)
    assert {dict(each.choices)["stem.width"] for each in tried} == {8}
    assert len(set(tried)) > 10


def test_trials_that_say_nothing_of_the_spaces_are_passed_over():
    study = optuna.create_study(sampler=GuidedSampler(SPACES))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    study.enqueue_trial({"space": "mobilenet_tiny"})
    _, tried = optimised(None, SPACES, added, trials=12, study=study)
    assert len(set(tried)) == 12


def test_another_number_of_names_than_directions_is_refused():
    study = optuna.create_study(sampler=GuidedSampler(SPACES, names=["a", "b"]))
    with pytest.raises(RequestError, match="1 directions, the sampler 2 names"):
        optimised(None, SPACES, added, trials=1, study=study)


@pytest.mark.parametrize(
    "space",
    [*SPACES, load_space("mobilenet_v3_small", image_size=32)],
    ids=lambda space: space.name,
)
def test_suggesting_asks_for_what_matters_and_nothing_else(space):
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = space.sample(rng, uniform_over="choices")
        given = {f"{space.name}.{key}": value for key, value in wanted.choices}
        trial = optuna.trial.FixedTrial(given)
        assert suggest(trial, space) == wanted
        assert trial.params == given
        several = optuna.trial.FixedTrial({"space": space.name, **given})
        others = [other for other in SPACES if other.name != space.name]
        assert suggest(several, [*others, space]) == wanted
        assert several.params == {"space": space.name, **given}


def test_any_sampler_of_optunas_can_answer():
    for sampler in (optuna.samplers.TPESampler(seed=0), optuna.samplers.NSGAIISampler(seed=0)):
        _, tried = optimised(
            sampler, SPACES, lambda each: (error(each), OBJECTIVES["macs"](each)), trials=30
        )
        assert {each.space.name for each in tried} == {space.name for space in SPACES}
