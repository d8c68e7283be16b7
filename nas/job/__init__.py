"""The overnight job: a validated job file, and its stages in order.

Example:
    >>> from nas.job import job_path, load_job
    >>> settings = load_job(job_path("quickstart"))
    >>> settings.name
    'quickstart'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.arguments import checked
from nas.job.progress import JobProgress, SilentProgress, shown

if TYPE_CHECKING:
    from nas.errors import NasError
    from nas.job.context import JobContext
    from nas.job.folder import RunFolder
    from nas.job.planning import JobPlan
    from nas.job.settings import JobSettings, job_path, load_job
    from nas.search import SearchResult
    from nas.supernet.weights import Supernet

__all__ = [
    "JobProgress",
    "JobResult",
    "JobSettings",
    "SilentProgress",
    "job_path",
    "load_job",
    "plan_job",
    "run_job",
    "search_job",
]


_SETTINGS = ("JobSettings", "job_path", "load_job")
"""Names of `nas.job.settings`, imported when they are used: commands start without pydantic."""


def __getattr__(name: str) -> Any:
    if name not in _SETTINGS:
        raise AttributeError(f"module 'nas.job' has no attribute {name!r}")
    from nas.job import settings

    return getattr(settings, name)


@dataclass(frozen=True)
class JobResult:
    """The result of a finished job.

    Args:
        folder: path of the run folder.
        report: path of the report.
        front: number of networks on the Pareto front.
        models: folders of the networks that were trained to the end, the most accurate first.
    """

    folder: Path
    report: Path
    front: int
    models: tuple[Path, ...] = ()


@checked(JobSettings="nas.job.settings")
def run_job(
    settings: JobSettings,
    folder: Path,
    *,
    command: str = "",
    progress: JobProgress | bool | None = True,
) -> JobResult:
    """Run a whole job. Run again on the same folder, it continues where it stopped.

    Args:
        settings: the settings of the job, see `load_job`.
        folder: the run folder; it is made if missing. It holds everything that the job makes but
            the latency table of the device.
        command: command that the report names as what made it.
        progress: True shows bars and messages on a terminal or in a notebook, False nothing; or
            what receives stages, progress and messages.

    Raises:
        RunFolderError: the folder is in use, belongs to another job or holds other files.
        RequestError: the process is one of several that `torchrun` started, or the device does not
            have the settings.
        ExportError: a finalist could not be trained, or not be exported in all formats; everything
            else is done, and in the report.
        NasError: a stage failed.
    """
    from nas.job import exporting
    from nas.job.context import JobContext
    from nas.supernet.distributed import require_single_process

    require_single_process("a job")
    exporting.check_formats(settings)
    with shown(progress) as bars:
        return _run_job(JobContext(settings, bars), folder, command)


def _run_job(job: JobContext, folder: Path, command: str) -> JobResult:
    from nas.job import exporting, finish, retraining, stages
    from nas.job.folder import claim
    from nas.run.run import open_run
    from nas.run.trained import MODELS_FOLDER

    with claim(folder, job.settings, command) as run:
        supernets, result = _run_until_search(job, run)
        with run.stage("measure the front"):
            finish.measure_front(job, run, supernets, result.trials)
        finalists: list[str] = []
        untrained: dict[str, NasError] = {}
        unexported: dict[str, NasError] = {}
        if stages.decide_finalists(job, run):
            # The front can be read although a later stage fails or is killed.
            stages.write_report(run)
            with run.stage(stages.FINALISTS_STAGE):
                finalists, untrained = retraining.train_finalists(job, run, supernets)
            with run.stage(stages.EXPORT_STAGE):
                unexported = exporting.export_finalists(job, run, finalists)
        report = stages.write_report(run)
        if untrained or unexported:
            raise exporting.unfinished_error(
                untrained,
                unexported,
                f"Everything else is done, see {report}. The same command tries again what is "
                "missing, without training what is trained; [finish] export may name other "
                "formats then.",
            )
        models = tuple(folder / MODELS_FOLDER / name for name in finalists)
        return JobResult(folder, report, len(open_run(folder).members), models)


def search_job(
    settings: JobSettings,
    folder: Path,
    *,
    command: str = "",
    progress: JobProgress | None = None,
    space_files: Sequence[Path] | None = None,
) -> SearchResult:
    """Run a job up to its search, without timing the front. `run_job` can continue it.

    The report shows the predicted front, and what an earlier `run_job` measured.

    Args:
        settings, folder, command, progress: see `run_job`.
        space_files: see `nas.job.context.JobContext`.

    Raises:
        NasError: see `run_job`.
    """
    from nas.job import finish, stages
    from nas.job.context import JobContext
    from nas.job.folder import claim
    from nas.supernet.distributed import require_single_process

    require_single_process("a search")
    job = JobContext(settings, progress or SilentProgress(), space_files or ())
    with claim(folder, settings, command) as run:
        supernets, result = _run_until_search(job, run)
        finish.write_candidates(job, run, supernets, result.trials)
        stages.write_report(run)
        return result


def _run_until_search(job: JobContext, run: RunFolder) -> tuple[dict[str, Supernet], SearchResult]:
    """Run all stages up to the search, and return the supernets and the result of the search."""
    from nas.job import exporting, searching, stages
    from nas.job.supernets import train_anchors

    with run.stage("prepare"):
        stages.open_data_and_device(job, run)
        exporting.note_few_images(job)
        searching.require_feasible_job(job, run)
        stages.decide_image_changes(job, run)
        plan = stages.decide_plan(job, run)
    with run.stage(stages.TABLE_STAGE):
        stages.build_latency_table(job, run)
        searching.require_feasible_job(job, run)
    # A plan with a time budget decides the number of steps while it trains.
    training = {
        name: job.training_settings(
            None if plan.supernet_seconds else epochs, plan.supernet_seconds
        )
        for name, epochs in plan.epochs.items()
    }
    supernets = stages.train_supernets(job, run, training)
    if job.settings.search.anchors and run.record.study is None:
        with run.stage("anchors"):
            train_anchors(job, run)
    with run.stage("search"):
        return supernets, searching.search_spaces(job, run, supernets, plan.trials)


def plan_job(settings: JobSettings, *, progress: JobProgress | None = None) -> JobPlan:
    """Return what a job would do and how long each stage takes, from quick measurements.

    No file is made or changed.

    Args:
        settings: the settings of the job, see `load_job`.
        progress: receives progress and messages.

    Raises:
        RequestError: the job cannot do what its settings ask for.
        DataError: the images cannot be used.
    """
    from nas.job.context import JobContext
    from nas.job.exporting import check_formats, note_few_images

    job = JobContext(settings, progress or SilentProgress(), read_only=True)
    check_formats(settings)
    plan = job.plan()
    note_few_images(job)
    return plan.model_copy(update={"data": job.data.summary})
