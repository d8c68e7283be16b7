"""The file of a latency table: reading it line by line, locking it, and the errors about it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from nas.errors import RequestError, TableError
from nas.files.documents import ForeignFileError, read_bytes
from nas.files.foreign import without_mark
from nas.files.jsonl import is_json
from nas.files.locks import Lock, LockHeldError
from nas.files.paths import OpenedPath
from nas.latency.record import HEADER_START

LOCK_SECONDS = 2.0
"""How long a writer waits for another writer before it gives up."""


class TableFile:
    """The lines of a table, each of which is read once.

    Args:
        path: file of the table.

    Attributes:
        lines: number of lines that were read, including the header.
    """

    path = OpenedPath()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._offset = 0
        self._lacks_line_feed = False

    def unread(self) -> Iterator[tuple[bytes, str]]:
        """Yield each line that was not read yet, and its place: `mine.jsonl, line 3`.

        A line counts as read once the caller asks for the next one. A last line without a line feed
        is yielded if it is complete JSON. An incomplete last line is skipped, because another
        process may be writing it.

        Raises:
            TableError: the file cannot be read or became shorter, or its first line is neither
                complete nor the start of a header.
        """
        content = self._unread_bytes()
        if self._lacks_line_feed and content:
            if not content.startswith(b"\n"):
                raise damaged(f"{self.path}, line {self.lines} changed while it was in use")
            self._lacks_line_feed = False
            self._offset += 1
            content = content[1:]
        for line in BytesIO(content):
            where = f"{self.path}, line {self.lines + 1}"
            has_line_feed = line.endswith(b"\n")
            if not has_line_feed and not is_json(line):
                if self.lines or _is_incomplete_header(line):
                    return
                raise damaged(f"{where} is not JSON: {line[:60]!r}")
            yield line, where
            self.lines += 1
            self._offset += len(line)
            self._lacks_line_feed = not has_line_feed

    def _unread_bytes(self) -> bytes:
        if self._offset == 0:
            content = _content(self.path)
            text = without_mark(content)
            self._offset = len(content) - len(text)
            return text
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    raise damaged(f"{self.path} lost lines while it was in use")
                file.seek(self._offset)
                return file.read()
        except OSError as error:
            raise _unreadable(self.path, error) from None


def damaged(message: str) -> TableError:
    """Return the error for a file or a line that is not as it was written."""
    return TableError(
        f"{message}.",
        remedy="If it is a latency table, it was edited or damaged: restore it from a copy, or "
        "build it again in another file. Otherwise name another file.",
    )


def unwritable(path: Path, reason: str | None) -> TableError:
    """Return the error for a table that cannot be written."""
    return TableError(f"{path} cannot be written: {reason}.", remedy="Name another file or folder.")


def lock_of(path: Path) -> Lock:
    """Return the lock of a table, the same one for all symbolic links to it.

    Its file is hidden: `latency_tables/*` means tables.
    """
    own = Path(os.path.realpath(path))
    return Lock(own.with_name(f".{own.name}.lock"), is_removed=True)


@contextmanager
def locked(lock: Lock, path: Path) -> Iterator[None]:
    """Hold the lock of a table while inside.

    Raises:
        TableError: another process holds the lock, or it cannot be created.
    """
    try:
        lock.acquire(LOCK_SECONDS)
    except LockHeldError as error:
        raise TableError(
            f"Another process is writing {path}.",
            remedy="Wait until it is done; what it adds is kept.",
        ) from error
    except OSError as error:
        raise unwritable(path, error.strerror) from None
    try:
        yield
    finally:
        lock.release()


def can_begin(path: Path) -> bool:
    """Return whether a new table may be written to `path`.

    It may if there is no file, an empty file, or only an incomplete header, which a process leaves
    that is killed at once.

    Raises:
        RequestError: no file can have this path.
        TableError: the file cannot be read.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(
            f"There can be no latency table {path}: {reason}.",
            remedy="Name a folder or a .jsonl file.",
        ) from None
    return _is_incomplete_header(without_mark(_content(path)))


def _content(path: Path) -> bytes:
    """Return the content of a file. Raises TableError if it cannot be read."""
    try:
        return read_bytes(path)
    except ForeignFileError as error:
        raise TableError(f"{path} is no latency table: {error.strerror}.") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> TableError:
    return TableError(
        f"{path} cannot be read: {error.strerror}.", remedy="Name a file that can be read."
    )


def _is_incomplete_header(content: bytes) -> bool:
    """Return whether the content of a file is the start of a header, and not a complete one."""
    is_ours = content.startswith(HEADER_START) or HEADER_START.startswith(content)
    # A header has no other characters: `json.dumps` escapes them.
    if not is_ours or not content.isascii() or not content.decode("ascii").isprintable():
        return False
    try:
        json.JSONDecoder().raw_decode(content.decode("ascii"))
    except (ValueError, RecursionError):
        return True
    return False
