"""Tests of claims whose process dies, is slow, or is taken for dead."""

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nas.machine.process_identity import this_process
from nas.search import trial_log
from nas.search.trial import to_result
from nas.search.trial_log import MAX_PROCESS_DEATHS
from tests.search.trials import (
    BACKENDS,
    DATABASES,
    FORMS,
    OBJECTIVES,
    completed,
    digests,
    for_backends,
    in_threads,
    optuna_states,
    proposed_trials,
)

CLAIMING_PROCESS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from nas.search.storage import Storage
from nas.search.trial_log import TrialLog
from tests.search.trials import OBJECTIVES, SETTINGS, SPACE, proposed_trials
location = sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])
log = TrialLog(Storage(location), [SPACE], OBJECTIVES, 0, fixed_settings=SETTINGS)
assert log.claim(proposed_trials(1)[0])
print("claimed", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@for_backends(BACKENDS)
def test_claim_of_a_killed_process_is_orphaned_at_once(new_log, location, open_storage):
    watching = new_log()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CLAIMING_PROCESS, str(location), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        watching.refresh()
        assert (watching.num_running, watching.orphaned_trials) == (1, [])
        process.send_signal(signal.SIGKILL)
        process.wait()
    watching.refresh()
    assert watching.num_running == 0
    (orphan,) = watching.orphaned_trials
    assert orphan.digest == proposed_trials(1)[0].digest
    assert watching.claim(orphan)
    watching.finish(completed(orphan))
    assert new_log().completed_trials == [completed(orphan)]
    assert optuna_states(open_storage(), watching) == {orphan.digest: ["FAIL", "COMPLETE"]}


@for_backends(FORMS)
def test_remote_claim_is_valid_while_its_heartbeats_continue(new_log, new_remote_log, pass_time):
    working, watching = new_remote_log(), new_log()
    assert working.claim(proposed_trials(1)[0])
    for _ in range(3):
        working.record_heartbeat()
        pass_time(61)
        watching.refresh()
        assert watching.num_running == 1
    pass_time(61)
    watching.refresh()
    assert digests(watching.orphaned_trials) == digests(proposed_trials(1))


@for_backends(FORMS)
def test_late_result_counts_if_nobody_claimed_the_architecture_since(
    new_log, new_remote_log, orphan, open_storage
):
    slow, watching = new_remote_log(), new_log()
    (proposed,) = proposed_trials(1)
    assert slow.claim(proposed)
    orphan(watching)
    assert digests(watching.orphaned_trials) == [proposed.digest]
    slow.finish(completed(proposed))
    watching.refresh()
    assert watching.trials == slow.trials == [completed(proposed)]
    assert watching.orphaned_trials == slow.orphaned_trials == []
    assert optuna_states(open_storage(), slow) == {proposed.digest: ["FAIL", "COMPLETE"]}


@for_backends(FORMS)
@pytest.mark.parametrize("has_finished", [False, True])
def test_late_result_is_dropped_if_another_log_claimed_the_architecture(
    new_log, new_remote_log, orphan, open_storage, has_finished
):
    slow, watching = new_remote_log(), new_log()
    (proposed,) = proposed_trials(1)
    assert slow.claim(proposed)
    orphan(watching)
    assert watching.claim(proposed)
    if has_finished:
        watching.finish(completed(proposed))
        slow.finish(completed(proposed))
    else:
        slow.finish(completed(proposed))
        watching.finish(completed(proposed))
    slow.refresh()
    watching.refresh()
    assert slow.trials == watching.trials == new_log().trials == [completed(proposed)]
    assert optuna_states(open_storage(), slow)[proposed.digest].count("COMPLETE") == 1
    assert slow.orphaned_trials == watching.orphaned_trials == []


@for_backends(BACKENDS)
def test_result_that_is_stored_just_before_the_release_counts(
    new_log, new_remote_log, orphan, monkeypatch, open_storage
):
    slow, watching = new_remote_log(), new_log()
    proposed, other = proposed_trials(2)
    assert slow.claim(proposed)
    release_trial = watching._storage.release_trial

    def release_late(trial_id, reason):
        slow.finish(completed(proposed))
        release_trial(trial_id, reason)

    with monkeypatch.context() as patch:
        patch.setattr(watching._storage, "release_trial", release_late)
        assert orphan(watching) == [completed(proposed)]
    assert not watching.claim(proposed)
    assert watching.claim(other)
    assert watching.orphaned_trials == []
    assert optuna_states(open_storage(), slow)[proposed.digest] == ["COMPLETE", "FAIL"]


@pytest.mark.slow
@for_backends(DATABASES)
@pytest.mark.parametrize("state", ["complete", "failed"])
def test_result_that_is_stored_during_the_release_counts_once(
    new_log, new_remote_log, orphan, open_storage, state
):
    """The result is stored, then the trial is released, then its process sets its state."""
    slow, watching = new_remote_log(), new_log()
    (proposed,) = proposed_trials(1)
    ended = completed(proposed) if state == "complete" else replace(proposed, error="no luck")
    assert slow.claim(proposed)
    optuna_storage = slow._storage._storage
    set_state = optuna_storage.set_trial_state_values

    def set_state_after_release(*arguments):
        patch.undo()
        orphan(watching)
        assert watching.trials == []
        assert digests(watching.orphaned_trials) == [proposed.digest]
        return set_state(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna_storage, "set_trial_state_values", set_state_after_release)
        slow.finish(ended)
    watching.refresh()
    assert watching.trials == slow.trials == new_log().trials == [ended]
    last_state = "COMPLETE" if state == "complete" else "PRUNED"
    assert optuna_states(open_storage(), slow) == {proposed.digest: ["FAIL", last_state]}


@pytest.mark.slow
@for_backends(DATABASES)
def test_only_one_of_two_processes_ends_a_trial(new_log, open_storage):
    log, barrier = new_log(), threading.Barrier(2)
    for trial in proposed_trials(4):
        assert log.claim(trial)
        (trial_id,) = log._claimed_ids.values()

        def finish(trial_id=trial_id, trial=trial):
            storage = open_storage()
            barrier.wait(60)
            return storage.finish_trial(trial_id, *to_result(completed(trial), OBJECTIVES))

        assert sorted(in_threads(finish, 2)) == [False, True]
        log._claimed_ids.clear()


@pytest.mark.slow
@for_backends(FORMS)
def test_architecture_at_which_processes_die_reaches_the_limit_of_deaths(new_log, monkeypatch):
    proposed, other = proposed_trials(2)
    watching = new_log()
    for _ in range(MAX_PROCESS_DEATHS):
        assert not watching.has_too_many_deaths(proposed.digest)
        with monkeypatch.context() as patch:
            patch.setattr(trial_log, "this_process", lambda: {**this_process(), "started": -1e9})
            dying = new_log()
        assert dying.claim(proposed)
        watching.refresh()
        assert digests(watching.orphaned_trials) == [proposed.digest]
    assert watching.has_too_many_deaths(proposed.digest)
    assert new_log().has_too_many_deaths(proposed.digest)
    assert watching.claim(other)
    watching.release_claims()
    watching.refresh()
    assert not watching.has_too_many_deaths(other.digest)
