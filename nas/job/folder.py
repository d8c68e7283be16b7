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
from nas.documents import SCHEMA, to_json
from nas.errors import JobFileError, RunFolderError
from nas.job.changes import deciding_values, require_continuable
from nas.job.keys import Decision
from nas.job.settings import JobSettings, load_job
from nas.run.record import JobSummary, RunRecord, StageRecord, read_run

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
    has_begun: bool = False
    """Whether the run has begun to train. Until then its job can still be corrected."""

    def save(self) -> None:
        """Write `run.json`, replacing it atomically."""
        files.replace(self.path / "run.json", to_json(self.record))

    def require(self, key: str, value: Any, remedy: str) -> None:
        """Record a fact of the run, or compare it with the one that an earlier start recorded.

        Before the run has begun to train, another fact is recorded, and the run is planned anew.

        Args:
            key: name of the fact, such as `data`.
            value: value of the fact, as JSON can hold it.
            remedy: what the user should do if they differ.

        Raises:
            RunFolderError: they differ.
        """
        recorded = self.record.facts.get(key, value)
        if recorded != value:
            if self.has_begun:
                raise RunFolderError(
                    f"{self.path} was started with {key} {recorded}; now it is {value}.",
                    remedy=remedy,
                )
            self.record.plan = None
        self.record.facts = {**self.record.facts, key: value}

    def is_decided(self, decision: Decision, settings: JobSettings) -> bool:
        """Return whether a decision was made by a job with the same values of its keys."""
        return self.record.decided_by.get(decision) == deciding_values(settings, decision)

    def note_decision(self, decision: Decision, settings: JobSettings) -> None:
        """Record that a decision was made by a job; see `nas.job.keys`."""
        values = deciding_values(settings, decision)
        self.record.decided_by = {**self.record.decided_by, decision: values}

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
        has_begun = _has_begun(path)
        record = _start_record(path, settings, command, has_begun=has_begun)
        yield RunFolder(path, record, has_begun)
    finally:
        lock.release()


def _require_run_or_empty(path: Path) -> None:
    """Raise RunFolderError for a folder that holds files but no job."""
    names = [entry.name for entry in path.iterdir()]
    if "job.toml" not in names and any(not name.startswith(".") for name in names):
        raise RunFolderError(
            f"{path} holds other files and no job.", remedy="Use an empty folder with --out."
        )


def _has_begun(path: Path) -> bool:
    """Return whether a run folder holds a file that took training or searching to make."""
    made_before = {"job.toml", "run.json", "spaces"}
    return any(
        file.is_file()
        for entry in path.iterdir()
        if entry.name not in made_before and not entry.name.startswith(".")
        for file in (entry, *entry.rglob("*"))
    )


def _start_record(path: Path, settings: JobSettings, command: str, *, has_begun: bool) -> RunRecord:
    earlier = saved_settings(path)
    record = _read_record(path)
    if earlier is None:
        record = None
    else:
        searched = record is not None and record.study is not None
        try:
            require_continuable(path, earlier, settings, searched=searched)
        except RunFolderError:
            if has_begun:
                raise
            record = None  # Nothing was made by the earlier job: this is another one.
    if earlier is None or earlier.model_dump() != settings.model_dump():
        files.replace(path / "job.toml", settings.to_toml())
    job = JobSummary.model_validate(settings.model_dump(mode="json"))
    if record is not None:
        record.job, record.name = job, settings.name
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


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's results."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
