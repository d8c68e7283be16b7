"""The journal file of a search: Optuna's format, with every line validated as it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from nas.errors import StorageError, first_line
from nas.files import jsonl
from nas.files.foreign import HEAD_BYTES, foreign_kind
from nas.files.locks import Lock

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


class JournalFile(BaseJournalBackend):
    """The file of an `optuna.storages.JournalStorage`, which survives a process that is killed.

    Optuna's own class leaves three problems that this class solves. A killed process leaves a lock
    behind, for which all others wait 30 seconds; here the operating system holds the lock. A killed
    process can leave a torn last line, to which Optuna appends the next record; here the torn line
    is removed first. Optuna skips a line that is not JSON if it is the last one; here it is
    an error, which names the line.

    A file of another program is refused, and nothing is written to it.

    Args:
        path: path of the journal. An empty file is created if there is none.

    Raises StorageError for a file that is not a journal of Optuna's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock(f"{path}.lock")
        # The ends of the lines that were read, in bytes.
        self._ends = [0]
        with self._file_errors():
            if not path.exists():
                path.touch()
            self._require_journal()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
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
        try:
            self._lock.acquire()
        except OSError as error:
            raise StorageError(
                f"{self._lock.path} cannot be locked: {first_line(error)}.",
                remedy="Use a folder on a local disk that this user can write to.",
            ) from error
        try:
            self._remove_torn_line()
            for log in logs:
                jsonl.append(self._path, log)
        finally:
            self._lock.release()

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

        A live process would hold the lock. A file that is missing or read-only is an error before
        anything is written.
        """
        with self._file_errors():
            self._path.open("rb+").close()
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
