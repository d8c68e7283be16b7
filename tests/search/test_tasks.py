"""Tasks that processes share: each is done once, whatever happens to the processes."""

import os
import re

import pytest

from nas.errors import StorageError
from nas.search import tasks as tasks_module
from nas.search.liveness import this_process
from nas.search.tasks import TaskLog
from tests.search.trials import BACKENDS, PERSISTENT, for_backends

TASKS = ["first", "second", "third"]


@pytest.fixture
def new_tasks(open_storage):
    """Open the tasks as another process would."""
    return lambda: TaskLog(open_storage(), "study", TASKS, "accuracy")


@for_backends(BACKENDS)
def test_processes_claim_tasks_in_order_and_read_each_others_results(new_tasks):
    one, other = new_tasks(), new_tasks()
    assert (one.claim(), other.claim()) == ("first", "second")
    one.finish({"accuracy": 0.5}, 0.5)
    other.finish({"error": "diverged"}, None)
    assert (other.claim(), one.claim()) == ("third", None)
    assert one.missing == ["third"]
    other.finish({"accuracy": 0.25}, 0.25)
    assert one.claim() is None
    expected = {"first": {"accuracy": 0.5}, "second": {"error": "diverged"}}
    expected["third"] = {"accuracy": 0.25}
    assert one.results == other.results == new_tasks().results == expected


@for_backends(PERSISTENT)
def test_optuna_sees_values_of_results_and_failures_as_pruned(new_tasks, open_storage):
    log = new_tasks()
    for value in (0.5, None):
        assert log.claim()
        log.finish({}, value)
    stored = open_storage().get_trials(log._study_id)
    assert [(each.state.name, each.values) for each in stored] == [
        ("COMPLETE", [0.5]),
        ("PRUNED", None),
    ]


@for_backends(BACKENDS)
def test_end_of_the_context_releases_the_claim(new_tasks):
    with new_tasks() as log:
        assert log.claim() == "first"
        assert new_tasks().claim() == "second"
    assert new_tasks().claim() == "first"


@for_backends(BACKENDS)
def test_task_of_a_dead_process_is_done_by_another(new_tasks, monkeypatch):
    with monkeypatch.context() as patch:
        gone = {**this_process(), "pid": os.getpid(), "started": 0.0}
        patch.setattr(tasks_module, "this_process", lambda: gone)
        dead = new_tasks()
    assert dead.claim() == "first"
    log = new_tasks()
    assert log.claim() == "first"
    dead.finish({"accuracy": 0.1}, 0.1)  # It was alive after all: its result is dropped.
    log.finish({"accuracy": 0.2}, 0.2)
    assert new_tasks().results == {"first": {"accuracy": 0.2}}


@for_backends(BACKENDS)
def test_silent_process_of_another_machine_loses_its_task(
    new_tasks, monkeypatch, expire_heartbeats
):
    with monkeypatch.context() as patch:
        away = {**this_process(), "host": "another machine"}
        patch.setattr(tasks_module, "this_process", lambda: away)
        remote = new_tasks()
    assert remote.claim() == "first"
    log = new_tasks()
    log.refresh()
    assert log.claim() == "second"
    log.finish({}, 0.5)
    remote._record_heartbeat()
    assert log.claim() == "third"
    expire_heartbeats()
    log.finish({}, 0.5)
    assert log.claim() == "first"


def test_damaged_result_is_named(new_tasks, location):
    log = new_tasks()
    log.claim()
    log.finish({"accuracy": 0.5}, 0.5)
    text = location.read_text()
    location.write_text(re.sub(r'"task": *"first"', '"task":1', text))
    with pytest.raises(StorageError, match="trial 0 is damaged: task is 1"):
        new_tasks()
