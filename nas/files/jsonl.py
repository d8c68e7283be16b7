"""Reads and appends JSON Lines files; a killed process leaves at most its last line unfinished.

Every line is written as a whole, flushed, and synced to the disk.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.files import with_path
from nas.files.documents import DocumentType, Format
from nas.files.foreign import HEAD_BYTES, foreign_kind, without_mark

DEFAULT_START = b'{"schema": '
"""Start of the first line of most files."""


def repair(path: Path, start: bytes = DEFAULT_START) -> bool:
    """Repair a file whose last line a killed process left without a line feed.

    If that line is whole JSON, the line feed is added; otherwise the line is removed. A warning
    says which.

    Args:
        path: path of the file, which may be missing.
        start: start of the first line. A file that starts otherwise is of another kind.

    Returns:
        Whether the file was changed.

    Raises NasError for a file of another kind; it is not changed.
    """
    if not path.exists():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        actual = without_mark(head)[: len(start)]
        if actual != start[: len(actual)]:
            kind = foreign_kind(head) or "another kind of file"
            raise NasError(
                f"{path} begins with {actual!r}, not with {start!r}: it is {kind}. It was not "
                "changed.",
                remedy="Name another file, or move this one away.",
            )
        content = head + file.read()
    last = content.rpartition(b"\n")[2]
    if not last:
        return False
    with path.open("rb+") as file:
        if is_json(last):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            change = "had no line feed, which was added"
        else:
            file.truncate(len(content) - len(last))
            change = f"was half-written ({len(last)} bytes) and was removed"
        file.flush()
        os.fsync(file.fileno())
    warnings.warn(f"{path}: the last line {change}.", stacklevel=2)
    return True


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line, and wait until it is on the disk.

    Raises OSError if that fails. The lines before stay; `repair` removes a line that was
    written in part. Raises ValueError for a record with a number that is not finite.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise with_path(error, path) from None


def read(path: Path, kind: Format[DocumentType]) -> list[DocumentType]:
    """Return the records of a file, which may be missing. The file is not changed.

    Another process may still be writing a last line without a line feed. That line is read if it is
    whole JSON, and skipped with a warning otherwise.

    Raises the error of `kind` for a line that is not a record; the message names file and line.
    """
    if not path.exists():
        return []
    *lines, last = kind.content(path).split(b"\n")
    records = [kind.parse(line, f"{path}, line {at}") for at, line in enumerate(lines, start=1)]
    if last and is_json(last):
        records.append(kind.parse(last, f"{path}, line {len(lines) + 1}"))
    elif last:
        warnings.warn(f"{path}: the last line is half-written and was skipped.", stacklevel=2)
    return records


def is_json(line: bytes) -> bool:
    """Return whether a line is one whole JSON value."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
