"""The stages of a job before its search. Each continues what an earlier start of the run left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas import files
from nas.data.decoding import remedy_for
from nas.errors import DataError, MeasurementError
from nas.job.context import JobContext
from nas.job.folder import RunFolder
from nas.job.planning import fixed_plan, plan_finalists_again, replan_numbers
from nas.latency import build_table, calibrate_after_build, lacks_calibration
from nas.latency.timing import MEASURED
from nas.latency.worker_process import timers_for
from nas.report import page
from nas.run.record import (
    DataSummary,
    DeviceSummary,
    ImageChanges,
    JobPlan,
    SupernetSummary,
    TableSummary,
)
from nas.space import library
from nas.space.records import SpaceSettings
from nas.supernet.evaluation import evaluate
from nas.supernet.mirroring import run_mirroring_experiment
from nas.supernet.settings import TrainingSettings
from nas.supernet.training import TrainingProgress, train, trained_epochs
from nas.supernet.weights import Supernet

TABLE_STAGE = "latency table"
FINALISTS_STAGE = "train the finalists"
EXPORT_STAGE = "export"
"""Names of stages; `decide_finalists` plans the last two anew."""

MAX_BUDGET_EXCESS = 0.05
"""Share by which a plan may exceed the budget before the user is told."""


def open_data(job: JobContext, run: RunFolder) -> None:
    """Open the data and the spaces, and record them. They must be the same at every start.

    Raises:
        DataError: the images are missing or unreadable.
        RunFolderError: the data or a space is another one than at the first start of the run.
    """
    try:
        data = job.data
    except DataError as error:
        if not run.has_begun:
            raise
        # The keys of [data] that could help at the first start are fixed now.
        raise DataError(
            error.message,
            remedy="Restore the images of this run, or say with source in the job file where they "
            "are now. For other images, start another run with --out.",
        ) from None
    run.require("data", data.digest, "The data changed: use another folder with --out.")
    run.require(
        "spaces",
        {name: space.digest for name, space in job.spaces.items()},
        "A space changed: use another folder with --out.",
    )
    _copy_space_files(job, run)
    run.record.data = DataSummary(
        source=job.settings.data.source,
        digest=data.digest,
        license=job.settings.data.license,
        classes=list(data.classes),
        counts=data.counts,
        skipped=len(data.skipped),
        summary=data.summary,
    )
    run.record.spaces = {name: space.digest for name, space in job.spaces.items()}
    run.record.settings = SpaceSettings(**next(iter(job.spaces.values())).settings)
    job.progress.note(data.summary)
    if data.skipped:
        remedy = remedy_for(data.skipped)
        job.progress.note(f"the first unreadable image: {data.skipped[0]}. {remedy}".rstrip())


def decide_image_changes(job: JobContext, run: RunFolder) -> None:
    """Decide and record whether training images are mirrored, and by how much they are shifted.

    It is decided at the first start of a run: by the job file, by the source of the images, or by
    an experiment.
    """
    changes = run.record.image_changes
    if changes is None:
        settings = job.training_settings()
        changes = ImageChanges(
            flip=settings.resolve_flip(job.data),
            shift=settings.resolve_shift(job.data),
            is_from_job=settings.flip is not None,
        )
        if job.needs_mirroring_experiment:
            job.progress.begin("mirroring", "step")
            changes.experiment = run_mirroring_experiment(
                job.data,
                seed=job.settings.seed,
                progress=lambda done, total: job.progress.advance(done, total, ""),
            )
            changes.flip = not changes.experiment.changes_class
        run.record.image_changes = changes
        run.save()
        job.progress.note(changes.summary)
    job.flip = changes.flip_by_experiment


def open_data_and_device(job: JobContext, run: RunFolder) -> None:
    """Open the data, the spaces and the device, and record them.

    Raises:
        RunFolderError: one of them is another than at the first start of the run.
    """
    open_data(job, run)
    fingerprint = job.runtime.fingerprint.to_json()
    recorded = fingerprint.pop("recorded")
    run.require("device", fingerprint, "Continue on the device that the run was started on.")
    run.record.versions = {**run.record.versions, **job.runtime.fingerprint.versions}
    batch = f", batches of {job.batch} images" if job.batch > 1 else ""
    basis = ""
    if job.runtime.network_basis != MEASURED:
        basis = f"; latencies are {job.runtime.basis}"
        job.progress.note(f"no device is timed: all latencies are {job.runtime.basis}")
    elif job.runtime.basis != MEASURED:
        basis = f"; predictions are {job.runtime.basis}"
        job.progress.note(
            f"only whole networks are timed: the predictions before that are {job.runtime.basis}"
        )
    run.record.device = DeviceSummary(
        summary=f"{fingerprint['processor']}, {fingerprint['threads']} thread(s), "
        f"{fingerprint['runtime']} {fingerprint['dtype']}{batch}{basis}",
        must_match={key: _as_text(value) for key, value in fingerprint.items()},
        recorded={key: _as_text(value) for key, value in recorded.items()},
    )


def decide_plan(job: JobContext, run: RunFolder) -> JobPlan:
    """Return how much the job does.

    It is decided at the first start of a run, and again if the job file has another budget, or
    other numbers of trials, networks to time or finalists. What an earlier start has begun stays.
    """
    earlier = run.record.plan
    if earlier is None or not run.is_decided("plan", job.settings):
        plan = _first_plan(job) if earlier is None else _plan_again(job, run, earlier)
        excess_s = sum(plan.seconds.values()) - job.settings.budget_s
        if excess_s > MAX_BUDGET_EXCESS * job.settings.budget_s:
            job.progress.note(
                f"the job will take about {excess_s / 60:.0f} min more than its budget of "
                f"{job.settings.budget}: it does all epochs, minutes and trials that the job file "
                "sets, and at least one epoch of each finalist"
            )
        run.record.plan = plan
        run.note_decision("plan", job.settings)
    run.save()
    assert run.record.plan is not None
    return run.record.plan


def _first_plan(job: JobContext) -> JobPlan:
    missing = job.table.missing(job.kernels)
    return fixed_plan(job.settings, list(job.spaces), len(missing)) or job.plan()


def _plan_again(job: JobContext, run: RunFolder, earlier: JobPlan) -> JobPlan:
    """Return the plan of a run whose job file asks for more or less than at an earlier start.

    The supernets are trained as they were planned once the training of one has begun. Finalists
    that are added get as many epochs as those before them, unless there is another budget.
    """
    decided_by = run.record.decided_by.get("plan", {})
    search, finish = job.settings.search, job.settings.finish
    needs_estimate = (
        job.settings.budget != decided_by.get("budget")
        or (search.trials is None and decided_by.get("search.trials") is not None)
        or (finish.retrain is None and decided_by.get("finish.retrain") is not None)
        or (finish.retrain and not earlier.retrain)
    )
    if needs_estimate:
        table_s = sum(s.seconds for n, s in run.record.stages.items() if n == TABLE_STAGE)
        missing = job.table.missing(job.kernels)
        plan = fixed_plan(job.settings, list(job.spaces), len(missing)) or job.plan(table_s)
        if run.has_begun:
            plan = plan.model_copy(
                update={
                    "epochs": earlier.epochs,
                    "supernet_seconds": earlier.supernet_seconds,
                    "seconds": {
                        name: earlier.seconds.get(name, seconds)
                        if name in ("supernets", "anchors")
                        else seconds
                        for name, seconds in plan.seconds.items()
                    },
                }
            )
    else:
        plan = replan_numbers(job.settings, earlier)
    texts = {
        "trials": (earlier.trials, plan.trials),
        "networks to time": (earlier.measure, plan.measure),
        "finalists": (earlier.retrain, plan.retrain),
    }
    changes = [f"{new} {name} instead of {old}" for name, (old, new) in texts.items() if old != new]
    job.progress.note(
        f"the job file has changed: {', '.join(changes) or 'the plan stays as it is'}. "
        "What was made before is used again."
    )
    return plan


def decide_finalists(job: JobContext, run: RunFolder) -> int:
    """Return how many finalists the job trains, and record for how many epochs.

    It is decided when the front was measured, and only once: the finalists get the time that the
    stages before have left of the budget, above all a search that its model ended early.
    """
    plan = run.record.plan
    assert plan is not None
    if not plan.are_finalists_final:
        later = (FINALISTS_STAGE, EXPORT_STAGE)
        spent_s = sum(s.seconds for name, s in run.record.stages.items() if name not in later)
        decided = plan_finalists_again(job.settings, plan, spent_s)
        run.record.plan = decided.model_copy(update={"are_finalists_final": True})
        run.save()
        if decided.retrain_epochs != plan.retrain_epochs or decided.retrain != plan.retrain:
            job.progress.note(
                f"{spent_s / 60:.1f} min of {job.settings.budget} are spent: {decided.retrain} "
                f"networks of the front, the finalists, are trained for {decided.retrain_epochs} "
                f"epochs each ({plan.retrain} for {plan.retrain_epochs} were planned)"
            )
        plan = decided
    return plan.retrain


def build_latency_table(job: JobContext, run: RunFolder) -> None:
    """Time every kernel of the spaces that the device's latency table lacks, and calibrate it."""
    missing = job.table.missing(job.kernels)
    job.progress.begin("latency table", "timing")
    with timers_for(job.runtime) as timers:
        build_table(
            job.table,
            job.kernels,
            timers,
            progress=lambda p: job.progress.advance(p.done, p.total, p.record.name),
        )
    before = run.record.table
    if before is not None and not missing:
        # Another job may have calibrated the table anew; trials of one run are predicted alike.
        job.table.use_calibration(before.calibration, job.batch)
    elif missing or lacks_calibration(job.table, job.spaces.values(), job.batch):
        _calibrate(job)
    needed = [job.table.record(kernel) for kernel in job.kernels]
    failed = [record for record in needed if record is not None and record.status == "failed"]
    run.record.table = TableSummary(
        file=job.table.path.name,
        kernels=len(needed),
        built=len(missing),
        failed=len(failed),
        unstable=sum(r is not None and r.status == "unstable" for r in needed),
        dispatch_us=dict(job.table.dispatch.parts_us),
        calibration=None
        if (fitted := job.table.calibration(job.batch)) is None
        else fitted.model_copy(update={"networks": (), "supersedes": None}),
    )
    for record in failed:
        job.progress.note(
            f"{record.name} could not be compiled or timed, so networks that need it are left out: "
            f"{record.error}"
        )


def _calibrate(job: JobContext) -> None:
    """Fit the correction of the latency table's predictions."""
    job.progress.begin("check of predictions", "network")
    try:
        calibration = calibrate_after_build(
            job.table,
            list(job.spaces.values()),
            job.runtime,
            batch=job.batch,
            progress=job.progress.advance,
        )
    except MeasurementError as error:
        job.progress.note(
            f"predicted latencies could not be checked, and are not corrected: {error}"
        )
    else:
        if calibration is not None:
            job.progress.note(f"predictions are corrected: {calibration.text}")


def train_supernets(
    job: JobContext, run: RunFolder, settings: Mapping[str, TrainingSettings]
) -> dict[str, Supernet]:
    """Train the supernet of each space, and score its largest and smallest network.

    Args:
        job: the job.
        run: the run folder, which keeps the supernets.
        settings: training settings of each space.

    Returns:
        The trained supernets by space.
    """
    supernets: dict[str, Supernet] = {}
    for name, space in job.spaces.items():
        with run.stage(f"supernet {name}"):
            job.progress.begin(f"supernet {name}", "step")
            supernets[name] = train(
                space,
                job.data,
                run.supernet(name),
                settings[name],
                seed=job.settings.seed,
                progress=lambda p: job.progress.advance(p.step, p.steps, _loss_and_accuracies(p)),
            )
        largest, smallest = evaluate(supernets[name], [space.largest, space.smallest], job.data)
        summary = SupernetSummary(
            epochs=trained_epochs(run.supernet(name)) or settings[name].epochs,
            largest_accuracy=largest,
            smallest_accuracy=smallest,
        )
        run.record.supernets = {**run.record.supernets, name: summary}
        job.progress.note(
            f"{name}: its largest network is right on {largest:.1%} of the validation images, its "
            f"smallest on {smallest:.1%}"
        )
    return supernets


def write_report(run: RunFolder) -> Path:
    """Write the report of what is in the run folder, and return its path."""
    run.save()
    return page.build(run.path)


def _loss_and_accuracies(progress: TrainingProgress) -> str:
    """Return the loss and the accuracies of the smallest, random and the largest subnets."""
    values = (progress.accuracy_smallest, progress.accuracy_random, progress.accuracy_largest)
    accuracies = " ".join(f"{value:.0%}" for value in values if value is not None)
    return f"loss {progress.loss:.3f}, small to large {accuracies}"


def _copy_space_files(job: JobContext, run: RunFolder) -> None:
    """Copy the files of the spaces into the run folder, since a user's own files may change.

    Until the run has begun to train, the copies are those of the latest job file.
    """
    folder = run.path / "spaces"
    folder.mkdir(exist_ok=True)
    paths = job.space_files or [library.path_of(each.name) for each in job.settings.space]
    for path, name in zip(paths, job.spaces, strict=True):
        copy = folder / f"{name}.py"
        if not copy.exists() or not run.has_begun:
            files.replace(copy, path.read_bytes())
    for copy in folder.glob("*.py"):
        if copy.stem not in job.spaces and not run.has_begun:
            copy.unlink()


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
