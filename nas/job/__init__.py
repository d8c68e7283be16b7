"""The overnight job: a checked file, and its stages in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.job.settings import JobSettings, job_path, load_job
from nas.job.watch import Unwatched, Watch

if TYPE_CHECKING:
    from nas.job.planning import Plan
    from nas.search import SearchResult

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
    from nas.job.folder import claim
    from nas.job.opened import Job
    from nas.job.searching import run_search
    from nas.report.select import front_of
    from nas.supernet.team import require_alone

    require_alone("a job")
    watch = watch or Unwatched()
    job = Job(settings, watch)
    with claim(folder, settings, command) as kept:
        with kept.stage("prepare"):
            planned = stages.prepare(job, kept)
        with kept.stage("latency table"):
            stages.build_tables(job, kept)
        supernets = stages.train_supernets(job, kept, dict(planned.epochs))
        with kept.stage("search"):
            result = run_search(job, kept, supernets, planned.trials)
        with kept.stage("measure the front"):
            finish.measure_front(job, kept, supernets, result.trials)
        report = stages.write_report(kept)
        return Outcome(folder, report, len(front_of(folder)))


def search(
    settings: JobSettings, folder: Path, *, command: str = "", watch: Watch | None = None
) -> SearchResult:
    """The search of a job and what it needs, without timing the front; `nas run` goes on.

    Args and errors as for `run`.
    """
    from nas.job import stages
    from nas.job.folder import claim
    from nas.job.opened import Job
    from nas.job.searching import run_search
    from nas.supernet.team import require_alone

    require_alone("a search")
    job = Job(settings, watch or Unwatched())
    with claim(folder, settings, command) as kept:
        with kept.stage("prepare"):
            planned = stages.prepare(job, kept)
        with kept.stage("latency table"):
            stages.build_tables(job, kept)
        supernets = stages.train_supernets(job, kept, dict(planned.epochs))
        with kept.stage("search"):
            result = run_search(job, kept, supernets, planned.trials)
        kept.save()
        return result


def plan(settings: JobSettings) -> Plan:
    """What a job would do and how long each stage takes, from quick measurements."""
    from nas.job.opened import Job

    return Job(settings, Unwatched()).plan()
