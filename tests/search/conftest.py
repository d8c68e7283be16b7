"""Fixtures for tests that run on several kinds of storage."""

from types import SimpleNamespace

import pytest
from optuna.storages._rdb.storage import _VersionManager

from nas.machine.process_identity import this_process
from nas.search import liveness, trial_log
from nas.search.storage import Storage
from nas.search.trial_log import TrialLog
from tests.search.journal_edits import open_log
from tests.search.trials import OBJECTIVES, SETTINGS, SPACE, completed, proposed_trials


@pytest.fixture(autouse=True, scope="session")
def _migrations_are_read_once():
    """Let Optuna read its migration scripts once, instead of whenever it opens a database."""
    create, scripts = _VersionManager._create_alembic_script, []

    def create_once(manager):
        if not scripts:
            scripts.append(create(manager))
        return scripts[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "_create_alembic_script", create_once)
        yield


@pytest.fixture
def backend(request):
    """The kind of storage; `tests.search.trials.for_backends` sets it."""
    return getattr(request, "param", "journal")


@pytest.fixture
def location(backend, request, tmp_path):
    """The location of the storage."""
    if backend == "postgresql":
        return request.getfixturevalue("database")
    return tmp_path / "study.journal" if backend == "journal" else f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def open_storage(location):
    """Open the storage as another process would; what it waits for is printed."""
    return lambda: Storage(location, on_message=print)


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
def pass_time(monkeypatch):
    """Set the clock forward that measures how long a process of another machine is silent."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def pass_seconds(seconds):
        clock.now += seconds

    return pass_seconds


@pytest.fixture
def orphan(pass_time):
    """Let a log take the claims of other machines for those of dead processes."""

    def watch(log):
        log.refresh()
        pass_time(liveness.HEARTBEAT_TIMEOUT_SECONDS + 1)
        return log.refresh()

    return watch


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
