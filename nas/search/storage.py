"""Where the trials of a search are kept: memory, a journal file, or a database through Optuna."""

from __future__ import annotations

import copy
import json
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, get_storage
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.errors import RequestError, StorageError
from nas.search import storage_address as addresses
from nas.search.journal import DAMAGE, RESTORE, JournalStorage
from nas.search.storage_address import shown

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

PATIENCE_S = 600.0
"""For so long a search waits for a database that does not answer any more."""

LOCKED_S = 60
"""For so long others wait at most for a process that came to a halt while it wrote."""

_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Result = TypeVar("Result")


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
    StorageError for a database that does not answer, or for a damaged one or journal; RequestError
    for an address that means none.

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
        self._where = where
        self._storage = self._opened(where)

    def _opened(self, where: Path | str | None) -> BaseStorage:
        if where is None:
            return InMemoryStorage()
        if addresses.is_address(where):
            return get_storage(self._database(addresses.parse(where)))
        return JournalStorage(Path(where))

    def _database(self, address: URL) -> RDBStorage:
        from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

        for pause in (0.1, 0.3, 0.6, 1.0, None):
            try:
                return _Database(address)
            except (ImportError, NoSuchModuleError, ArgumentError, TypeError, ValueError) as error:
                raise RequestError(
                    f"{self.name} cannot be opened: {self._reason(error)}.",
                    remedy="Correct the address. For PostgreSQL: "
                    "pip install 'hardware-nas[postgresql]'.",
                ) from self._cause(error)
            except (DBAPIError, StorageInternalError) as error:
                # Processes that make the tables at once disturb each other for a moment.
                if pause is None:
                    raise StorageError(
                        f"{self.name} cannot be opened: {self._reason(error)}.",
                        remedy="Start the database, or correct its address; a password can stand "
                        "in PGPASSWORD. Completed trials are kept.",
                    ) from self._cause(error)
                time.sleep(pause)
            except (RuntimeError, *DAMAGE) as error:
                # Tables that another version of Optuna made, or that hold something else.
                raise StorageError(
                    f"{self.name} cannot be used: {self._reason(error)}.",
                    remedy="Use another database.",
                ) from self._cause(error)
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

    def directions(self, study: int) -> list[StudyDirection]:
        """What a study minimises and maximises."""
        return self._patiently(lambda: self._storage.get_study_directions(study))

    def studies(self) -> list[str]:
        """The names of all studies."""
        return self._patiently(
            lambda: [each.study_name for each in self._storage.get_all_studies()]
        )

    def identity(self, study: int, wanted: Mapping[str, Any]) -> Any:
        """What the study was started with, unchecked; `wanted` if it is new."""

        def read() -> Any:
            if "identity" not in self._storage.get_study_user_attrs(study):
                self._storage.set_study_user_attr(study, "identity", dict(wanted))
            return self._storage.get_study_user_attrs(study)["identity"]

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
        except (StorageError, OSError):
            # A damaged journal or a full disk; the thread that makes trials meets it, and says so.
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
            except (*DAMAGE, RecursionError) as error:
                raise self._damaged(error) from self._cause(error)
            except StorageInternalError as error:
                if _is_damage(error):
                    raise self._damaged(error) from self._cause(error)
                self._away = True
                waited = time.monotonic() - start
                if waited >= patience_s:
                    raise StorageError(
                        f"{self.name} did not answer for {waited / 60:.0f} minutes: "
                        f"{self._reason(error)}.",
                        remedy="Run the same command again when it does; completed trials are "
                        "kept.",
                    ) from self._cause(error)
                if not told:
                    told = True
                    self._told(
                        f"{self.name} does not answer ({self._reason(error)}); waiting up to "
                        f"{patience_s / 60:.0f} minutes"
                    )
                time.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
                attempt += 1
                continue
            self._answered()
            if told:
                self._told(f"{self.name} answers again")
            return found

    def _damaged(self, error: BaseException) -> StorageError:
        return StorageError(f"{self.name} is damaged: {self._reason(error)}.", remedy=RESTORE)

    def _reason(self, error: BaseException) -> str:
        """What a driver said, without SQL, hints and secrets, in a line without a full stop."""
        while error.__cause__ is not None:
            error = error.__cause__
        error = getattr(error, "orig", None) or error
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if isinstance(error, LookupError):
            reason = f"{reason} is missing"
        return addresses.without_secrets(reason, self._where)[:300].rstrip(".")

    def _cause(self, error: BaseException) -> BaseException | None:
        """The error if its traceback can be shown: a driver may repeat a password."""
        text = "".join(traceback.format_exception(error))
        return error if text == addresses.without_secrets(text, self._where) else None

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


def _is_damage(error: BaseException) -> bool:
    """Whether a database says that its file is damaged, which waiting does not mend."""
    from sqlalchemy.exc import DatabaseError

    # Its subclasses are for what passes, such as a lock or a lost connection.
    return type(error.__cause__) is DatabaseError
