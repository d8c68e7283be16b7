"""Runs a job: whole, up to its search, or as a plan of what it would do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from nas import latency
from nas.deploy.exporting import (
    check_formats,
    job_formats,
    shipping_problem,
    unfinished_error,
)
from nas.errors import DeviceAwaitedError
from nas.files.paths import expanded
from nas.job import finish, planning, searching, stages
from nas.job.finalists import ship_finalists
from nas.job.folder import JobRun, claim
from nas.job.inputs import (
    check_device,
    check_networks,
    load_images,
    load_job_spaces,
)
from nas.job.int8_losses import measure_losses
from nas.job.plan import JobPlan, make_plan
from nas.job.probes import choose_image_size, measure_probes
from nas.job.references import train_references
from nas.job.source import take_over_trained
from nas.job.supernets import train_anchors
from nas.job.trials_file import write_candidates
from nas.run.candidates import Candidate
from nas.run.kits import waiting_text
from nas.run.progress import JobProgress, SilentProgress, shown
from nas.run.run import Run
from nas.run.settings import JobSettings
from nas.run.trained import MODELS_FOLDER
from nas.search import SearchResult
from nas.supernet.distributed import require_single_process
from nas.supernet.weights import Supernet


@dataclass(frozen=True)
class JobResult:
    """The result of a finished job.

    Args:
        run: the run.
        report: path of the report.
        members: networks on the Pareto front, the fastest first; none before the search.
        models: folders of the networks that were trained to the end, the pick first.
        waiting: what the job waits for if its device is timed by kits, see `nas.run.kits`; or
            empty.
    """

    run: Run
    report: Path
    members: list[Candidate]
    models: tuple[Path, ...] = ()
    waiting: str = ""


def run_job(
    settings: JobSettings,
    folder: Path,
    *,
    command: str = "",
    progress: JobProgress | bool | None = True,
    own_spaces: bool = False,
) -> JobResult:
    """Run a whole job. Run again on the same folder, it continues where it stopped.

    Args:
        settings: the settings of the job, see `load_job`.
        folder: the run folder; it is made if missing. It holds everything that the job makes but
            the latency table of the device.
        command: command that the report names as what made it.
        progress: True shows bars and messages on a terminal or in a notebook, False nothing; or
            what receives stages, progress and messages.
        own_spaces: whether a run that continues takes its own copies of the spaces, and not the
            files that the job names.

    Raises:
        RunFolderError: the folder is in use, belongs to another job or holds other files.
        RequestError: the process is one of several that `torchrun` started, or the device does not
            have the settings.
        ExportError: a finalist or a published network could not be trained, or a finalist not be
            exported in all formats; everything else is done, and in the report.
        NasError: a stage failed.
    """
    require_single_process("a job")
    folder = expanded(folder)
    check_formats(settings, job_formats(settings))
    check_device(settings)
    if not own_spaces:
        check_networks(settings)
    with shown(progress) as bars, claim(folder, settings, command, bars) as run:
        try:
            supernets, result = _run_until_search(run, own_spaces=own_spaces)
        except DeviceAwaitedError as error:
            return JobResult(run, stages.write_report(run), [], waiting=error.message)
        with run.stage(planning.MEASURE):
            finish.measure_front(run, supernets, result.trials)
            take_over_trained(run)
        finalists, untrained, unexported = ship_finalists(run)
        if planning.REFERENCES in run.record.remaining:
            with run.stage(planning.REFERENCES):
                untrained |= train_references(run)
        report = stages.write_report(run)
        if untrained or unexported:
            raise unfinished_error(
                untrained,
                unexported,
                f"Everything else is done, see {report}. The same command tries again what is "
                "missing, without training what is trained; [finish] export may name other "
                "formats then.",
            )
        models = tuple(folder / MODELS_FOLDER / name for name in finalists)
        return JobResult(run, report, run.members, models, waiting_text(run))


def search_job(
    settings: JobSettings,
    folder: Path,
    *,
    command: str = "",
    progress: JobProgress | None = None,
    own_spaces: bool = False,
) -> SearchResult:
    """Run a job up to its search, without timing the front. `run_job` can continue it.

    The report shows the predicted front, and what an earlier `run_job` measured.

    Args:
        settings, folder, command, progress: see `run_job`.
        own_spaces: see `nas.job.stages.open_data`.

    Raises:
        DeviceAwaitedError: the device is timed by kits, and has not timed its kernels yet.
        NasError: see `run_job`.
    """
    require_single_process("a search")
    check_device(settings)
    if not own_spaces:
        check_networks(settings)
    with claim(folder, settings, command, progress) as run:
        supernets, result = _run_until_search(run, own_spaces=own_spaces, search_only=True)
        write_candidates(run, result.trials, supernets)
        stages.write_report(run)
        return result


def _run_until_search(
    run: JobRun, *, own_spaces: bool, search_only: bool = False
) -> tuple[dict[str, Supernet], SearchResult]:
    """Run all stages up to the search, and return the supernets and the result of the search."""

    with run.stage(planning.PREPARE):
        if problem := shipping_problem(run.settings):
            run.progress.note(problem)
        stages.open_data(run, own_spaces=own_spaces)
        run.record.remaining = planning.planned_stages(
            run.settings, run.spaces, search_only=search_only
        )
        stages.open_device(run)
        stages.note_few_images(run.settings, run.data, run.progress)
        searching.require_feasible_job(run)
        stages.decide_training(run)
    with run.stage(planning.TABLE):
        stages.build_latency_table(run)
        searching.require_feasible_job(run)
        searching.note_idle_limits(run)
    supernets = stages.train_supernets(run, stages.supernet_recipe(run))
    has_begun = run.record.study is not None or run.record.source is not None
    if run.settings.anchors and not has_begun:
        with run.stage(planning.ANCHORS):
            train_anchors(run)
    if len(run.settings.device.dtypes) > 1 and not run.record.int8_losses:
        with run.stage(planning.LOSSES):
            measure_losses(run, supernets)
    with run.stage(planning.SEARCH):
        return supernets, searching.search_spaces(run, supernets)


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
    progress, start = progress or SilentProgress(), time.perf_counter()
    check_formats(settings, job_formats(settings))
    check_device(settings)
    check_networks(settings)
    if problem := shipping_problem(settings):
        progress.note(problem)
    device = settings.device
    runtimes = [
        latency.open_runtime(device.runtime, **device.runtime_options(dtype))
        for dtype in device.dtypes
    ]
    size, compared = choose_image_size(settings, progress, open_runtimes=lambda: runtimes)
    data = load_images(settings, progress, image_size=size, write_cache=False)
    progress.note(data.worth_of_an_image)
    if data.lost_to_crop:
        progress.note(f"the images: {data.lost_to_crop}")
    spaces = load_job_spaces(settings, data)
    probes = measure_probes(settings, data, spaces, progress, compared)
    prepare_s = time.perf_counter() - start
    plan = make_plan(settings, data, spaces, runtimes, progress, prepare_s)
    stages.note_few_images(settings, data, progress)
    for probe in probes.values():
        progress.note(probe.text)
    return plan
