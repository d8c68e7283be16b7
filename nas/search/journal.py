"""The journal file of a search: Optuna's format, with every line validated as it is read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import filelock
from optuna.storages import journal as optuna_journal
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file
from optuna.storages.journal._storage import JournalOperation

from nas import jsonl
from nas.errors import StorageError, first_line
from nas.files import with_path

MAX_LINE_BYTES = 4 * 2**20
"""Longest valid line. A trial of the largest space takes about ten thousand bytes."""

DAMAGE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""Exceptions that Optuna raises when it reads records that it did not write."""

RESTORE_REMEDY = "Restore it from a copy, or start again in another folder with --out."

_FIRST_BYTES = b'{"op_code":'

_OPERATIONS = frozenset(int(code) for code in JournalOperation)

_STUDY_OPERATIONS = frozenset(
    {
        JournalOperation.DELETE_STUDY,
        JournalOperation.SET_STUDY_USER_ATTR,
        JournalOperation.SET_STUDY_SYSTEM_ATTR,
        JournalOperation.CREATE_TRIAL,
    }
)
"""Operations on a study that an earlier line created."""

_TRIAL_OPERATIONS = frozenset(
    {
        JournalOperation.SET_TRIAL_PARAM,
        JournalOperation.SET_TRIAL_STATE_VALUES,
        JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
        JournalOperation.SET_TRIAL_USER_ATTR,
        JournalOperation.SET_TRIAL_SYSTEM_ATTR,
    }
)
"""Operations on a trial that an earlier line created."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class JournalStorage(optuna_journal.JournalStorage):
    """Optuna's journal storage, which raises StorageError if the file is damaged.

    A file of another program is refused, and nothing is written to it.
    """

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)
        self._damage: StorageError | None = None
        super().__init__(self._file)

    def _sync_with_backend(self) -> None:
        # Optuna does not read a line twice, so a second call would continue after the damaged
        # line. That happens, for example, if the heartbeat thread is the first to read the line.
        if self._damage is not None:
            raise self._damage
        try:
            super()._sync_with_backend()
        except (*DAMAGE_ERRORS, RecursionError) as error:
            self._damage = self._file.damage_error(
                f"it cannot be applied ({first_line(error)[:200]})"
            )
            raise self._damage from error
        except StorageError as error:
            self._damage = error
            raise


class JournalFile(optuna_journal.JournalFileBackend):
    """Optuna's journal file, which survives a process that is killed while it writes.

    Optuna's own class leaves three problems that this class solves. A killed process leaves a lock
    behind, for which all others wait 30 seconds; here the operating system holds the lock. A killed
    process can leave a torn last line, to which Optuna appends the next record; here the torn line
    is removed first. Optuna ignores many kinds of damage; here every line is validated.

    Args:
        path: path of the journal. An empty file is created if there is none.

    Raises StorageError for a file that is not a journal of Optuna's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_lines = self._offset = self._num_studies = self._num_trials = 0
        with self._file_errors():
            super().__init__(str(path), lock_obj=_FileLock(path))
            self._require_journal()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the operations from a number on, which must follow the last one that was read."""
        assert log_number_from == self._num_lines
        with self._file_errors(), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                raise StorageError(
                    f"{self._path} lost lines while it was in use.", remedy=RESTORE_REMEDY
                )
            file.seek(self._offset)
            for line in self._complete_lines(file):
                self._num_lines += 1
                self._offset += len(line) + 1
                yield self._parse(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations as complete lines. They are on the disk when this method returns."""
        with get_lock_file(self._lock):
            self._remove_torn_line()
            try:
                super().append_logs(logs)
            except OSError as error:
                raise with_path(error, self._path) from None

    def damage_error(self, reason: str) -> StorageError:
        """Return the error for the line that was read last."""
        return StorageError(
            f"{self._path}, line {self._num_lines} is damaged: {reason}.", remedy=RESTORE_REMEDY
        )

    def _complete_lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the lines without their line feeds, except a last line that lacks it.

        Another process may still be writing that last line.
        """
        rest = b""
        while block := file.read(MAX_LINE_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            if len(rest) > MAX_LINE_BYTES:
                self._num_lines += 1
                raise self.damage_error(f"it is longer than {MAX_LINE_BYTES} bytes")
            if len(block) < MAX_LINE_BYTES:
                # Stop here: another process may replace `rest` by a line of its own.
                return

    def _parse(self, line: bytes) -> dict[str, Any]:
        record = self._parse_object(line)
        code = record.get("op_code")
        if type(code) is not int or code not in _OPERATIONS:
            raise self.damage_error("its op_code is not one of Optuna's")
        if type(record.get("worker_id")) is not str:
            raise self.damage_error("its worker_id is not a string")
        # Optuna ignores operations on studies and trials that do not exist.
        if code in _STUDY_OPERATIONS:
            self._require_existing(record, "study_id", self._num_studies)
        if code in _TRIAL_OPERATIONS:
            self._require_existing(record, "trial_id", self._num_trials)
        self._num_studies += code == JournalOperation.CREATE_STUDY
        self._num_trials += code == JournalOperation.CREATE_TRIAL
        return record

    def _parse_object(self, line: bytes) -> dict[str, Any]:
        try:
            record = _DECODER.decode(line.decode())
        except (ValueError, RecursionError) as error:
            raise self.damage_error(f"it is not JSON, or not UTF-8: {line[:60]!r}") from error
        if not isinstance(record, dict):
            raise self.damage_error(f"it is not a JSON object: {line[:60]!r}")
        return record

    def _require_existing(self, record: Mapping[str, Any], key: str, count: int) -> None:
        number = record.get(key)
        if type(number) is not int or not 0 <= number < count:
            raise self.damage_error(f"its {key} is not one of the {count} before it")

    def _require_journal(self) -> None:
        """Raise StorageError for a file whose first line is not an operation of Optuna's."""
        if not stat.S_ISREG(self._path.stat().st_mode):
            raise StorageError(
                f"{self._path} is not a regular file.",
                remedy="Give the path of a journal, or of a new file.",
            )
        with self._path.open("rb") as file:
            line = file.readline(MAX_LINE_BYTES)
        if line.endswith(b"\n"):
            is_journal = line.replace(b" ", b"").startswith(_FIRST_BYTES)
        else:  # The file is empty, or its very first line is torn.
            is_journal = line[: len(_FIRST_BYTES)] == _FIRST_BYTES[: len(line)]
        if not is_journal:
            raise StorageError(
                f"{self._path} is not a journal of Optuna's: its first line is {line[:60]!r}. "
                "It was not changed.",
                remedy="Move it away, or restore the journal from a copy.",
            )

    def _remove_torn_line(self) -> None:
        """Remove a last line without a line feed. The process that wrote it was killed.

        A live process would hold the lock. The file is opened for writing: a file that is missing
        or read-only raises StorageError here, before Optuna creates it again or fails to write.
        """
        with self._file_errors():
            with self._path.open("rb+") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if file.read(1) in (b"\n", b""):
                    return
            self._require_journal()
        jsonl.repair(self._path, start=b"{")

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        """Turn an OSError into a StorageError that names the journal."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be used: {error.strerror}.",
                remedy="Make it readable and writable, or use another folder.",
            ) from error


class _FileLock(BaseJournalFileLock):
    """A reentrant lock that the operating system releases when its process is killed."""

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(f"{path}.lock", poll_interval=0.01)

    def acquire(self) -> bool:
        try:
            self._lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise StorageError(
                f"{self._lock.lock_file} cannot be locked: {first_line(error)}.",
                remedy="Use a folder on a local disk that this user can write to.",
            ) from error
        return True

    def release(self) -> None:
        self._lock.release()
