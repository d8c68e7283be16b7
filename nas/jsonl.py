"""JSON Lines files that survive a kill: whole lines, flushed and synced, a torn tail repaired."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.files import named


def repair(path: Path) -> bool:
    """Cuts off a last line that a killed process left half-written; says so with a warning.

    Returns whether anything was cut. A missing file is left missing.
    """
    if not path.exists():
        return False
    with path.open("rb+") as file:
        content = file.read()
        if not content or content.endswith(b"\n"):
            return False
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        file.flush()
        os.fsync(file.fileno())
    warnings.warn(
        f"{path}: the last line was half-written ({len(content) - whole} bytes) and was removed.",
        stacklevel=2,
    )
    return True


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one record as a whole line and waits until it is on the disk.

    Raises OSError, what was there kept; a torn line is cut off by the next `repair`.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise named(error, path) from None


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none if it is missing. Repairs a torn last line first.

    Raises NasError for a line that is no JSON object, naming it.
    """
    repair(path)
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise NasError(
                f"{path}, line {number} is not JSON: {line[:60]!r}.",
                remedy="Remove the line, or restore the file.",
            ) from error
        if not isinstance(record, dict):
            raise NasError(f"{path}, line {number} is not a JSON object: {line[:60]!r}.")
        records.append(record)
    return records
