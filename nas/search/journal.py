"""The journal file of a search: Optuna's format, with every line validated as it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from optuna.storages import journal as optuna_journal
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

from nas.errors import StorageError, first_line
from nas.files import jsonl, with_path
from nas.files.foreign import HEAD_BYTES, foreign_kind

DAMAGE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Exceptions that Optuna raises when it reads records that it did not write."""

RESTORE_REMEDY = "Restore it from a copy, or start again in another folder with --out."

_FIRST_BYTES = b'{"op_code":'


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
        except DAMAGE_ERRORS as error:
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
    is removed first. Optuna skips a line that is not JSON if it is the last one; here it is
    an error, which names the line.

    Args:
        path: path of the journal. An empty file is created if there is none.

    Raises StorageError for a file that is not a journal of Optuna's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # The ends of the lines that were read, in bytes.
        self._ends = [0]
        with self._file_errors():
            super().__init__(str(path), lock_obj=_FileLock(path))
            self._require_journal()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the operations from a number on, at most the one after those that were read."""
        del self._ends[log_number_from + 1 :]
        with self._file_errors(), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._ends[-1]:
                raise StorageError(
                    f"{self._path} lost lines while it was in use.", remedy=RESTORE_REMEDY
                )
            file.seek(self._ends[-1])
            for line in file:
                if not line.endswith(b"\n"):
                    return  # Another process may still be writing it.
                self._ends.append(self._ends[-1] + len(line))
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise self.damage_error(f"it is not JSON: {line[:60]!r}") from error
                yield record

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
            f"{self._path}, line {len(self._ends) - 1} is damaged: {reason}.",
            remedy=RESTORE_REMEDY,
        )

    def _require_journal(self) -> None:
        """Raise StorageError for a file whose first line is not an operation of Optuna's."""
        if not self._path.is_file():
            raise StorageError(
                f"{self._path} is not a regular file.",
                remedy="Give the path of a journal, or of a new file.",
            )
        with self._path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        start = head[: len(_FIRST_BYTES)]
        # The file may be empty, or its very first line torn.
        if not _FIRST_BYTES.startswith(start):
            kind = foreign_kind(head)
            raise StorageError(
                f"{self._path} is not a journal of Optuna's: "
                f"{f'it is {kind}' if kind else f'it begins with {start!r}'}. It was not changed.",
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
