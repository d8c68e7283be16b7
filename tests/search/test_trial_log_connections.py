"""Tests of a trial log whose connection to the database breaks or stops."""

import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
from optuna.storages._rdb import storage as optuna_storage

from nas.search import storage as storage_module
from tests.search.trials import (
    DATABASES,
    completed,
    digests,
    for_backends,
    optuna_states,
    proposed_trials,
)

POSTGRESQL = DATABASES[1:]


@contextmanager
def breaking_commits(log, count, *, when, disconnect):
    """Break the connection of a number of commits "before" or "after" they reach the database."""
    engine = log._storage._storage._backend.engine
    commit, remaining = engine.dialect.do_commit, [count]

    def break_commit(connection):
        if remaining[0] > 0:
            remaining[0] -= 1
            if when == "after":
                commit(connection)
            disconnect(connection)
            if when == "after":
                raise engine.dialect.dbapi.OperationalError("connection lost")
        commit(connection)

    engine.dialect.do_commit = break_commit
    try:
        yield
    finally:
        del engine.dialect.do_commit
    assert remaining == [0]


@pytest.fixture
def no_pauses(monkeypatch):
    """Let Optuna and the storage repeat an operation at once."""
    monkeypatch.setattr(optuna_storage, "random", SimpleNamespace(random=lambda: 0.0))
    monkeypatch.setattr(storage_module, "_RETRY_PAUSES_SECONDS", (0.0,))


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize(
    ("backend", "when"),
    [
        ("sqlite", "after"),
        pytest.param("postgresql", "after", marks=pytest.mark.postgresql),
        pytest.param("postgresql", "before", marks=[pytest.mark.postgresql, pytest.mark.slow]),
    ],
    indirect=["backend"],
)
def test_connection_that_breaks_at_a_commit_loses_and_duplicates_nothing(
    new_log, open_storage, no_pauses, request, when, count
):
    log = new_log()

    def disconnect(connection):
        if when == "after":
            connection.driver_connection.close()
        else:
            pid = connection.driver_connection.info.backend_pid
            server = request.getfixturevalue("postgresql")
            server.run_sql("postgres", f"SELECT pg_terminate_backend({pid}, 10000)")

    breaking = partial(breaking_commits, log, count, when=when, disconnect=disconnect)
    first, second, third = proposed_trials(3)
    with breaking():
        log.add(completed(first))
    with breaking():
        assert log.claim(second)
    with breaking():
        log.finish(completed(second))
    with breaking():
        log.refresh()
    with breaking():
        assert log.claim(third)
    with breaking():
        log._storage.release_trial(log._claimed_ids.pop(third.digest), "a reason")
    assert log.trials == new_log().trials == [completed(first), completed(second)]
    states = optuna_states(open_storage(), log)
    # Optuna repeats a creation, and a trial that was added is read once.
    assert set(states[first.digest]) == {"COMPLETE"}
    assert states[second.digest].count("COMPLETE") == 1
    assert set(states[second.digest]) <= {"COMPLETE", "FAIL"}
    assert set(states[third.digest]) == {"FAIL"}


@pytest.mark.postgresql
@for_backends(POSTGRESQL)
def test_process_that_stops_during_a_commit_does_not_block_the_others(new_log, monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_LOCK_SECONDS", 1)
    stopped, working = new_log(), new_log()
    first, second = proposed_trials(2)
    dialect = stopped._storage._storage._backend.engine.dialect
    has_begun, may_continue = threading.Event(), threading.Event()

    def commit_late(connection):
        del dialect.do_commit
        has_begun.set()
        may_continue.wait(60)
        dialect.do_commit(connection)

    dialect.do_commit = commit_late
    thread = threading.Thread(target=stopped.claim, args=(first,))
    thread.start()
    assert has_begun.wait(60)
    assert working.claim(second)
    working.finish(completed(second))
    may_continue.set()
    thread.join()
    # The server has undone the transaction of the stopped process, which then repeated it.
    working.refresh()
    assert working.num_running == 1
    stopped.finish(completed(first))
    assert digests(new_log().completed_trials) == [second.digest, first.digest]
