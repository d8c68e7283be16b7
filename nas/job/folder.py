"""A run's folder: who owns it, what is in `run.json`, and how long each stage took."""

from __future__ import annotations

import json
import platform
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from nas import files
from nas.errors import RunFolderError
from nas.job.settings import JobSettings
from nas.report.page import SCHEMA, read_run

_VERSIONS = ("hardware-nas", "torch", "optuna", "apache-tvm", "apache-tvm-ffi", "numpy", "datasets")


class RunFolder:
    """The folder of one job; made by `claim`."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record

    @property
    def journal(self) -> Path:
        """The search's trials, an Optuna journal."""
        return self.path / "study.journal"

    @property
    def measurements(self) -> Path:
        """Every whole-network timing."""
        return self.path / "measurements.jsonl"

    @property
    def trials(self) -> Path:
        """All candidates as a table."""
        return self.path / "trials.csv"

    def supernet(self, space: str) -> Path:
        """The folder of a space's supernet."""
        return self.path / "supernets" / space

    def save(self) -> None:
        """Writes `run.json`, replacing it at once."""
        files.replace(self.path / "run.json", json.dumps(self.record, indent=1) + "\n")

    def require(self, key: str, value: Any, remedy: str) -> None:
        """Keeps a fact of the run, or checks it against the one kept by an earlier start.

        Raises RunFolderError if they differ.
        """
        kept = self.record.setdefault("facts", {}).setdefault(key, value)
        if kept != value:
            raise RunFolderError(
                f"{self.path} was started with {key} {kept}; now it is {value}.", remedy=remedy
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Times a stage; the yielded record is kept in `run.json`.

        Seconds add up over interrupted starts, those of a killed process excepted.
        """
        record: dict[str, Any] = self.record["stages"].setdefault(name, {"seconds": 0.0})
        start = time.perf_counter()
        try:
            yield record
        finally:
            record["seconds"] = round(record["seconds"] + time.perf_counter() - start, 3)
            self.save()


@contextmanager
def claim(path: Path, settings: JobSettings, command: str) -> Iterator[RunFolder]:
    """Takes a run folder for this process: a new one, or one that the same job began.

    Raises RunFolderError if another process works in it, it belongs to another job, or it holds
    something else.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise RunFolderError(
            f"Another process is running a job in {path}.",
            remedy="Wait for it, or use another folder with --out.",
        ) from error
    try:
        files.discard_unfinished(path)
        yield RunFolder(path, _opened(path, settings, command))
    finally:
        lock.release()


def _opened(path: Path, settings: JobSettings, command: str) -> dict[str, Any]:
    job_file = path / "job.toml"
    kept = kept_settings(path)
    if kept is not None:
        _require_same_job(path, kept, settings, searched="study" in _record(path))
        if kept.model_dump() != settings.model_dump():
            files.replace(job_file, settings.to_toml())
    elif any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise RunFolderError(
            f"{path} holds other files and no job.", remedy="Use an empty folder with --out."
        )
    else:
        files.replace(job_file, settings.to_toml())
    if (path / "run.json").exists():
        return {**read_run(path), "job": settings.model_dump(mode="json")}
    return {
        "schema": SCHEMA,
        "name": settings.name,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": settings.model_dump(mode="json"),
        "versions": versions(),
        "stages": {},
    }


def kept_settings(folder: Path) -> JobSettings | None:
    """The settings that a run folder keeps; None where it has no job.

    Raises RunFolderError for a job file that is damaged.
    """
    path = folder / "job.toml"
    if not path.is_file():
        return None
    try:
        return JobSettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}.") from error


def kept_spaces(folder: Path) -> list[Path] | None:
    """A run's own copies of its spaces, in the job's order; None before it has read them."""
    record = _record(folder)
    if "spaces" not in record:
        return None
    return [folder / "spaces" / f"{name}.py" for name in record["spaces"]]


def _record(folder: Path) -> dict[str, Any]:
    return read_run(folder) if (folder / "run.json").exists() else {}


def _require_same_job(
    folder: Path, kept: JobSettings, settings: JobSettings, *, searched: bool
) -> None:
    mine, theirs = _fixed(settings, searched), _fixed(kept, searched)
    different = [name for name in mine if mine[name] != theirs[name]]
    if different:
        raise RunFolderError(
            f"{folder} belongs to a job with another {', '.join(different)}.",
            remedy="Use another folder with --out, or the job file it was started with.",
        )


def _fixed(settings: JobSettings, searched: bool) -> dict[str, Any]:
    """What may not change between starts: all but how long is searched, and by whom.

    Before the search has begun, nothing of it is fixed.
    """
    fixed = settings.model_dump()
    search = fixed.pop("search")
    for name in ("trials", "minutes", "stall", "workers"):
        del search[name]
    return fixed | ({f"search.{key}": search[key] for key in search} if searched else {})


def versions() -> dict[str, str]:
    """Of Python and of what decides a run's results."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
