"""JSON Lines files that survive a killed process: whole lines, flushed and synced to the disk."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.documents import D, Format
from nas.errors import NasError
from nas.files import named

START = b'{"schema": '
"""How the first line of these files begins, unless the file says otherwise."""


def repair(path: Path, start: bytes = START) -> bool:
    """Mend the last line of a file that a killed process left without its line feed.

    A line that is whole JSON gets its line feed; another one is removed. A warning says so.

    Args:
        path: the file; a missing file is left missing.
        start: how the first line of such a file begins. A file that begins otherwise belongs to
            somebody else.

    Returns:
        Whether the file was changed.

    Raises NasError for a file that begins otherwise; nothing in it is changed.
    """
    if not path.exists():
        return False
    with path.open("rb") as file:
        beginning = file.read(len(start))
        if beginning != start[: len(beginning)]:
            raise NasError(
                f"{path} begins with {beginning!r}, not with {start!r}: it is another kind of "
                "file, and was not changed.",
                remedy="Name another file.",
            )
        last = _last_line(path, file)
    if not last:
        return False
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if is_json(last):
            file.write(b"\n")
            what = "had no line feed, which was added"
        else:
            file.truncate(end - len(last))
            what = f"was half-written ({len(last)} bytes) and was removed"
        file.flush()
        os.fsync(file.fileno())
    warnings.warn(f"{path}: the last line {what}.", stacklevel=2)
    return True


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record as a whole line and wait until it is on the disk.

    Raises OSError; the lines before stay, and the next `repair` removes a half-written one.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise named(error, path) from None


def read(path: Path, kind: Format[D]) -> list[D]:
    """Return the records of a file; none for a missing file. The file is not changed.

    A last line without a line feed may still be written by another process: it counts if it is a
    record, and is skipped with a warning otherwise.

    Raises the error of `kind` for a line that is no record; the message names file and line.
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


def _last_line(path: Path, file: Any) -> bytes:
    """Return what stands behind the last line feed of an open file."""
    end = file.seek(0, os.SEEK_END)
    line = b""
    while len(line) < end:
        step = min(1 << 16, end - len(line))
        file.seek(end - len(line) - step)
        block = file.read(step)
        _, found, rest = block.rpartition(b"\n")
        line = (rest if found else block) + line
        if found:
            break
    return line


def is_json(line: bytes) -> bool:
    """Return whether a line is one whole JSON value."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
