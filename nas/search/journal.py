"""The journal file of a search: Optuna's format, checked line by line as it is read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import filelock
from optuna.storages import journal as optuna_journal
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation

from nas import jsonl
from nas.errors import StorageError, first_line
from nas.files import named

MAX_LINE_BYTES = 4 * 2**20
"""A trial of the largest space takes some ten thousand bytes; a longer line is no operation."""

DAMAGE = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What Optuna raises when it reads records that it did not write."""

RESTORE = "Restore it from a copy, or start again in another folder with --out."

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

_TRIAL_OPERATIONS = frozenset(
    {
        JournalOperation.SET_TRIAL_PARAM,
        JournalOperation.SET_TRIAL_STATE_VALUES,
        JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
        JournalOperation.SET_TRIAL_USER_ATTR,
        JournalOperation.SET_TRIAL_SYSTEM_ATTR,
    }
)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class JournalStorage(optuna_journal.JournalStorage):
    """Optuna's storage in a journal file. Raises StorageError for every damage of the file.

    Another program's file is refused before anything is written to it.
    """

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)
        self._damage: StorageError | None = None
        super().__init__(self._file)

    def _sync_with_backend(self) -> None:
        # Optuna does not read a line twice. Without this, a second call would go on behind the
        # damage, as when the thread that gives signs of life meets it first.
        if self._damage is not None:
            raise self._damage
        try:
            super()._sync_with_backend()
        except (*DAMAGE, RecursionError) as error:
            self._damage = self._file.damaged(f"it cannot be applied ({first_line(error)[:200]})")
            raise self._damage from error
        except StorageError as error:
            self._damage = error
            raise


class JournalFile(BaseJournalBackend):
    """A journal file, read as far as its lines are whole and appended to under a lock.

    Args:
        path: created empty if there is none.

    Raises StorageError for a path that is no journal of Optuna's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Held by the operating system: a killed process leaves no lock behind.
        self._lock = filelock.FileLock(f"{path}.lock", poll_interval=0.01)
        self._line = self._offset = self._studies = self._trials = 0
        with self._usable():
            if not path.exists():
                path.open("ab").close()
            self._require_journal()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The operations from a number on, which is the one after the last that was read."""
        assert log_number_from == self._line
        with self._usable(), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                raise StorageError(f"{self._path} lost lines while it was in use.", remedy=RESTORE)
            file.seek(self._offset)
            for line in self._whole_lines(file):
                self._line += 1
                self._offset += len(line) + 1
                yield self._operation(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds operations as whole lines; they are on the disk when this returns."""
        text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in logs)
        with self._locked():
            self._repair()
            with self._usable():
                # Not created anew if somebody removed it: the study would be lost silently.
                number = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                with open(number, "ab") as file:
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise named(error, self._path) from None

    def damaged(self, reason: str) -> StorageError:
        """The error that names the line that was read last."""
        return StorageError(
            f"{self._path}, line {self._line} is damaged: {reason}.", remedy=RESTORE
        )

    def _whole_lines(self, file: BinaryIO) -> Iterator[bytes]:
        """The lines without their ends; what another process is about to write is left out."""
        rest = b""
        while block := file.read(MAX_LINE_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            if len(rest) > MAX_LINE_BYTES:
                self._line += 1
                raise self.damaged(f"it is longer than {MAX_LINE_BYTES} bytes")
            if len(block) < MAX_LINE_BYTES:
                # Meanwhile another process may replace `rest` by a line of its own.
                return

    def _operation(self, line: bytes) -> dict[str, Any]:
        record = self._object(line)
        code = record.get("op_code")
        if type(code) is not int or code not in _OPERATIONS:
            raise self.damaged("its op_code is none of Optuna's")
        if type(record.get("worker_id")) is not str:
            raise self.damaged("its worker_id is not a text")
        # Optuna takes no notice of operations on studies and trials that there are not.
        if code in _STUDY_OPERATIONS:
            self._require_number(record, "study_id", self._studies)
        if code in _TRIAL_OPERATIONS:
            self._require_number(record, "trial_id", self._trials)
        self._studies += code == JournalOperation.CREATE_STUDY
        self._trials += code == JournalOperation.CREATE_TRIAL
        return record

    def _object(self, line: bytes) -> dict[str, Any]:
        try:
            record = _DECODER.decode(line.decode())
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"it is not JSON, or not UTF-8: {line[:60]!r}") from error
        if not isinstance(record, dict):
            raise self.damaged(f"it is not a JSON object: {line[:60]!r}")
        return record

    def _require_number(self, record: Mapping[str, Any], key: str, count: int) -> None:
        number = record.get(key)
        if type(number) is not int or not 0 <= number < count:
            raise self.damaged(f"its {key} is none of the {count} before it")

    def _require_journal(self) -> None:
        """Raises StorageError for a file whose first line is not an operation of Optuna's."""
        if not stat.S_ISREG(self._path.stat().st_mode):
            raise StorageError(
                f"{self._path} is not a regular file.",
                remedy="Give the path of a journal, or of a new file.",
            )
        with self._path.open("rb") as file:
            line = file.readline(MAX_LINE_BYTES)
        if line.endswith(b"\n"):
            is_journal = line.replace(b" ", b"").startswith(_FIRST_BYTES)
        else:  # the very first write was interrupted, or is under way
            is_journal = line[: len(_FIRST_BYTES)] == _FIRST_BYTES[: len(line)]
        if not is_journal:
            raise StorageError(
                f"{self._path} is not a journal of Optuna's: its first line is {line[:60]!r}. "
                "It was not changed.",
                remedy="Move it away, or restore the journal from a copy.",
            )

    def _repair(self) -> None:
        """Cuts off half a line: whoever began it was killed, since it does not hold the lock."""
        with self._usable():
            with self._path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                if file.read(1) in (b"\n", b""):
                    return
            self._require_journal()
        jsonl.repair(self._path, start=b"{")

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be used: {error.strerror}.",
                remedy="Make it readable and writable, or use another folder.",
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise StorageError(
                f"{self._path}.lock cannot be locked: {first_line(error)}.",
                remedy="Use a folder on a local disk that this user can write to.",
            ) from error
        try:
            yield
        finally:
            self._lock.release()
