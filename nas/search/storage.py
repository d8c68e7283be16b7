"""Where the trials of a search are kept: memory, a journal file, or a database through Optuna."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

import filelock
import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, get_storage
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas import jsonl
from nas.errors import RequestError, StorageError, first_line

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

PATIENCE_S = 600.0
"""For so long a search waits for a database that does not answer any more."""

LOCKED_S = 60
"""For so long others wait at most for a process that came to a halt while it wrote."""

_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Result = TypeVar("Result")


def shown(where: Path | str) -> str:
    """A storage's address without its password; with PGPASSWORD it can be used as it is.

    Raises RequestError for an address that cannot be read.
    """
    if not _is_address(where):
        return str(where)
    address = _address(where)
    secrets = [key for key in address.query if "password" in key]
    bare = address.difference_update_query(secrets)._replace(password=None)
    return bare.render_as_string(hide_password=False)


def _is_address(where: Path | str) -> TypeGuard[str]:
    # One with a slash missing, too: it is no file's name, and may hold a password.
    return isinstance(where, str) and re.match(r"[a-z0-9_+]{2,}:|.*://", where) is not None


def _address(where: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    found = None
    with suppress(ArgumentError, ValueError):
        found = make_url(where)
    if found is None or "@" in (found.host or ""):
        # Neither the address nor SQLAlchemy's error: a part of a password may stand in them.
        raise RequestError(
            "The storage's address cannot be read.",
            remedy='Write "postgresql://USER@HOST/DATABASE" or "sqlite:///FILE"; in a password '
            '"@" is written %40 and "%" %25.',
        )
    return found


class _Lock:
    """The journal's lock, held by the operating system: a killed process leaves none behind.

    A process that was killed while it wrote leaves half a line, which is cut off by the next one
    that holds the lock: nobody else is writing then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = filelock.FileLock(f"{path}.lock", poll_interval=0.01)

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            if _is_torn(self._path):
                jsonl.repair(self._path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class _Database(RDBStorage):
    """Optuna's, which adds a trial once even if the connection breaks while it is added.

    Optuna's own tries several times, for seconds, and does not look whether the first time it was
    added. Here `Storage` tries again, and a trial with the token of the last one is not added.
    """

    _tried = ""

    def __init__(self, address: URL) -> None:
        from sqlalchemy import event

        if address.drivername in ("postgresql", "postgres"):
            address = address.set(drivername="postgresql+psycopg")
        backend = address.get_backend_name()
        wishes: dict[str, Any] = {}
        if backend == "sqlite":
            wishes = {"timeout": 20}
        elif address.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
            # A host that vanishes would otherwise be waited for without end.
            wishes = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 30_000}
        wishes = {key: value for key, value in wishes.items() if key not in address.query}
        super().__init__(
            address.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": backend != "sqlite", "connect_args": wishes},
        )
        if backend == "sqlite":
            # It does not lock what was read, so that of two processes that end a trial at once
            # both would believe that they did: let one wait until the other one is through.
            event.listen(self.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        if backend == "postgresql":
            event.listen(self.engine, "connect", _let_nobody_wait)
            self.engine.dispose()

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        from optuna.storages._rdb.models import StudyModel

        assert template_trial is not None
        token = template_trial.user_attrs["token"]
        with _create_scoped_session(self.scoped_session) as session:
            # The study stays locked: trials are numbered in the order in which others see them,
            # and what a broken connection still did is over.
            StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            made: Any = self._made(study_id, token, session) if token == self._tried else None
            self._tried = token
            made = made or self._get_prepared_new_trial(study_id, template_trial, session)
            found = copy.deepcopy(template_trial)
            found.number, found._trial_id = made.number, made.trial_id
            return found

    def _made(self, study_id: int, token: str, session: Any) -> Any:
        """The trial with a token, if there is one."""
        from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel

        attribute = TrialUserAttributeModel
        return (
            session.query(TrialModel)
            .join(attribute, attribute.trial_id == TrialModel.trial_id)
            .filter(TrialModel.study_id == study_id)
            .filter(attribute.key == "token", attribute.value_json == json.dumps(token))
            .one_or_none()
        )


def _let_nobody_wait(connection: Any, record: Any) -> None:
    """A process that is stopped, or a machine that vanishes, keeps no locks for hours."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{LOCKED_S}s'")
    connection.commit()


class Storage:
    """One of Optuna's storages, which waits for a database that is away for a while.

    Args:
        where: a path of a journal file, which `optuna-dashboard PATH` opens; an SQLAlchemy address
            such as `postgresql://USER@HOST/DATABASE`; None keeps trials in memory.
        told: is called with a sentence when there is something to wait for.

    A password can stand in the address, or in PGPASSWORD or ~/.pgpass; it is never shown. Raises
    StorageError for a database that does not answer, RequestError for an address that means none.

    Attributes:
        name: the address without its password.
        away_until: when it last began to answer again, by `time.monotonic`.
    """

    def __init__(
        self, where: Path | str | None, *, told: Callable[[str], None] | None = None
    ) -> None:
        self._told = told or (lambda sentence: None)
        self.name = "memory" if where is None else shown(where)
        self.away_until = -float("inf")
        self._away = False
        self._storage = self._opened(where)

    def _opened(self, where: Path | str | None) -> BaseStorage:
        if where is None:
            return InMemoryStorage()
        if _is_address(where):
            return get_storage(self._database(_address(where)))
        path = Path(where)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, _Lock(path))))

    def _database(self, address: URL) -> RDBStorage:
        from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

        for pause in (0.1, 0.3, 0.6, 1.0, None):
            try:
                return _Database(address)
            except (ImportError, NoSuchModuleError, ArgumentError) as error:
                raise RequestError(
                    f"{self.name} cannot be opened: {first_line(error).rstrip('.')}.",
                    remedy="For PostgreSQL: pip install 'hardware-nas[postgresql]'.",
                ) from error
            except RuntimeError as error:
                # Tables that another version of Optuna made; StorageInternalError is none of these.
                raise StorageError(
                    f"{self.name} cannot be used: {_reason(error)}.",
                    remedy="Use another database.",
                ) from error
            except (DBAPIError, StorageInternalError) as error:
                # Processes that make the tables at once disturb each other for a moment.
                if pause is None:
                    raise StorageError(
                        f"{self.name} cannot be opened: {_reason(error)}.",
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

    def studies(self) -> list[str]:
        """The names of all studies."""
        return self._patiently(
            lambda: [each.study_name for each in self._storage.get_all_studies()]
        )

    def identity(self, study: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What the study was started with; `wanted` if it is new."""

        def read() -> dict[str, Any]:
            if "identity" not in self._storage.get_study_user_attrs(study):
                self._storage.set_study_user_attr(study, "identity", dict(wanted))
            return dict(self._storage.get_study_user_attrs(study)["identity"])

        return self._patiently(read)

    def create(self, study: int, trial: FrozenTrial) -> int:
        """Adds a trial, once, and gives its number in the storage; its `token` is its own."""
        return self._patiently(lambda: self._storage.create_new_trial(study, template_trial=trial))

    def finish(
        self, number: int, result: Mapping[str, Any], values: Sequence[float] | None
    ) -> bool:
        """Ends a running trial with its result; False if it was ended already.

        A trial without values is pruned in Optuna's words; those that failed were given up. So its
        state alone, which is set once, tells whether its result counts.
        """

        def ended() -> bool:
            try:
                self._storage.set_trial_user_attr(number, "result", dict(result))
                state = TrialState.PRUNED if values is None else TrialState.COMPLETE
                return self._storage.set_trial_state_values(number, state, values)
            except UpdateFinishedTrialError:
                return False

        return self._patiently(ended)

    def give_up(self, number: int, why: str, *, patience_s: float | None = None) -> None:
        """Ends a running trial without a result; nothing happens if it was ended already."""

        def ended() -> None:
            try:
                self._storage.set_trial_user_attr(number, "given_up", why)
                self._storage.set_trial_state_values(number, TrialState.FAIL)
            except UpdateFinishedTrialError:
                pass

        self._patiently(ended, patience_s)

    def beat(self, number: int, count: int) -> None:
        """Writes a sign of life to a running trial, if the storage answers at once."""
        try:
            self._storage.set_trial_user_attr(number, "beat", count)
        except UpdateFinishedTrialError:
            pass
        except StorageInternalError:
            self._away = True
            return
        self._answered()

    def trials(self, study: int, *, patience_s: float | None = None) -> list[FrozenTrial]:
        """All trials in the order in which they were created. They are not copies."""
        return self._patiently(
            lambda: self._storage.get_all_trials(study, deepcopy=False), patience_s
        )

    def _patiently(self, work: Callable[[], Result], patience_s: float | None = None) -> Result:
        """Repeats what fails because the database is away, for `PATIENCE_S` if nothing is said.

        Raises StorageError in the end, or for a journal that cannot be read.
        """
        patience_s = PATIENCE_S if patience_s is None else patience_s
        start, told = time.monotonic(), False
        attempt = 0
        while True:
            try:
                with _undivided():
                    found = work()
            except json.JSONDecodeError as error:
                raise StorageError(
                    f"{self.name} is damaged: {error.doc[:60]!r} is not a line of a journal.",
                    remedy="Remove the line, or restore the file.",
                ) from error
            except StorageInternalError as error:
                self._away = True
                waited = time.monotonic() - start
                if waited >= patience_s:
                    raise StorageError(
                        f"{self.name} did not answer for {waited / 60:.0f} minutes: "
                        f"{_reason(error)}.",
                        remedy="Run the same command again when it does; completed trials are "
                        "kept.",
                    ) from error
                if not told:
                    told = True
                    self._told(
                        f"{self.name} does not answer ({_reason(error)}); waiting up to "
                        f"{patience_s / 60:.0f} minutes"
                    )
                time.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
                attempt += 1
                continue
            self._answered()
            if told:
                self._told(f"{self.name} answers again")
            return found

    def _answered(self) -> None:
        if self._away:
            self._away, self.away_until = False, time.monotonic()


@contextmanager
def _undivided() -> Iterator[None]:
    """Ctrl-C waits until this is over: half an operation would leave a storage of no use.

    A second one meanwhile does not wait, in case that the storage hangs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    waiting: list[tuple[Any, ...]] = []

    def later(*received: Any) -> None:
        waiting.append(received)
        if len(waiting) > 1:
            deliver()

    def deliver() -> None:
        while waiting:
            before(*waiting.pop(0))

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        deliver()


def _reason(error: BaseException) -> str:
    """What a driver said, without SQL and hints, in a line without a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", error)).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
