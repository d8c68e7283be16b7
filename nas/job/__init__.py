"""The overnight job: a checked file, and its stages in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.job.progress import Unwatched, Watch
from nas.job.settings import JobSettings, job_path, load_job

if TYPE_CHECKING:
    from nas.job.context import Job
    from nas.job.folder import RunFolder
    from nas.job.planning import JobPlan
    from nas.search import SearchResult
    from nas.supernet import Supernet

__all__ = [
    "JobSettings",
    "Outcome",
    "Unwatched",
    "Watch",
    "job_path",
    "load_job",
    "plan",
    "run",
    "search",
]


@dataclass(frozen=True)
class Outcome:
    """Where a finished run is, and how many members its front has."""

    folder: Path
    report: Path
    front: int


def run(
    settings: JobSettings, folder: Path, *, command: str = "", watch: Watch | None = None
) -> Outcome:
    """Runs a job in `folder`; started again on the same folder, it continues where it stopped.

    Args:
        settings: from `load_job`.
        folder: made if missing; holds everything the job makes but the device's latency table.
        command: stands in the report as what made it.
        watch: is told what happens.

    Raises RunFolderError for a folder in use or of another job, RequestError for one of several
    processes that `torchrun` started, and what the stages raise.
    """
    from nas.job import finish, stages
    from nas.job.context import Job
    from nas.job.folder import claim
    from nas.records import read_front
    from nas.supernet.distributed import require_single_process

    require_single_process("a job")
    job = Job(settings, watch or Unwatched())
    with claim(folder, settings, command) as kept:
        supernets, result = _searched(job, kept)
        with kept.stage("measure the front"):
            finish.measure_front(job, kept, supernets, result.trials)
        report = stages.write_report(kept)
        return Outcome(folder, report, len(read_front(folder)))


def search(
    settings: JobSettings,
    folder: Path,
    *,
    command: str = "",
    watch: Watch | None = None,
    space_files: Sequence[Path] | None = None,
) -> SearchResult:
    """The search of a job and what it needs, without timing the front; `nas run` goes on.

    The report shows the predicted front, or what `nas run` measured on an earlier one.

    Args and errors as for `run`; `space_files` as for `nas.job.context.Job`.
    """
    from nas.job import finish, stages
    from nas.job.context import Job
    from nas.job.folder import claim
    from nas.supernet.distributed import require_single_process

    require_single_process("a search")
    job = Job(settings, watch or Unwatched(), space_files or ())
    with claim(folder, settings, command) as kept:
        supernets, result = _searched(job, kept)
        finish.write_candidates(job, kept, supernets, result.trials)
        stages.write_report(kept)
        return result


def _searched(job: Job, run: RunFolder) -> tuple[dict[str, Supernet], SearchResult]:
    """All stages up to the search."""
    from nas.job import searching, stages

    with run.stage("prepare"):
        stages.open_all(job, run)
        searching.require_possible(job, run)
        planned = stages.settle(job, run)
    with run.stage("latency table"):
        stages.build_tables(job, run)
        searching.require_possible(job, run)
    supernets = stages.train_supernets(job, run, dict(planned.epochs))
    with run.stage("search"):
        return supernets, searching.run_search_stage(job, run, supernets, planned.trials)


def plan(settings: JobSettings) -> JobPlan:
    """Return what a job would do and how long each stage takes, from quick measurements.

    No file is made or changed.
    """
    from nas.job.context import Job

    return Job(settings, Unwatched(), read_only=True).plan()
