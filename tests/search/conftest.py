"""Fixtures for tests that run on several kinds of storage."""

import pytest

from nas.search import liveness, trial_log
from nas.search.liveness import this_process
from nas.search.storage import Storage
from nas.search.trial_log import TrialLog
from tests.search.journal_edits import open_log
from tests.search.trials import OBJECTIVES, SETTINGS, SPACE, completed, proposed_trials


@pytest.fixture
def backend(request):
    """The kind of storage; `tests.search.trials.for_backends` sets it."""
    return getattr(request, "param", "journal")


@pytest.fixture
def location(backend, request, tmp_path):
    """The location of the storage; None for memory."""
    if backend == "postgresql":
        return request.getfixturevalue("database")
    return {
        "memory": None,
        "journal": tmp_path / "study.journal",
        "sqlite": f"sqlite:///{tmp_path}/study.db",
    }[backend]


@pytest.fixture
def open_storage(location):
    """Open the storage as another process would. All calls share one storage in memory."""
    memory = Storage(None)
    return lambda: memory if location is None else Storage(location)


@pytest.fixture
def new_log(open_storage):
    """Open the trial log as another process would."""
    return lambda **settings: TrialLog(
        open_storage(),
        [SPACE],
        OBJECTIVES,
        **{"seed": 0, "fixed_settings": SETTINGS, **settings},
    )


@pytest.fixture
def new_remote_log(monkeypatch, new_log):
    """Open the trial log as a process of another machine would."""

    def open_remote_log():
        with monkeypatch.context() as patch:
            remote_process = {**this_process(), "host": "another machine"}
            patch.setattr(trial_log, "this_process", lambda: remote_process)
            return new_log()

    return open_remote_log


@pytest.fixture
def expire_heartbeats(monkeypatch):
    """Make processes of other machines count as dead when they are checked twice."""
    return lambda: monkeypatch.setattr(liveness, "HEARTBEAT_TIMEOUT_SECONDS", -1.0)


@pytest.fixture
def journal(tmp_path):
    """A journal with two trials: the first was added, the second claimed and finished."""
    path = tmp_path / "study.journal"
    log = open_log(path)
    first, second = proposed_trials(2)
    log.add(completed(first))
    assert log.claim(second)
    log.finish(completed(second))
    return path
