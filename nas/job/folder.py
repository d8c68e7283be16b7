"""`JobRun`: a run that a job works on, its facts and the seconds of its stages."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import files
from nas.display.formatting import format_duration
from nas.errors import RunFolderError
from nas.job import planning
from nas.job.changes import limits_of, require_continuable
from nas.job.inputs import needed_kernels
from nas.job.live import LiveReport
from nas.job.settings import JOB_FILE
from nas.latency import Kernel, configured_runtime
from nas.run.progress import JobProgress, SilentProgress
from nas.run.record import RunRecord, StageRecord, read_run
from nas.run.run import Run
from nas.run.settings import JobSettings

if TYPE_CHECKING:
    from nas.pretrained import PublishedWeights

_VERSIONS = ("hardware-nas", "torch", "optuna", "numpy", "pillow")
"""Packages that decide a run's results; a runtime adds its own packages when it is opened."""


MAX_OVERTIME, MAX_OVERTIME_S = 1.1, 5.0
"""Factor, and seconds beside it, by which a stage may exceed its share before the user is told."""

OVERTIME_REASONS = {
    planning.TABLE: "each kernel is compiled and timed once in any case",
    planning.SEARCH: "a trial that has begun is completed",
    planning.MEASURE: "each network is compiled and timed once in any case",
    planning.FINALISTS: "one network is trained and exported in any case",
}
"""Why a stage may take longer than its share of the budget."""


class JobRun(Run):
    """A run that a job of this process works on, see `claim`.

    Attributes:
        has_begun: whether the run has begun to train. Until then its job can still be corrected.
        has_failed: whether the job has failed or was interrupted.
        progress: receives stages, progress and messages.
        live_report: writes the report meanwhile.
        published: weights from which supernets start, by space; set by `open_data`.
    """

    published: Mapping[str, PublishedWeights]

    def __init__(
        self, path: Path, settings: JobSettings, command: str, progress: JobProgress
    ) -> None:
        super().__init__(path)
        self.progress = progress
        self.has_begun = _has_begun(path)
        self._record = _start_record(path, settings, command, has_begun=self.has_begun)
        self._earlier_s = sum(each.seconds for each in self._record.stages.values())
        self._start = time.perf_counter()
        device = settings.device
        figures = configured_runtime(device.runtime, **device.runtime_options()).figures
        if figures:
            self._record.figures = list(figures)
        self.has_failed = False
        self.published = {}
        self.live_report = LiveReport(self, progress)

    @property
    def is_running(self) -> bool:
        """Whether a process works on the run: this one does, until its job has failed."""
        return not self.has_failed

    @property
    def record(self) -> RunRecord:
        """The record of the run, which the job changes; see `save`."""
        return self._record

    @cached_property
    def kernels(self) -> dict[str, list[Kernel]]:
        """Every kernel that the architectures of the spaces can need, once each, by dtype."""
        batch = self.settings.device.batch
        return {
            dtype: needed_kernels(self.spaces.values(), runtime, batch)
            for dtype, runtime in self.runtimes.items()
        }

    @property
    def lacks_kernels(self) -> bool:
        """Whether the latency tables are not complete yet."""
        return any(
            dtype not in self.tables or self.tables[dtype].missing(own)
            for dtype, own in self.kernels.items()
        )

    def require(self, what: str, recorded: object, now: object, remedy: str) -> None:
        """Check that a run that has begun to train works on what it was started with.

        Args:
            what: what is compared, such as `data`.
            recorded: what an earlier start recorded; None if none has.
            now: what it is now.
            remedy: what the user should do if they differ.

        Raises:
            RunFolderError: they differ.
        """
        if self.has_begun and recorded not in (None, now):
            if isinstance(recorded, dict) and isinstance(now, dict):
                names = [each for each in recorded | now if recorded.get(each) != now.get(each)]
                recorded, now = (
                    ", ".join(f"{each} {values.get(each, 'not set')}" for each in names)
                    for values in (recorded, now)
                )
            raise RunFolderError(
                f"{self.path} was started with {what} {recorded}; now it is {now}.", remedy=remedy
            )

    @property
    def has_same_limits(self) -> bool:
        """Whether the trials of the run were judged by the limits of this job."""
        return self.record.limits == limits_of(self.settings)

    def seconds_before(self, stage: str) -> float:
        """Return the seconds that the stages before one took, in all starts of the run."""
        return planning.spent_before(self.record.stages, stage)

    def seconds_for(self, stage: str) -> float:
        """Return the seconds that are left of the share of a stage in the budget."""
        own = self.record.stages.get(stage, StageRecord())
        return planning.share_s(self.settings, stage, self.seconds_before(stage)) - own.seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left of the budget; below 0 after its end.

        What is not within a stage counts, too, as far as it belongs to this start.
        """
        spent_s = self._earlier_s + time.perf_counter() - self._start
        return self.settings.budget_s - spent_s

    @contextmanager
    def stage(self, name: str, *, ends: bool = True) -> Iterator[None]:
        """Time a stage, for `run.json`, and say if it took more than its share of the budget.

        The seconds of interrupted starts add up, except those of a killed process. The report that
        follows a stage does not count.

        Args:
            name: name of the stage.
            ends: whether it ends with this, and those before it have ended; see `end_stages`.
        """
        limit_s = self.seconds_for(name) if name in planning.SHARES else math.inf
        stage = self.record.stages.setdefault(name, StageRecord(seconds=0.0))
        start = time.perf_counter()
        if ends:
            self.end_stages(name, and_itself=False)
        try:
            yield
            if ends:
                self.end_stages(name)
        finally:
            seconds = time.perf_counter() - start
            stage.seconds = round(stage.seconds + seconds, 3)
            self.save()
        if seconds > MAX_OVERTIME * limit_s + MAX_OVERTIME_S:
            self.progress.note(
                f"{name}: took {format_duration(seconds)}, and {format_duration(limit_s)} were its "
                f"share of the budget: {OVERTIME_REASONS[name]}"
            )
        self.live_report.after_stage(seconds)

    def end_stages(self, name: str, *, and_itself: bool = True) -> None:
        """Take a stage and those before it, which ended or are not needed, off those that remain.

        Args:
            name: name of the stage.
            and_itself: whether it has ended, too.
        """
        remaining = self.record.remaining
        if name in remaining:
            self.record.remaining = remaining[remaining.index(name) + and_itself :]
            self.save()


@contextmanager
def claim(
    path: Path, settings: JobSettings, command: str = "", progress: JobProgress | None = None
) -> Iterator[JobRun]:
    """Lock a run folder for this process: a new one, or one of the same job.

    Args:
        path: path of the folder; it is made if missing.
        settings: the settings of the job.
        command: command that the run names as what made it.
        progress: receives stages, progress and messages.

    A job that fails, crashes or is interrupted leaves a report that says so. After SIGKILL the next
    `nas report` does, since nobody holds the lock.

    Raises:
        RunFolderError: another process works in the folder, it belongs to another job, or it holds
            other files.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file.", remedy="Name a folder with --out.")
    opened = Run(path)
    path.mkdir(parents=True, exist_ok=True)
    require_run_or_empty(path)
    with opened.locked():
        run = JobRun(path, settings, command, progress or SilentProgress())
        files.replace(path / JOB_FILE, settings.to_toml())
        run.save()
        try:
            yield run
        except BaseException:  # Whatever ends the job: the last report says that it runs.
            run.has_failed = True
            run.live_report.after_failure()
            raise


def require_run_or_empty(path: Path) -> None:
    """Raise RunFolderError for a folder that holds files but no job."""
    names = [entry.name for entry in path.iterdir()]
    if JOB_FILE not in names and any(not name.startswith(".") for name in names):
        raise RunFolderError(
            f"{path} holds other files and no job.", remedy="Use an empty folder with --out."
        )


def _has_begun(path: Path) -> bool:
    """Return whether a run folder holds a file that took training or searching to make."""
    reports = {"report.html", "front.csv", "front.json"}
    made_before = {JOB_FILE, "run.json", "spaces", "kits", *reports}
    return any(
        file.is_file()
        for entry in path.iterdir()
        if entry.name not in made_before and not entry.name.startswith(".")
        for file in (entry, *entry.rglob("*"))
    )


def _start_record(path: Path, settings: JobSettings, command: str, *, has_begun: bool) -> RunRecord:
    record = read_run(path) if (path / "run.json").exists() else None
    if record is not None:
        try:
            require_continuable(path, record.job, settings, searched=record.study is not None)
        except RunFolderError:
            if has_begun:
                raise
            record = None  # Nothing was made by the earlier job: this is another one.
    if record is not None:
        record.job, record.name, record.waiting = settings, settings.name, None
        return record
    return new_record(settings, command)


def new_record(settings: JobSettings, command: str, /, **known: Any) -> RunRecord:
    """Return the record with which a run begins.

    Args:
        settings: the settings of its job.
        command: command that the run names as what made it.
        known: what a retargeted run takes over from the record of another run.
    """
    return RunRecord(
        schema=6,
        name=settings.name,
        command=command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        job=settings,
        versions=installed_versions(),
        stages={},
        **known,
    )


def saved_settings(folder: Path) -> JobSettings | None:
    """Return the settings of the job in a run folder; None if it is no run."""
    return read_run(folder).job if (folder / "run.json").exists() else None


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's results."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
