"""Where the trials of a search are kept: memory, a journal file, or a database through Optuna."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import filelock
import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas import jsonl
from nas.errors import RequestError, StorageError, first_line

PATIENCE_S = 600.0
"""For so long a search waits for a database that does not answer any more."""

_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Result = TypeVar("Result")


def shown(where: str) -> str:
    """A storage's address without its password."""
    if "://" not in where:
        return where
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(where).set(password=None).render_as_string()
    except ArgumentError as error:
        raise RequestError(
            "The storage's address cannot be read.",
            remedy='Write "postgresql://USER@HOST/DATABASE" or "sqlite:///FILE".',
        ) from error


class _Lock:
    """The journal's lock, held by the operating system: a killed process leaves none behind."""

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class Storage:
    """One of Optuna's storages, which waits for a database that is away for a while.

    Args:
        where: a path of a journal file, which `optuna-dashboard PATH` opens; an SQLAlchemy address
            such as `postgresql://USER@HOST/DATABASE`; None keeps trials in memory.
        shared: whether other processes may be writing; without them a torn last line of a journal
            is cut off.
        told: is called with a sentence when there is something to wait for.

    A password can stand in the address, or in PGPASSWORD or ~/.pgpass; it is never shown. Raises
    StorageError for a database that does not answer, RequestError for an address that means none.
    """

    def __init__(
        self,
        where: Path | str | None,
        *,
        shared: bool = False,
        told: Callable[[str], None] | None = None,
    ) -> None:
        self._told = told or (lambda sentence: None)
        self.name = "memory" if where is None else shown(str(where))
        self._storage = self._opened(where, shared)

    def _opened(self, where: Path | str | None, shared: bool) -> BaseStorage:
        if where is None:
            return InMemoryStorage()
        if "://" in str(where):
            return get_storage(self._database(str(where)))
        path = Path(where)
        if not shared:
            jsonl.repair(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, _Lock(path))))

    def _database(self, where: str) -> RDBStorage:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import DBAPIError, NoSuchModuleError

        address = make_url(where)
        if address.drivername == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        text = address.render_as_string(hide_password=False)
        for pause in (0.2, 1.0, None):
            try:
                return RDBStorage(text, engine_kwargs={"pool_pre_ping": True})
            except (ImportError, NoSuchModuleError) as error:
                raise RequestError(
                    f"{self.name} cannot be opened: {first_line(error)}.",
                    remedy="For PostgreSQL: pip install 'hardware-nas[postgresql]'.",
                ) from error
            except (DBAPIError, StorageInternalError) as error:
                # Two processes that make the tables at once disturb each other, once.
                if pause is None:
                    raise StorageError(
                        f"{self.name} cannot be opened: {_reason(error)}",
                        remedy="Start the database, or correct its address; a password can stand "
                        "in PGPASSWORD. Completed trials are kept.",
                    ) from error
                time.sleep(pause)
        raise AssertionError

    def study(self, name: str, directions: Sequence[StudyDirection]) -> int:
        """The study of this name, made if there is none."""

        def opened() -> int:
            try:
                return self._storage.create_new_study(directions, name)
            except DuplicatedStudyError:
                return self._storage.get_study_id_from_name(name)

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return self._patiently(opened)

    def identity(self, study: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What the study was started with; `wanted` if it is new."""

        def read() -> dict[str, Any]:
            if "identity" not in self._storage.get_study_user_attrs(study):
                self._storage.set_study_user_attr(study, "identity", dict(wanted))
            return dict(self._storage.get_study_user_attrs(study)["identity"])

        return self._patiently(read)

    def create(self, study: int, trial: FrozenTrial) -> int:
        """Adds a trial, once, and gives its number in the storage.

        If the connection breaks it may have been added already: its `token` tells.
        """
        tried = False

        def added() -> int:
            nonlocal tried
            if tried:
                token = trial.user_attrs["token"]
                for each in self._storage.get_all_trials(study, deepcopy=False):
                    if each.user_attrs.get("token") == token:
                        return each._trial_id
            tried = True
            return self._storage.create_new_trial(study, template_trial=trial)

        return self._patiently(added)

    def finish(
        self, number: int, result: Mapping[str, Any], values: Sequence[float] | None
    ) -> bool:
        """Ends a running trial; False if it was ended already."""

        def ended() -> bool:
            try:
                self._storage.set_trial_user_attr(number, "result", dict(result))
                state = TrialState.FAIL if values is None else TrialState.COMPLETE
                return self._storage.set_trial_state_values(number, state, values)
            except UpdateFinishedTrialError:
                return False

        return self._patiently(ended)

    def give_up(self, number: int, why: str) -> None:
        """Ends a running trial without a result; nothing happens if it was ended already."""

        def ended() -> None:
            try:
                self._storage.set_trial_user_attr(number, "given_up", why)
                self._storage.set_trial_state_values(number, TrialState.FAIL)
            except UpdateFinishedTrialError:
                pass

        self._patiently(ended)

    def beat(self, number: int, count: int) -> None:
        """Writes a sign of life to a running trial, if the storage answers at once."""
        try:
            self._storage.set_trial_user_attr(number, "beat", count)
        except (UpdateFinishedTrialError, StorageInternalError):
            return

    def trials(self, study: int) -> list[FrozenTrial]:
        """All trials in the order in which they were created. They are not copies."""
        return self._patiently(lambda: self._storage.get_all_trials(study, deepcopy=False))

    def _patiently(self, work: Callable[[], Result]) -> Result:
        """Repeats what fails because the database is away. Raises StorageError in the end."""
        start, told = time.monotonic(), False
        attempt = 0
        while True:
            try:
                found = work()
            except StorageInternalError as error:
                waited = time.monotonic() - start
                if waited > PATIENCE_S:
                    raise StorageError(
                        f"{self.name} did not answer for {waited / 60:.0f} minutes: "
                        f"{_reason(error)}",
                        remedy="Run the same command again when it does; completed trials are "
                        "kept.",
                    ) from error
                if not told:
                    told = True
                    self._told(
                        f"{self.name} does not answer ({_reason(error)}); waiting up to "
                        f"{PATIENCE_S / 60:.0f} minutes"
                    )
                time.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
                attempt += 1
                continue
            if told:
                self._told(f"{self.name} answers again")
            return found


def _reason(error: BaseException) -> str:
    """What a driver said, without SQL and hints."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "orig", error)).strip().splitlines()[0][:300]
