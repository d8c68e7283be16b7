"""The stages of a job before its search. Each continues what an earlier start of the run left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas import files
from nas.data import ImageDataset
from nas.data.check import check_data
from nas.data.decoding import remedy_for
from nas.deploy.formats import model_format
from nas.errors import DataError, MeasurementError
from nas.job.folder import JobRun
from nas.job.inputs import load_images, load_spaces
from nas.job.planning import (
    fixed_plan,
    make_plan,
    needs_mirroring_experiment,
    plan_finalists_again,
    replan_numbers,
)
from nas.latency import LatencyTable, build_table, calibrate_after_build, lacks_calibration
from nas.latency.timing import MEASURED
from nas.latency.worker_process import timers_for
from nas.quantisation.post_training import FEW_CALIBRATION_IMAGES, clipped_share
from nas.report import page
from nas.run.progress import JobProgress
from nas.run.record import (
    DataSummary,
    DeviceSummary,
    ImageChanges,
    JobPlan,
    SupernetSummary,
    TableSummary,
)
from nas.run.settings import JobSettings
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


def open_data(run: JobRun, progress: JobProgress, *, own_spaces: bool = False) -> None:
    """Open the data and the spaces, and record them. They must be the same at every start.

    Args:
        run: the run.
        progress: receives progress and messages.
        own_spaces: whether a run that continues takes its own copies of the spaces, and not the
            files that the job names.

    Raises:
        DataError: the images are missing or unreadable.
        RunFolderError: the data or a space is another one than at the first start of the run.
    """
    try:
        run.data = data = load_images(run.settings, progress)
    except DataError as error:
        if not run.has_begun:
            raise
        # The keys of [data] that could help at the first start are fixed now.
        raise DataError(
            error.message,
            remedy="Restore the images of this run, or say with source in the job file where they "
            "are now. For other images, start another run with --out.",
        ) from None
    sources: list[str | Path] = [each.name for each in run.settings.space]
    if own_spaces and run.record.spaces:
        sources = [run.path / "spaces" / f"{name}.py" for name in run.record.spaces]
    run.spaces = spaces = load_spaces(data, sources)
    digests: dict[str, str] = {name: space.digest for name, space in spaces.items()}
    run.require("data", data.digest, "The data changed: use another folder with --out.")
    run.require("spaces", digests, "A space changed: use another folder with --out.")
    _copy_space_files(run, sources)
    progress.begin("duplicates", "image")
    check = check_data(data, progress.advance)
    run.record.data = DataSummary(
        source=run.settings.data.source,
        digest=data.digest,
        license=run.settings.data.license,
        classes=list(data.classes),
        counts=data.counts,
        skipped=len(data.skipped),
        summary=data.summary,
        problems=check.problems,
        duplicates=dict(check.duplicates),
        metric=data.metric,
    )
    run.record.spaces = digests
    run.record.settings = SpaceSettings(**next(iter(spaces.values())).settings)
    progress.note(data.summary)
    if check.problems:
        progress.note(f"the images: {'; '.join(check.problems)}")
    if data.skipped:
        remedy = remedy_for(data.skipped)
        progress.note(f"the first unreadable image: {data.skipped[0]}. {remedy}".rstrip())


def note_few_images(settings: JobSettings, data: ImageDataset, progress: JobProgress) -> None:
    """Tell the user if a job has few training images to calibrate its int8 files on."""
    images = len(data.train)
    is_int8 = any(model_format(name).precision == "int8" for name in settings.finish.export)
    if images < FEW_CALIBRATION_IMAGES and is_int8:
        progress.note(
            f"int8 files will be calibrated on {images} training images only: the largest value of "
            f"a tensor is then clipped in {clipped_share(images):.0%} of new images"
        )


def decide_image_changes(run: JobRun, progress: JobProgress) -> None:
    """Decide and record whether training images are mirrored, and by how much they are shifted.

    It is decided at the first start of a run: by the job file, by the source of the images, or by
    an experiment.
    """
    if run.record.image_changes is not None:
        return
    settings, data = run.training_settings(), run.data
    changes = ImageChanges(
        flip=settings.resolve_flip(data),
        shift=settings.resolve_shift(data),
        is_from_job=settings.flip is not None,
    )
    if needs_mirroring_experiment(run.settings, data):
        progress.begin("mirroring", "step")
        changes.experiment = run_mirroring_experiment(
            data, seed=run.settings.seed, progress=progress.advance
        )
        changes.flip = not changes.experiment.changes_class
    run.record.image_changes = changes
    run.save()
    progress.note(changes.summary)


def open_device(run: JobRun, progress: JobProgress) -> None:
    """Open the device and its latency table, and record the device.

    Raises:
        RunFolderError: it is another than at the first start of the run.
    """
    runtime, batch = run.runtime, run.settings.device.batch
    run.table = LatencyTable.open_or_create(run.settings.device.tables, runtime)
    fingerprint = runtime.fingerprint.to_json()
    recorded = fingerprint.pop("recorded")
    run.require("device", fingerprint, "Continue on the device that the run was started on.")
    run.record.versions = {**run.record.versions, **runtime.fingerprint.versions}
    batches = f", batches of {batch} images" if batch > 1 else ""
    basis = ""
    if runtime.network_basis != MEASURED:
        basis = f"; latencies are {runtime.basis}"
        progress.note(f"no device is timed: all latencies are {runtime.basis}")
    elif runtime.basis != MEASURED:
        basis = f"; predictions are {runtime.basis}"
        progress.note(
            f"only whole networks are timed: the predictions before that are {runtime.basis}"
        )
    run.record.device = DeviceSummary(
        summary=f"{fingerprint['processor']}, {fingerprint['threads']} thread(s), "
        f"{fingerprint['runtime']} {fingerprint['dtype']}{batches}{basis}",
        must_match={key: _as_text(value) for key, value in fingerprint.items()},
        recorded={key: _as_text(value) for key, value in recorded.items()},
    )


def decide_plan(run: JobRun, progress: JobProgress) -> JobPlan:
    """Return how much the job does.

    It is decided at the first start of a run, and again if the job file has another budget, or
    other numbers of trials, networks to time or finalists. What an earlier start has begun stays.
    """
    earlier = run.record.plan
    if earlier is None or not run.is_decided("plan"):
        plan = (
            _first_plan(run, progress) if earlier is None else _plan_again(run, progress, earlier)
        )
        excess_s = sum(plan.seconds.values()) - run.settings.budget_s
        if excess_s > MAX_BUDGET_EXCESS * run.settings.budget_s:
            progress.note(
                f"the job will take about {excess_s / 60:.0f} min more than its budget of "
                f"{run.settings.budget}: it does all epochs, minutes and trials that the job file "
                "sets, and at least one epoch of each finalist"
            )
        run.record.plan = plan
        run.note_decision("plan")
    run.save()
    assert run.record.plan is not None
    return run.record.plan


def _first_plan(
    run: JobRun, progress: JobProgress, spent_on_table_s: float | None = None
) -> JobPlan:
    settings = run.settings
    missing = run.table.missing(run.kernels)
    return fixed_plan(settings, list(run.spaces), len(missing)) or make_plan(
        settings,
        run.data,
        run.spaces,
        run.runtime,
        progress,
        opened_s=0.0,
        spent_on_table_s=spent_on_table_s,
    )


def _plan_again(run: JobRun, progress: JobProgress, earlier: JobPlan) -> JobPlan:
    """Return the plan of a run whose job file asks for more or less than at an earlier start.

    The supernets are trained as they were planned once the training of one has begun. Finalists
    that are added get as many epochs as those before them, unless there is another budget.
    """
    decided_by = run.record.decided_by.get("plan", {})
    search, finish = run.settings.search, run.settings.finish
    needs_estimate = (
        run.settings.budget != decided_by.get("budget")
        or (search.trials is None and decided_by.get("search.trials") is not None)
        or (finish.retrain is None and decided_by.get("finish.retrain") is not None)
        or (finish.retrain and not earlier.retrain)
    )
    if needs_estimate:
        table_s = sum(s.seconds for n, s in run.record.stages.items() if n == TABLE_STAGE)
        plan = _first_plan(run, progress, table_s)
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
        plan = replan_numbers(run.settings, earlier)
    texts = {
        "trials": (earlier.trials, plan.trials),
        "networks to time": (earlier.measure, plan.measure),
        "finalists": (earlier.retrain, plan.retrain),
    }
    changes = [f"{new} {name} instead of {old}" for name, (old, new) in texts.items() if old != new]
    progress.note(
        f"the job file has changed: {', '.join(changes) or 'the plan stays as it is'}. "
        "What was made before is used again."
    )
    return plan


def decide_finalists(run: JobRun, progress: JobProgress) -> int:
    """Return how many finalists the job trains, and record for how many epochs.

    It is decided when the front was measured, and only once: the finalists get the time that the
    stages before have left of the budget, above all a search that its model ended early.
    """
    plan = run.record.plan
    assert plan is not None
    if not plan.are_finalists_final:
        later = (FINALISTS_STAGE, EXPORT_STAGE)
        spent_s = sum(s.seconds for name, s in run.record.stages.items() if name not in later)
        decided = plan_finalists_again(run.settings, plan, spent_s)
        run.record.plan = decided.model_copy(update={"are_finalists_final": True})
        run.save()
        if decided.retrain_epochs != plan.retrain_epochs or decided.retrain != plan.retrain:
            progress.note(
                f"{spent_s / 60:.1f} min of {run.settings.budget} are spent: {decided.retrain} "
                f"networks of the front, the finalists, are trained for {decided.retrain_epochs} "
                f"epochs each ({plan.retrain} for {plan.retrain_epochs} were planned)"
            )
        plan = decided
    return plan.retrain


def build_latency_table(run: JobRun, progress: JobProgress) -> None:
    """Time every kernel of the spaces that the device's latency table lacks, and calibrate it."""
    batch = run.settings.device.batch
    missing = run.table.missing(run.kernels)
    progress.begin("latency table", "timing")
    with timers_for(run.runtime) as timers:
        build_table(
            run.table,
            run.kernels,
            timers,
            progress=lambda p: progress.advance(p.done, p.total, p.record.name),
        )
    before = run.record.table
    if before is not None and not missing:
        # Another job may have calibrated the table anew; trials of one run are predicted alike.
        run.table.use_calibration(before.calibration, batch)
    elif missing or lacks_calibration(run.table, run.spaces.values(), batch):
        _calibrate(run, progress)
    needed = [run.table.record(kernel) for kernel in run.kernels]
    failed = [record for record in needed if record is not None and record.status == "failed"]
    run.record.table = TableSummary(
        file=run.table.path.name,
        kernels=len(needed),
        built=len(missing),
        failed=len(failed),
        unstable=sum(r is not None and r.status == "unstable" for r in needed),
        dispatch_us=dict(run.table.dispatch.parts_us),
        calibration=None
        if (fitted := run.table.calibration(batch)) is None
        else fitted.model_copy(update={"networks": (), "supersedes": None}),
    )
    for record in failed:
        progress.note(
            f"{record.name} could not be compiled or timed, so networks that need it are left out: "
            f"{record.error}"
        )


def _calibrate(run: JobRun, progress: JobProgress) -> None:
    """Fit the correction of the latency table's predictions."""
    progress.begin("check of predictions", "network")
    try:
        calibration = calibrate_after_build(
            run.table,
            list(run.spaces.values()),
            run.runtime,
            batch=run.settings.device.batch,
            progress=progress.advance,
        )
    except MeasurementError as error:
        progress.note(f"predicted latencies could not be checked, and are not corrected: {error}")
    else:
        if calibration is not None:
            progress.note(f"predictions are corrected: {calibration.text}")


def train_supernets(
    run: JobRun, progress: JobProgress, settings: Mapping[str, TrainingSettings]
) -> dict[str, Supernet]:
    """Train the supernet of each space, and score its largest and smallest network.

    Args:
        run: the run, which keeps the supernets.
        progress: receives stages, progress and messages.
        settings: training settings of each space.

    Returns:
        The trained supernets by space.
    """
    supernets: dict[str, Supernet] = {}
    for name, space in run.spaces.items():
        with run.stage(f"supernet {name}"):
            progress.begin(f"supernet {name}", "step")
            supernets[name] = train(
                space,
                run.data,
                run.supernet_folder(name),
                settings[name],
                seed=run.settings.seed,
                progress=lambda p: progress.advance(p.step, p.steps, _loss_and_accuracies(p)),
            )
        largest, smallest = evaluate(supernets[name], [space.largest, space.smallest], run.data)
        summary = SupernetSummary(
            epochs=trained_epochs(run.supernet_folder(name)) or settings[name].epochs,
            largest_accuracy=largest,
            smallest_accuracy=smallest,
        )
        run.record.supernets = {**run.record.supernets, name: summary}
        progress.note(
            f"{name}: its largest network is right on {largest:.1%} of the validation images, its "
            f"smallest on {smallest:.1%}"
        )
    return supernets


def write_report(run: JobRun) -> Path:
    """Write the report of what is in the run folder, and return its path."""
    run.save()
    return page.build(run)


def _loss_and_accuracies(progress: TrainingProgress) -> str:
    """Return the loss and the accuracies of the smallest, random and the largest subnets."""
    values = (progress.accuracy_smallest, progress.accuracy_random, progress.accuracy_largest)
    accuracies = " ".join(f"{value:.0%}" for value in values if value is not None)
    return f"loss {progress.loss:.3f}, small to large {accuracies}"


def _copy_space_files(run: JobRun, sources: Sequence[str | Path]) -> None:
    """Copy the files of the spaces into the run folder, since a user's own files may change.

    Until the run has begun to train, the copies are those of the latest job file.
    """
    folder = run.path / "spaces"
    folder.mkdir(exist_ok=True)
    for source, name in zip(sources, run.spaces, strict=True):
        copy = folder / f"{name}.py"
        if not copy.exists() or not run.has_begun:
            files.replace(copy, library.path_of(source).read_bytes())
    for copy in folder.glob("*.py"):
        if copy.stem not in run.spaces and not run.has_begun:
            copy.unlink()


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
