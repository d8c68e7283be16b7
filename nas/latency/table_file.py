"""Reads the file of a latency table line by line, and says what may become a table.

Nothing here changes a file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nas.documents import MAX_BYTES
from nas.errors import RequestError, TableError
from nas.jsonl import is_json
from nas.latency.record import HEADER_START, ROW_START

MAX_LINE_BYTES = 1 << 20
"""Longest line that is read: a kernel's row has about 400 bytes, one with a tuner's trace more."""


class TableFile:
    """The lines of a table's file, each read once.

    Args:
        path: the file.

    Attributes:
        lines: how many lines were read, the header included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._offset = 0
        self._lacks_line_feed = False

    def unread(self) -> Iterator[tuple[bytes, str]]:
        """Yield each line that was not read yet, and where it stands: `mine.jsonl, line 3`.

        A line counts as read once the caller asks for the next one. A last line without a line
        feed is yielded if it is whole JSON. The beginning of a line of ours is left: another
        process may be writing it.

        Raises TableError for a file that cannot be read, or shrank; for a line that is too long;
        and for a last line that is neither whole nor the beginning of one of ours.
        """
        with _opened(self.path) as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                raise damaged(f"{self.path} lost lines while it was in use")
            file.seek(self._offset)
            if self._lacks_line_feed and (feed := file.read(1)):
                if feed != b"\n":
                    raise damaged(f"{self.path}, line {self.lines} changed while it was in use")
                self._lacks_line_feed = False
                self._offset += 1
            while line := file.readline(MAX_LINE_BYTES + 1):
                where = f"{self.path}, line {self.lines + 1}"
                if len(line) > MAX_LINE_BYTES:
                    raise damaged(f"{where} has more than {MAX_LINE_BYTES >> 20} MiB")
                has_line_feed = line.endswith(b"\n")
                if not has_line_feed and not is_json(line):
                    if _is_torn(line, ROW_START if self.lines else HEADER_START):
                        return
                    raise damaged(f"{where} is not JSON: {line[:60]!r}")
                yield line, where
                self.lines += 1
                self._offset += len(line)
                self._lacks_line_feed = not has_line_feed


def damaged(message: str) -> TableError:
    """Return the error for a file, or a line, that is not as it was written."""
    return TableError(
        f"{message}.",
        remedy="If it is a latency table, it was edited or damaged: build it again. "
        "Otherwise name another file.",
    )


def can_begin(path: Path) -> bool:
    """Return whether a new table may be written to `path`.

    It may where there is no file, an empty one, or nothing but the beginning of a header: what a
    process that was killed at once leaves.

    Raises RequestError for a path that no file can have, TableError for a file that cannot be read.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"There can be no latency table {path}: {reason}.",
            remedy="Name a folder or a .jsonl file.",
        ) from None
    with _opened(path) as file:
        content = file.read(MAX_LINE_BYTES)
    return _is_torn(content, HEADER_START)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise TableError(f"{path} is a folder.", remedy="Name a latency table, a file.")
        if not stat.S_ISREG(status.st_mode):
            raise TableError(f"{path} is no regular file.", remedy="Name a latency table.")
        if status.st_size > MAX_BYTES:
            raise damaged(f"{path} has more than {MAX_BYTES >> 20} MiB")
        file = path.open("rb")
    except OSError as error:
        raise TableError(
            f"{path} cannot be read: {error.strerror}.", remedy="Name a file that can be read."
        ) from None
    with file:
        yield file


def _is_torn(line: bytes, start: bytes) -> bool:
    """Return whether a line is the beginning of one of ours, and not a whole one.

    Args:
        line: the line, without a line feed.
        start: how ours begin.
    """
    begins = line.startswith(start) or start.startswith(line)
    # Ours have no other characters: `json.dumps` escapes them.
    if not begins or not line.isascii() or not line.decode("ascii").isprintable():
        return False
    try:
        json.JSONDecoder().raw_decode(line.decode("ascii"))
    except (ValueError, RecursionError):
        return True
    return False
