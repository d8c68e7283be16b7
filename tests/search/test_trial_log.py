import threading
from dataclasses import replace
from datetime import datetime, timedelta

import optuna
import pytest

from nas.errors import SearchError, StorageError
from nas.search.storage import Storage
from nas.search.trial_log import TrialLog
from tests.search.trials import (
    BACKENDS,
    FORMS,
    OBJECTIVES,
    SPACE,
    completed,
    digests,
    for_backends,
    in_threads,
    optuna_states,
    proposed_trials,
    trials_of_every_state,
)


@for_backends(FORMS)
def test_offered_trial_is_to_be_evaluated_until_a_process_does(new_log):
    log, trial = new_log(), trials_of_every_state()[0]
    log.offer(trial)
    for each in (log, new_log()):
        assert digests(each.orphaned_trials) == [trial.digest]
        assert trial.digest not in each
        assert each.trials == []
    assert log.claim(trial)
    log.finish(trial)
    assert log.orphaned_trials == new_log().orphaned_trials == []
    assert digests(new_log().completed_trials) == [trial.digest]


@for_backends(BACKENDS)
def test_trials_are_read_back_unchanged_and_optuna_knows_them(new_log, open_storage):
    log, other = new_log(), new_log()
    added = [replace(each, ended_at=1_700_000_000.5) for each in trials_of_every_state()]
    for trial in added:
        log.add(trial)
    assert other.refresh() == added
    before, claimed = datetime.now(), trials_of_every_state(seed=1)
    for trial in claimed:
        assert log.claim(trial)
        assert other.refresh() == []
        assert (other.num_running, trial.digest in other) == (1, True)
        log.finish(trial)
        assert other.refresh() == [trial]
        assert (other.num_running, log.num_running) == (0, 0)
    again = new_log()
    assert log.trials == other.trials == again.trials == added + claimed
    assert again.completed_trials == [added[0], added[3], claimed[0], claimed[3]]
    assert (again.orphaned_trials, again.refresh()) == ([], [])
    study = optuna.load_study(study_name="search", storage=open_storage()._storage)
    assert study.metric_names == ["macs", "score"]
    stored = study.trials
    assert [each.state.name for each in stored] == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"] * 2
    assert [each.values for each in stored if each.values] == [
        [trial.values["macs"], trial.values["score"]] for trial in again.completed_trials
    ]
    assert [dict(each.params) for each in stored[4:]] == [dict(t.parameters) for t in claimed]
    assert stored[0].duration == timedelta(seconds=1.25)
    assert stored[0].datetime_complete == datetime.fromtimestamp(1_700_000_000.5)
    assert before <= stored[4].datetime_start < stored[4].datetime_complete <= datetime.now()


@for_backends(FORMS)
def test_second_claim_of_an_architecture_is_refused(new_log, open_storage):
    first, second = new_log(), new_log()
    (proposed,) = proposed_trials(1)
    assert first.claim(proposed)
    assert not second.claim(proposed)
    first.finish(completed(proposed))
    assert not second.claim(proposed)
    assert optuna_states(open_storage(), first) == {proposed.digest: ["COMPLETE", "FAIL", "FAIL"]}
    assert second.refresh() == []
    assert second.trials == first.trials
    assert second.orphaned_trials == first.orphaned_trials == []


@pytest.mark.slow
@for_backends(BACKENDS)
def test_at_most_one_of_simultaneous_claims_succeeds(new_log, open_storage):
    proposed = proposed_trials(4)
    barrier = threading.Barrier(3)
    successful = []

    def contend():
        log = new_log()
        for trial in proposed:
            barrier.wait(60)
            if log.claim(trial):
                successful.append(trial.digest)
                log.finish(completed(trial))

    in_threads(contend, 3)
    log = new_log()
    assert sorted(successful) == sorted(digests(log.completed_trials))
    # All three may release their claims in favour of one another; then the trial is orphaned.
    orphaned = set(digests(log.orphaned_trials))
    assert orphaned | set(successful) == set(digests(proposed))
    assert not orphaned & set(successful)
    states = optuna_states(open_storage(), log)
    assert all(names.count("COMPLETE") <= 1 for names in states.values())
    assert log.num_running == 0


@for_backends(FORMS)
def test_claims_beyond_max_trials_are_refused(new_log):
    first, second = new_log(), new_log()
    a, b, c, d = proposed_trials(4)
    first.add(completed(a))
    assert first.claim(b, max_trials=3)
    assert second.claim(c, max_trials=3)
    assert not first.claim(d, max_trials=3)
    # The refused trial is orphaned, because one of the others may fail.
    assert second.orphaned_trials == []
    second.refresh()
    assert digests(second.orphaned_trials) == [d.digest]
    second.finish(replace(c, state="infeasible", error="too big"))
    assert first.claim(d, max_trials=3)
    first.finish(completed(b))
    first.finish(completed(d))
    assert len(new_log().completed_trials) == 3
    assert not second.claim(proposed_trials(5)[4], max_trials=3)


@for_backends(BACKENDS)
def test_released_claim_is_orphaned_until_another_log_claims_it(new_log):
    first, second = new_log(), new_log()
    proposed, other = proposed_trials(2)
    assert first.claim(proposed)
    assert second.claim(other)
    first.release_claims()
    second.refresh()
    assert second.num_running == 1
    (orphan,) = second.orphaned_trials
    assert (orphan.architecture, dict(orphan.parameters)) == (
        proposed.architecture,
        dict(proposed.parameters),
    )
    assert second.claim(proposed)
    assert second.orphaned_trials == []
    second.finish(completed(proposed))
    second.finish(completed(other))
    first.refresh()
    assert set(digests(first.completed_trials)) == {proposed.digest, other.digest}
    assert first.orphaned_trials == second.orphaned_trials == []


@for_backends(FORMS)
def test_interrupted_claim_is_released(new_log, monkeypatch):
    """Ctrl-C can arrive after the claim was stored and before the log knows its trial ID."""
    log = new_log()

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(log, "refresh", interrupt)
        with pytest.raises(KeyboardInterrupt):
            log.claim(proposed_trials(1)[0])
    log.release_claims()
    assert digests(new_log().orphaned_trials) == digests(proposed_trials(1))


@pytest.mark.slow
@for_backends(BACKENDS)
def test_heartbeats_and_trials_can_be_stored_at_the_same_time(new_log):
    log = new_log()
    is_over = threading.Event()

    def record_heartbeats():
        while not is_over.wait(0.001):
            log.record_heartbeat()

    thread = threading.Thread(target=record_heartbeats)
    thread.start()
    try:
        for trial in proposed_trials(8):
            assert log.claim(trial)
            log.finish(completed(trial))
    finally:
        is_over.set()
        thread.join()
    expected = [completed(trial) for trial in proposed_trials(8)]
    assert log.trials == new_log().trials == expected
    assert log._num_heartbeats > 0


@for_backends(FORMS)
def test_study_with_other_settings_is_refused(new_log):
    new_log()
    for name, value in (("seed", 1), ("fixed_settings", {"sampler": "y"})):
        with pytest.raises(SearchError, match=r"settings differ: (seed|sampler)\."):
            new_log(**{name: value})
    new_log(study_name="another study", seed=1)


@for_backends(BACKENDS)
def test_logs_that_are_opened_at_the_same_time_share_a_study(new_log):
    logs = []
    barrier = threading.Barrier(4)

    def open_log():
        barrier.wait(60)
        logs.append(new_log())

    in_threads(open_log, 4)
    assert (len({log._study_id for log in logs}), len(logs)) == (1, 4)


def test_damage_that_appears_during_a_search_is_reported_by_every_call(tmp_path):
    journal = tmp_path / "study.journal"
    log = TrialLog(Storage(journal), [SPACE], OBJECTIVES, 0)
    assert log.claim(proposed_trials(1)[0])
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, damaged\n')
    log.record_heartbeat()
    for _ in range(2):
        with pytest.raises(StorageError, match=r"is damaged: it is not JSON"):
            log.refresh()
    log.release_claims()


def test_missing_journal_is_not_created_again_during_a_search(tmp_path):
    journal = tmp_path / "study.journal"
    log = TrialLog(Storage(journal), [SPACE], OBJECTIVES, 0)
    journal.unlink()
    with pytest.raises(StorageError, match=r"study\.journal cannot be used: No such file"):
        log.add(completed(proposed_trials(1)[0]))
    assert not journal.exists()
