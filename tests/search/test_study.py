import json

import numpy as np
import pytest

from nas.errors import SearchError
from nas.search import Infeasible, Objective, run_search
from nas.search.objectives import Estimate, refuse_to_score
from nas.space import load_space

SPACES = [
    load_space(name, image_size=8, channels=1)
    for name in ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")
]


def macs(architecture):
    return float(architecture.macs)


def error(architecture):
    """Return a synthetic error to which some operators contribute more than their cost."""
    choices = dict(architecture.choices)
    penalty = sum(0.08 for key, value in choices.items() if value == "xception")
    penalty += sum(0.05 for key, value in choices.items() if key.endswith("kernel") and value == 5)
    offset = {"mobilenet_tiny": 0.0, "shufflenet_tiny": 0.02, "squeezenet_tiny": 0.05}
    return 1 / np.log(macs(architecture)) + penalty + offset[architecture.space.name]


OBJECTIVES = {"error": error, "macs": macs}


def summary(result):
    return [(trial.digest, trial.state, trial.values) for trial in result.trials]


def test_expensive_objectives_are_not_evaluated_for_infeasible_architectures():
    limit = float(np.median([macs(SPACES[0].sample(np.random.default_rng(i))) for i in range(99)]))
    evaluated = []

    def expensive(batch):
        evaluated.extend(batch)
        return [error(a) for a in batch]

    cost = Objective("macs", lambda batch: [macs(a) for a in batch], cheap=True, limit=limit)
    result = run_search(SPACES, [Objective("error", expensive), cost], trials=20)
    assert evaluated
    assert all(macs(a) <= limit for a in evaluated)
    infeasible = [trial for trial in result.trials if trial.state == "infeasible"]
    assert infeasible
    assert all("beyond the limit" in t.error and "error" not in t.values for t in infeasible)


def test_given_architectures_are_evaluated_before_all_others(tmp_path):
    first = [SPACES[1].largest, SPACES[0].smallest]

    def searched(trials):
        return run_search(
            SPACES, OBJECTIVES, trials=trials, storage=tmp_path / "study.journal", first=first
        )

    assert [trial.digest for trial in searched(5).trials[:2]] == [each.digest for each in first]
    digests = [trial.digest for trial in searched(8).trials]
    assert len(set(digests)) == len(digests) == 8


def test_recorded_value_is_stored_and_changes_no_proposal(tmp_path):
    journal = tmp_path / "study.journal"

    def recorded(architecture):
        number = float(architecture.params % 7)
        return Estimate(error(architecture), recorded={"number": number})

    objectives = {"macs": macs, "error": recorded}
    result = run_search(SPACES, objectives, trials=30, seed=1, storage=journal)
    plain = run_search(SPACES, {**objectives, "error": error}, trials=30, seed=1)
    assert summary(result) == summary(plain)
    assert [t.digest for t in result.front] == [t.digest for t in plain.front]
    expected = [{"number": float(t.architecture.params % 7)} for t in result.trials]
    assert [trial.recorded for trial in result.trials] == expected
    resumed = run_search(SPACES, objectives, trials=30, seed=1, storage=journal)
    assert resumed.trials == result.trials


def test_value_beyond_a_limit_is_recorded_as_others_are():
    def recorded(architecture):
        return Estimate(macs(architecture), recorded={"params": architecture.params})

    smallest = min(macs(space.smallest) for space in SPACES)
    limited = Objective.of_each("macs", recorded, limit=2 * smallest)
    result = run_search(SPACES, [limited], trials=5)
    beyond = [trial for trial in result.trials if trial.state == "infeasible"]
    assert beyond
    assert all(t.recorded == {"params": t.architecture.params} for t in beyond)
    assert all(t.values == {"macs": macs(t.architecture)} for t in beyond)


def test_reason_of_an_infeasible_architecture_is_in_its_trial():
    def score(batch):
        return [
            Infeasible("kernel missing") if a.space.name == "squeezenet_tiny" else macs(a)
            for a in batch
        ]

    result = run_search(SPACES, [Objective("us", score, cheap=True)], trials=20)
    ends = {(trial.architecture.space.name, trial.state, trial.error) for trial in result.trials}
    assert ("squeezenet_tiny", "infeasible", "kernel missing") in ends
    assert len(ends) == 3


def test_search_continues_after_a_failed_trial():
    def fail_for_shufflenet(architecture):
        if architecture.space.name == "shufflenet_tiny":
            raise ValueError("no luck")
        return macs(architecture)

    result = run_search(SPACES, {"a": fail_for_shufflenet}, trials=30)
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert failed
    assert {trial.error for trial in failed} == {"ValueError: no luck"}


def test_search_stops_if_nearly_all_trials_fail():
    def fail(architecture):
        raise ValueError("no luck")

    with pytest.raises(SearchError, match=r"10 of the last 10 trials failed.*no luck"):
        run_search(SPACES, {"a": fail}, trials=30)


def test_optuna_can_load_the_journal(tmp_path):
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    journal = tmp_path / "study.jsonl"
    result = run_search(SPACES, OBJECTIVES, trials=12, storage=journal)
    study = optuna.load_study(
        study_name="search", storage=JournalStorage(JournalFileBackend(str(journal)))
    )
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert [t.values for t in complete] == [list(t.values.values()) for t in result.trials]
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_only_dominated_architectures_are_scored_in_part(tmp_path):
    margins = (0.05, 0.02, 0.0)
    rounds = {}

    def error_in_rounds(architecture, is_hopeless):
        for number, margin in enumerate(margins):
            value = error(architecture) + margin
            rounds[architecture.digest] = number
            if is_hopeless(error(architecture) - margin):
                break
        return value

    objectives = [
        Objective("macs", lambda batch: [macs(each) for each in batch], cheap=True),
        Objective("error", refuse_to_score, score_in_rounds=error_in_rounds),
    ]
    result = run_search(SPACES, objectives, trials=50, seed=3)
    for number, trial in enumerate(result.trials):
        rivals = [
            rival.values["error"]
            for rival in result.trials[:number]
            if rival.values["macs"] <= trial.values["macs"]
        ]
        true = error(trial.architecture)
        expected = next(
            (at for at, margin in enumerate(margins) if min(rivals, default=1) < true - margin), 2
        )
        assert rounds[trial.digest] == expected
        assert trial.values["error"] == true + margins[expected]
    assert {0, 1, 2} == set(rounds.values())
    assert all(rounds[trial.digest] == 2 for trial in result.front)
    in_part = summary(result)
    rounds.clear()
    journal = tmp_path / "study.jsonl"
    for trials in (20, 50):
        resumed = run_search(SPACES, objectives, trials=trials, seed=3, storage=journal)
    assert summary(resumed) == in_part
