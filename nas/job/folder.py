"""The run folder: its paths, its lock, `run.json` and the seconds of each stage."""

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
"""Packages that decide a run's results; a runtime adds its own packages when it is opened."""


@dataclass(frozen=True)
class RunPaths:
    """The paths in a run folder."""

    path: Path

    @property
    def journal(self) -> Path:
        """The Optuna journal with the trials of the search."""
        return self.path / "study.journal"

    @property
    def measurements(self) -> Path:
        """The log of every whole-network timing."""
        return self.path / "measurements.jsonl"

    @property
    def trials(self) -> Path:
        """The table of all candidates."""
        return self.path / "trials.csv"

    def supernet(self, space: str) -> Path:
        """Return the folder of the supernet of a space."""
        return self.path / "supernets" / space


@dataclass(frozen=True)
class RunFolder(RunPaths):
    """The folder of one job with its `run.json`, locked for this process by `claim`."""

    record: RunRecord

    def save(self) -> None:
        """Write `run.json`, replacing it atomically."""
        files.replace(self.path / "run.json", to_json(self.record))

    def require(self, key: str, value: Any, remedy: str) -> None:
        """Record a fact of the run, or compare it with the one that an earlier start recorded.

        Args:
            key: name of the fact, such as `data`.
            value: value of the fact, as JSON can hold it.
            remedy: what the user should do if they differ.

        Raises:
            RunFolderError: they differ.
        """
        recorded = self.record.facts.get(key, value)
        if recorded != value:
            raise RunFolderError(
                f"{self.path} was started with {key} {recorded}; now it is {value}.", remedy=remedy
            )
        self.record.facts = {**self.record.facts, key: value}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, for `run.json`.

        The seconds of interrupted starts add up, except those of a killed process.
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
    """Lock a run folder for this process: a new one, or one of the same job.

    Args:
        path: path of the folder; it is made if missing.
        settings: the settings of the job.
        command: command that the run names as what made it.

    Raises:
        RunFolderError: another process works in the folder, it belongs to another job, or it holds
            other files.
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
        yield RunFolder(path, _start_record(path, settings, command))
    finally:
        lock.release()


def _require_run_or_empty(path: Path) -> None:
    """Raise RunFolderError for a folder that holds files but no job."""
    names = [entry.name for entry in path.iterdir()]
    if "job.toml" not in names and any(not name.startswith(".") for name in names):
        raise RunFolderError(
            f"{path} holds other files and no job.", remedy="Use an empty folder with --out."
        )


def _has_results(path: Path) -> bool:
    """Return whether a run folder holds more than its job and its record."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    return bool(names - {"job.toml", "run.json"})


def _start_record(path: Path, settings: JobSettings, command: str) -> RunRecord:
    job_file = path / "job.toml"
    earlier = saved_settings(path)
    record = _read_record(path)
    job = JobSummary.model_validate(settings.model_dump(mode="json"))
    # The job file may be corrected until the job has read its data and spaces.
    has_begun = _has_results(path) or (record is not None and "spaces" in record.facts)
    if earlier is not None and has_begun:
        searched = record is not None and record.study is not None
        _require_same_job(path, earlier, settings, searched=searched)
    else:
        record = None
    if earlier is None or earlier.model_dump() != settings.model_dump():
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
        versions=installed_versions(),
        stages={},
        facts={},
    )


def saved_settings(folder: Path) -> JobSettings | None:
    """Return the settings in a run folder; None if it has no job file.

    Raises:
        RunFolderError: the job file is damaged.
    """
    path = folder / "job.toml"
    if not os.path.isfile(path):
        return None
    try:
        return load_job(path)
    except JobFileError as error:
        raise RunFolderError(
            f"{folder} holds a damaged job file. {error.message}",
            remedy="Restore it, or start again in another folder with --out.",
        ) from None


def saved_space_files(folder: Path) -> list[Path] | None:
    """Return the paths of a run's copies of its space files, in the order of the job.

    The result is None before the run has read its spaces.
    """
    record = _read_record(folder)
    if record is None or record.spaces is None:
        return None
    return [folder / "spaces" / f"{name}.py" for name in record.spaces]


def _read_record(folder: Path) -> RunRecord | None:
    return read_run(folder) if (folder / "run.json").exists() else None


def _require_same_job(
    folder: Path, earlier: JobSettings, settings: JobSettings, *, searched: bool
) -> None:
    fixed, earlier_fixed = (_fixed_settings(each, searched) for each in (settings, earlier))
    different = [name for name in fixed if fixed[name] != earlier_fixed[name]]
    if different:
        raise RunFolderError(
            f"{folder} belongs to a job with another {', '.join(different)}.",
            remedy="Use another folder with --out, or the job file that the run was started with.",
        )


def _fixed_settings(settings: JobSettings, searched: bool) -> dict[str, Any]:
    """Return the settings that may not change between two starts of a run.

    These are all but the length of the search, the number of its workers and the formats of the
    export. Settings of the search are fixed once it has begun.
    """
    fixed = settings.model_dump()
    del fixed["finish"]["export"]
    search = fixed.pop("search")
    for name in ("trials", "minutes", "stall", "workers"):
        del search[name]
    return fixed | ({f"search.{key}": search[key] for key in search} if searched else {})


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's results."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
