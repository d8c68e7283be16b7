"""Storage of a search's trials: memory, a journal file, or a database, through Optuna."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import (
    BaseStorage,
    InMemoryStorage,
    JournalStorage,
    RDBStorage,
    get_storage,
)
from optuna.trial import FrozenTrial, TrialState

from nas.errors import RequestError, StorageError, first_line
from nas.files.paths import expanded
from nas.files.storage_address import is_address, parse_address, redact, redact_address
from nas.search.journal import DAMAGE_ERRORS, RESTORE_REMEDY, JournalFile
from nas.search.objectives import Direction

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection

STORAGE_RETRY_SECONDS = 600.0
"""A search waits at most so long for a database that does not answer."""

MAX_LOCK_SECONDS = 60
"""A PostgreSQL server ends a transaction that has been idle for so long, and frees its locks.

A process that is stopped while it writes would otherwise block all others.
"""

ANSWER_SECONDS = 180.0
"""A database that has not answered an operation for so long gets another connection.

Others may hold its locks for `MAX_LOCK_SECONDS`.
"""

_RETRY_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses between the attempts of an operation; the last one is repeated."""

_OPENING_PAUSES_SECONDS = (0.1, 0.3, 0.6, 1.0)
"""Pauses between the attempts to open a database.

Optuna creates its tables without a lock, so processes that do it at the same time can fail.
"""

Result = TypeVar("Result")


def _open_database(url: URL, connections: WeakSet[Any]) -> RDBStorage:
    """Open Optuna's storage in a database, which may be shared by many processes.

    Args:
        url: address of the database.
        connections: receives the driver's connections to a server.
    """
    from sqlalchemy import event

    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    is_sqlite = url.get_backend_name() == "sqlite"
    connect_args: dict[str, Any] = {}
    if is_sqlite:
        connect_args = {"timeout": 20}
    elif url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        connect_args = {
            # Without these, a client waits forever for a server that disappears.
            "connect_timeout": 10,
            "keepalives_idle": 30,
            "tcp_user_timeout": 30_000,
            "options": f"-c idle_in_transaction_session_timeout={MAX_LOCK_SECONDS}s",
        }
    connect_args = {key: value for key, value in connect_args.items() if key not in url.query}
    if is_sqlite:
        _create_tables(url, connect_args)
    # A server has few connections, by default 100: a process that works for hours holds one.
    pool: dict[str, Any] = {}
    if not is_sqlite:
        pool = {"pool_pre_ping": True, "pool_size": 1}
        pool["pool_events"] = [(lambda opened, _: connections.add(opened), "connect")]
    storage = RDBStorage(
        url.render_as_string(hide_password=False),
        engine_kwargs={**pool, "connect_args": connect_args},
    )
    if is_sqlite:
        # SQLite has no row locks: two processes that end one trial at the same time can both read
        # that it is running. With an immediate transaction the second one waits.
        event.listen(storage.engine, "begin", _begin_immediately)
    return storage


def _create_tables(url: URL, connect_args: Mapping[str, Any]) -> None:
    """Create Optuna's tables in an SQLite database, all or none.

    Optuna creates each table and each index in a transaction of its own. A process that fails
    between them, because another one creates the same table, would leave a table without its
    index for ever: then two studies can have one name, and no process can open either.
    """
    from optuna.storages._rdb.models import BaseModel
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    engine = create_engine(url, poolclass=NullPool, connect_args=dict(connect_args))
    event.listen(engine, "begin", _begin_immediately)
    with engine.begin() as connection:
        BaseModel.metadata.create_all(connection)


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Storage:
    """An Optuna storage that waits while its database is not available.

    Args:
        location: path of a journal file, which `optuna-dashboard PATH` can open; or an SQLAlchemy
            address such as `postgresql://USER@HOST/DATABASE`; or None to keep trials in memory.
            The address may contain the password; otherwise PGPASSWORD or ~/.pgpass provides it.
            Messages never show it.
        on_message: called with a sentence when the storage starts or stops to wait.

    Attributes:
        name: the location without secrets, for messages.
        available_since: time at which the storage became available again after its last outage,
            by `time.monotonic`.

    Raises StorageError for a database that does not answer and for a damaged database or journal,
    and RequestError for an address that cannot be used.
    """

    def __init__(
        self, location: Path | str | None, *, on_message: Callable[[str], None] | None = None
    ) -> None:
        self._on_message = on_message or (lambda sentence: None)
        self.name = "memory" if location is None else redact_address(location)
        self.available_since = -float("inf")
        self._is_away = False
        self._location = location
        self._journal: JournalFile | None = None
        self._damage: StorageError | None = None
        self._connections: WeakSet[Any] = WeakSet()
        self._storage = self._retry(self._open)

    def _open(self) -> BaseStorage:
        if self._location is None:
            return InMemoryStorage()
        if is_address(self._location):
            return get_storage(self._connect(parse_address(self._location)))
        self._journal = JournalFile(Path(expanded(self._location)).absolute())
        return JournalStorage(self._journal)

    def _connect(self, url: URL) -> RDBStorage:
        from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

        for pause in (*_OPENING_PAUSES_SECONDS, None):
            try:
                return _open_database(url, self._connections)
            except (ImportError, NoSuchModuleError, ArgumentError, TypeError, ValueError) as error:
                raise RequestError(
                    f"{self.name} cannot be opened: {self._reason(error)}.",
                    remedy="Correct the address. For PostgreSQL: "
                    "pip install 'hardware-nas[postgresql]'.",
                ) from self._cause(error)
            except (DBAPIError, StorageInternalError) as error:
                if pause is None:
                    raise StorageError(
                        f"{self.name} cannot be opened: {self._reason(error)}.",
                        remedy="Start the database, or correct its address; a password can stand "
                        "in PGPASSWORD. Completed trials are kept.",
                    ) from self._cause(error)
                time.sleep(pause)
            except (RuntimeError, *DAMAGE_ERRORS) as error:
                # The tables belong to another version of Optuna, or to another program.
                raise StorageError(
                    f"{self.name} cannot be used: {self._reason(error)}.",
                    remedy="Use another database.",
                ) from self._cause(error)
        raise AssertionError

    def create_study(
        self, name: str, directions: Sequence[Direction], metric_names: Sequence[str]
    ) -> int:
        """Return the ID of the study with a name. The study is created if it does not exist.

        Args:
            name: name of the study.
            directions: direction of each objective.
            metric_names: name of each objective, for Optuna's tools.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)

        def create() -> int:
            study = optuna.create_study(
                study_name=name,
                storage=self._storage,
                directions=directions,
                load_if_exists=True,
            )
            if study.metric_names is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    study.set_metric_names(list(metric_names))
            return study._study_id

        return self._retry(create)

    def get_study_id(self, name: str) -> int:
        """Return the ID of a study that exists."""
        return self._retry(lambda: self._storage.get_study_id_from_name(name))

    def get_study_names(self) -> list[str]:
        """Return the names of all studies."""
        return self._retry(lambda: optuna.get_all_study_names(self._storage))

    def get_attribute(self, study_id: int, key: str, default: Any = None) -> Any:
        """Return a user attribute of a study, without validation.

        Args:
            study_id: ID of the study.
            key: name of the attribute.
            default: value that a study without the attribute receives, unless it is None.
        """

        def read() -> Any:
            if default is not None and key not in self._storage.get_study_user_attrs(study_id):
                self._storage.set_study_user_attr(study_id, key, default)
            return self._storage.get_study_user_attrs(study_id).get(key)

        return self._retry(read)

    def set_attribute(self, study_id: int, key: str, value: str) -> None:
        """Store a user attribute of a study."""
        self._retry(lambda: self._storage.set_study_user_attr(study_id, key, value))

    def create_trial(self, study_id: int, trial: FrozenTrial) -> int:
        """Store a trial and return its ID.

        A database may hold the trial several times if its connection breaks: Optuna repeats a
        creation of which it does not know whether it has reached the database.
        """
        return self._retry(lambda: self._storage.create_new_trial(study_id, template_trial=trial))

    def finish_trial(
        self, trial_id: int, result: Mapping[str, Any], values: Sequence[float] | None
    ) -> bool:
        """Store the result of a running trial.

        Optuna's state of the trial is set once. It alone says whether the result counts: complete
        or pruned if it does, failed if the trial was released before.

        Args:
            trial_id: ID of the trial.
            result: the result, for the user attribute of that name.
            values: values for Optuna's samplers; None for a trial that is not complete, which
                becomes a pruned one.

        Returns:
            False if the trial had ended already.
        """

        def finish() -> bool:
            try:
                self._storage.set_trial_user_attr(trial_id, "result", dict(result))
                state = TrialState.PRUNED if values is None else TrialState.COMPLETE
                return self._storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                return False

        return self._retry(finish)

    def release_trial(
        self, trial_id: int, reason: str, *, retry_seconds: float | None = None
    ) -> None:
        """End a running trial without a result. A trial that has ended already is left as it is."""

        def release() -> None:
            try:
                self._storage.set_trial_user_attr(trial_id, "given_up", reason)
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                pass

        self._retry(release, retry_seconds)

    def record_heartbeat(self, trial_id: int, count: int) -> None:
        """Store the number of heartbeats of a running trial.

        The call does not wait for a storage that is not available, and ignores a storage that is
        damaged or full: the thread that stores the trial's result reports that.
        """

        def beat() -> None:
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id, "beat", count)

        with suppress(StorageError, OSError):
            self._retry(beat, retry_seconds=0)

    def get_trials(self, study_id: int, *, retry_seconds: float | None = None) -> list[FrozenTrial]:
        """Return all trials in the order of their creation. They must not be changed."""
        return self._retry(
            lambda: self._storage.get_all_trials(study_id, deepcopy=False), retry_seconds
        )

    def _retry(self, operation: Callable[[], Result], retry_seconds: float | None = None) -> Result:
        """Call an operation again until the storage is available.

        Args:
            operation: the operation, which may be called several times.
            retry_seconds: longest time to wait, by default `STORAGE_RETRY_SECONDS`.

        Raises StorageError if the storage is still not available, or is damaged.
        """
        retry_seconds = STORAGE_RETRY_SECONDS if retry_seconds is None else retry_seconds
        start = time.monotonic()
        num_failures = 0
        while True:
            # Optuna reads a line of a journal once, and would continue after a damaged one.
            if self._damage is not None:
                raise self._damage
            try:
                with self._limited_silence():
                    result = operation()
            except (*DAMAGE_ERRORS, StorageInternalError) as error:
                if _is_damage(error):
                    self._damage = self._damage_error(error)
                    raise self._damage from self._cause(error)
                self._is_away = True
                waited = time.monotonic() - start
                if waited >= retry_seconds:
                    raise StorageError(
                        f"{self.name} did not answer for {waited / 60:.0f} minutes: "
                        f"{self._reason(error)}.",
                        remedy="Run the same command again when it does; completed trials are "
                        "kept.",
                    ) from self._cause(error)
                if not num_failures:
                    self._on_message(
                        f"{self.name} does not answer ({self._reason(error)}); waiting up to "
                        f"{retry_seconds / 60:.0f} minutes"
                    )
                last = len(_RETRY_PAUSES_SECONDS) - 1
                time.sleep(_RETRY_PAUSES_SECONDS[min(num_failures, last)])
                num_failures += 1
                continue
            if self._is_away:
                self._is_away, self.available_since = False, time.monotonic()
            if num_failures:
                self._on_message(f"{self.name} answers again")
            return result

    @contextmanager
    def _limited_silence(self) -> Iterator[None]:
        """Cut the connections to a server at the limit, so that what waits for it fails.

        The driver has no limit, and the system notices only machines that vanish: for one whose
        processes are frozen it still takes what is sent.
        """
        if self._location is None or not is_address(self._location):
            yield
            return
        watch = threading.Timer(ANSWER_SECONDS, self._cut_connections)
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _cut_connections(self) -> None:
        for each in list(self._connections):
            with suppress(OSError):  # It is closed by now.
                if not each.closed:
                    with socket.socket(fileno=os.dup(each.fileno())) as own:
                        own.shutdown(socket.SHUT_RDWR)

    def _damage_error(self, error: BaseException) -> StorageError:
        """Return the error of a storage whose content Optuna cannot read."""
        if self._journal is not None:
            return self._journal.damage_error(f"it cannot be applied ({first_line(error)[:200]})")
        return StorageError(
            f"{self.name} is damaged: {self._reason(error)}.", remedy=RESTORE_REMEDY
        )

    def _reason(self, error: BaseException) -> str:
        """Return the first line of a driver's message without secrets and without a full stop."""
        while error.__cause__ is not None:
            error = error.__cause__
        error = getattr(error, "orig", None) or error
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if isinstance(error, LookupError):
            reason = f"{reason} is missing"
        return redact(reason, self._location)[:300].rstrip(".")

    def _cause(self, error: BaseException) -> BaseException | None:
        """Return the error, or None if its traceback would show a secret."""
        text = "".join(traceback.format_exception(error))
        return error if text == redact(text, self._location) else None


def _is_damage(error: BaseException) -> bool:
    """Whether an error means that a storage is damaged, which waiting does not mend."""
    from sqlalchemy.exc import DatabaseError

    # The subclasses of DatabaseError are temporary problems, such as a lost connection.
    return not isinstance(error, StorageInternalError) or type(error.__cause__) is DatabaseError
