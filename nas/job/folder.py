"""A run's folder: who owns it, what is in `run.json`, and how long each stage took."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from nas import files
from nas.errors import JobFileError, RunFolderError
from nas.job.settings import JobSettings, load_job
from nas.records import SCHEMA, JobSummary, RunRecord, StageRecord, read_run, to_json

_VERSIONS = ("hardware-nas", "torch", "optuna", "numpy", "pillow")
"""Packages that decide a run's results; the runtime adds its own when it is opened."""


@dataclass(frozen=True)
class RunPaths:
    """The paths in a run folder."""

    path: Path

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


@dataclass(frozen=True)
class RunFolder(RunPaths):
    """The folder of one job, with its `run.json`; made by `claim`."""

    record: RunRecord

    def save(self) -> None:
        """Writes `run.json`, replacing it at once."""
        files.replace(self.path / "run.json", to_json(self.record))

    def require(self, key: str, value: Any, remedy: str) -> None:
        """Keeps a fact of the run, or checks it against the one kept by an earlier start.

        Raises RunFolderError if they differ.
        """
        kept = self.record.facts.get(key, value)
        if kept != value:
            raise RunFolderError(
                f"{self.path} was started with {key} {kept}; now it is {value}.", remedy=remedy
            )
        self.record.facts = {**self.record.facts, key: value}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, for `run.json`.

        Seconds add up over interrupted starts, those of a killed process excepted.
        """
        stage = self.record.stages.setdefault(name, StageRecord(seconds=0.0))
        start = time.perf_counter()
        try:
            yield
        finally:
            stage.seconds = round(stage.seconds + time.perf_counter() - start, 3)
            self.save()


@contextmanager
def claim(path: Path, settings: JobSettings, command: str) -> Iterator[RunFolder]:
    """Takes a run folder for this process: a new one, or one that the same job began.

    Raises RunFolderError if another process works in it, it belongs to another job, or it holds
    something else.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file.", remedy="Name a folder with --out.")
    path.mkdir(parents=True, exist_ok=True)
    _require_run_or_empty(path)
    lock = filelock.FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise RunFolderError(
            f"Another process is running a job in {path}.",
            remedy="Wait for it, or use another folder with --out.",
        ) from error
    try:
        files.remove_unfinished(path)
        yield RunFolder(path, _opened(path, settings, command))
    finally:
        lock.release()


def _require_run_or_empty(path: Path) -> None:
    """Raise RunFolderError for a folder with somebody else's files, before any is made in it."""
    names = [entry.name for entry in path.iterdir()]
    if "job.toml" not in names and any(not name.startswith(".") for name in names):
        raise RunFolderError(
            f"{path} holds other files and no job.", remedy="Use an empty folder with --out."
        )


def _has_results(path: Path) -> bool:
    """Return whether a run folder holds more than its job and its record."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    return bool(names - {"job.toml", "run.json"})


def _opened(path: Path, settings: JobSettings, command: str) -> RunRecord:
    job_file = path / "job.toml"
    kept = kept_settings(path)
    record = _record(path)
    job = JobSummary.model_validate(settings.model_dump(mode="json"))
    # A job that ended before it had read its data made nothing: its file may be corrected.
    has_begun = _has_results(path) or (record is not None and "spaces" in record.facts)
    if kept is not None and has_begun:
        searched = record is not None and record.study is not None
        _require_same_job(path, kept, settings, searched=searched)
    else:
        record = None
    if kept is None or kept.model_dump() != settings.model_dump():
        files.replace(job_file, settings.to_toml())
    if record is not None:
        record.job = job
        return record
    return RunRecord(
        schema=SCHEMA,
        name=settings.name,
        command=command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        job=job,
        versions=versions(),
        stages={},
        facts={},
    )


def kept_settings(folder: Path) -> JobSettings | None:
    """The settings that a run folder keeps; None where it has no job.

    Raises RunFolderError for a job file that is damaged.
    """
    path = folder / "job.toml"
    if not os.path.isfile(path):
        return None
    try:
        return load_job(path)
    except JobFileError as error:
        raise RunFolderError(
            f"{folder} keeps a damaged job file. {error.message}",
            remedy="Restore it, or start again in another folder with --out.",
        ) from None


def kept_spaces(folder: Path) -> list[Path] | None:
    """A run's own copies of its spaces, in the job's order; None before it has read them."""
    record = _record(folder)
    if record is None or record.spaces is None:
        return None
    return [folder / "spaces" / f"{name}.py" for name in record.spaces]


def _record(folder: Path) -> RunRecord | None:
    return read_run(folder) if (folder / "run.json").exists() else None


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
