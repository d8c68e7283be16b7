"""What changed in a job file between two starts of a run, and whether the run can continue.

The fields of `nas.run.settings` say how long each key may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.display.formatting import listed
from nas.errors import RunFolderError, printable
from nas.files.documents import shortened
from nas.job.settings_errors import REPEATED_TABLES
from nas.run.keys import Stage
from nas.run.settings import KEYS, JobSettings


def values_by_key(settings: JobSettings) -> dict[str, Any]:
    """Return the value of every key of a job file by its path, as JSON can hold it.

    The value of a key of a repeated table, such as `space.name`, is a list.
    """
    tables = settings.model_dump(mode="json")
    return {path: _value(tables, path.split(".")) for path in KEYS}


def _value(table: Any, path: Sequence[str]) -> Any:
    """Return what is at a path below a table; None if a table on the way is not set."""
    if not path or table is None:
        return table
    if isinstance(table, list):
        return [_value(each, path) for each in table]
    return _value(table[path[0]], path[1:])


def limits_of(settings: JobSettings) -> dict[str, Any]:
    """Return the limits of a search by the paths of their keys."""
    values = values_by_key(settings)
    return {path: values[path] for path, key in KEYS.items() if key.is_limit}


def require_continuable(
    folder: Path, earlier: JobSettings, now: JobSettings, *, searched: bool
) -> None:
    """Check that a run can be continued with a job file that may have changed.

    Args:
        folder: path of the run folder, for the message.
        earlier: the job that the run was started with.
        now: the job of this start.
        searched: whether the search of the run has begun.

    Raises:
        RunFolderError: a key has changed that no longer may. The message names it with both values,
            and the keys that may change.
    """
    old, new = values_by_key(earlier), values_by_key(now)
    fixed: tuple[Stage | None, ...] = ("training", "search") if searched else ("training",)
    refused = [
        path for path, key in KEYS.items() if key.fixed_from in fixed and old[path] != new[path]
    ]
    if not refused:
        return
    texts = [
        f"{_in_job_file(path)} was {_display(old[path])} and is now {_display(new[path])}"
        for path in refused
    ]
    stage = "search" if all(KEYS[path].fixed_from == "search" for path in refused) else "training"
    raise RunFolderError(
        f"{folder} cannot continue with this job: {', '.join(texts)}. "
        f"{'They are' if len(texts) > 1 else 'It is'} fixed since the {stage} of this run began.",
        remedy=f"Start another run with --out, or restore "
        f"{'the old values' if len(texts) > 1 else 'the old value'}. This run can continue with "
        f"other values of {_describe_free_keys()}.",
    )


def _in_job_file(path: str) -> str:
    """Return a key as it stands in a job file: `[training] epochs`."""
    table, _, name = path.rpartition(".")
    if not table:
        return name
    return f"[[{table}]] {name}" if table in REPEATED_TABLES else f"[{table}] {name}"


def _display(value: Any) -> str:
    if value in (None, [], {}):
        return "not set"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_display(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_display, value))
    return printable(shortened(value))


def _describe_free_keys() -> str:
    """Return the keys that may always change, by table. The limits are named as one."""
    by_table: dict[str, list[str]] = {}
    for path, key in KEYS.items():
        if key.fixed_from is None:
            table, _, name = path.rpartition(".")
            name = "limits" if key.is_limit else name
            names = by_table.setdefault(table, [])
            names += [name] if name not in names else []
    return ", ".join(
        f"[{table}] {listed(names)}" if table else ", ".join(names)
        for table, names in by_table.items()
        if table not in REPEATED_TABLES
    )
