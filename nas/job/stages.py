"""The stages of a job before its search. Each continues what an earlier start of the run left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas import files
from nas.data import ImageDataset
from nas.data.check import check_data
from nas.data.decoding import remedy_for
from nas.deploy.exporting import job_formats
from nas.deploy.formats import model_format
from nas.display.progress import Advance
from nas.errors import DataError, MeasurementError
from nas.job import kits, planning
from nas.job.folder import JobRun
from nas.job.inputs import JobSpaces, describe_restriction, load_images, load_job_spaces
from nas.job.plan import too_short_error
from nas.job.probes import Compared, choose_image_size, measure_probes
from nas.latency import (
    Kernel,
    LatencyTable,
    build_table,
    correct_after_build,
    lacks_correction,
)
from nas.latency.kit import carried
from nas.latency.record import DISTURBED, UNSTABLE
from nas.latency.timing import MEASURED
from nas.latency.worker_process import timers_for
from nas.machine.torch_device import resolve_device
from nas.pretrained import PublishedWeights
from nas.quantisation.post_training import FEW_CALIBRATION_IMAGES, clipped_share
from nas.report import page
from nas.run.progress import JobProgress
from nas.run.record import (
    DataSummary,
    DeviceSummary,
    ImageChanges,
    SupernetSummary,
    TableSummary,
)
from nas.run.settings import JobSettings
from nas.run.trained import PretrainedSummary
from nas.space import SearchSpace, library
from nas.space.records import SpaceSettings
from nas.supernet.evaluation import evaluate
from nas.supernet.mirroring import run_mirroring_experiment
from nas.supernet.recipe import Recipe, default_batch_size
from nas.supernet.training import train, trained_epochs
from nas.supernet.weights import Supernet

FEW_IMAGES = 10_000
"""Training images below which published weights gain much; see docs/pretrained.md."""

MIN_PHOTO_SIZE = 32
"""Height and width in pixels from which images are taken for photos, as published weights know."""

MIN_TIMED_KERNELS = 16
"""Kernels after which a build can tell whether the budget is too short for it."""


def open_data(run: JobRun, *, own_spaces: bool = False, needs_device: bool = True) -> None:
    """Open the data and the spaces, and record them. They must be the same at every start.

    Args:
        run: the run.
        own_spaces: whether a run that continues takes its own copies of the spaces, and not the
            files that the job names. A retargeted run always does.
        needs_device: whether the job times networks on its device after that.

    Raises:
        DataError: the images are missing or unreadable.
        RunFolderError: the data or a space is another one than at the first start of the run.
    """
    earlier, before = run.record.data, run.record.pretrained
    data, compared = _load_images(run, needs_device=needs_device)
    run.data = data
    run.progress.note(data.worth_of_an_image)
    remedy = "The data changed: use another folder with --out."
    run.require("data", earlier and earlier.digest, data.digest, remedy)
    spaces = _open_spaces(run, own_spaces=own_spaces)
    run.record.data = _describe_images(run)
    is_same = earlier is not None and earlier.digest == data.digest
    if not is_same or _weights(before) != _weights(run.record.pretrained):
        run.record.probes = measure_probes(run.settings, data, spaces, run.progress, compared)
    run.progress.note(data.summary)
    for name, weights in run.record.pretrained.items():
        run.progress.note(f"the supernet {name} starts from {weights.summary}")
        if name in run.record.probes:
            run.progress.note(run.record.probes[name].text)
    if problems := run.record.data.problems:
        run.progress.note(f"the images: {'; '.join(problems)}")
    if data.skipped:
        remedy = remedy_for(data.skipped)
        run.progress.note(f"the first unreadable image: {data.skipped[0]}. {remedy}".rstrip())


def _load_images(run: JobRun, *, needs_device: bool) -> tuple[ImageDataset, Compared | None]:
    """Return the images of a run, in the size that an earlier start chose, or that is chosen now.

    The probes by which it is chosen now are returned, too; None if it is not.
    """
    earlier, sizes = run.record.data, run.record.settings
    has_source = run.has_begun or (earlier and earlier.source == run.settings.data.source)
    known = sizes.image_size if sizes and has_source else None
    try:
        size, compared = choose_image_size(
            run.settings,
            run.progress,
            known,
            open_runtimes=lambda: list(run.runtimes.values()) if needs_device else [],
        )
        return load_images(run.settings, run.progress, image_size=size), compared
    except DataError as error:
        if not run.has_begun:
            raise
        # The keys of [data] that could help at the first start are fixed now.
        raise DataError(
            error.message,
            remedy="Restore the images of this run, or say with source and unknown in the job file "
            "where they are now. For other images, start another run with --out.",
        ) from None


def _open_spaces(run: JobRun, *, own_spaces: bool) -> JobSpaces:
    """Open the spaces of a run and their published weights, and record both; see `open_data`."""
    sources: list[str | Path] = [each.name for each in run.settings.space]
    if (own_spaces or run.record.source is not None) and run.record.spaces:
        sources = [run.path / "spaces" / f"{name}.py" for name in run.record.spaces]
    opened = load_job_spaces(run.settings, run.data, sources)
    run.spaces, run.published = opened.searched, opened.published
    digests: dict[str, str] = {name: space.digest for name, space in run.spaces.items()}
    remedy = "A space changed: use another folder with --out."
    run.require("spaces", run.record.spaces, digests, remedy)
    _copy_space_files(run, sources, list(opened.named))
    run.record.spaces = digests
    run.record.settings = SpaceSettings(**next(iter(run.spaces.values())).settings)
    before = run.record.pretrained
    run.record.pretrained = {
        name: PretrainedSummary.of(
            read,
            each.pretrained,
            # The run's own copy of a space is restricted already.
            restriction=before[name].restriction
            if name in before
            else describe_restriction(whole, space, read.reference.name),
        )
        for whole, (name, space), each in zip(
            opened.named.values(), run.spaces.items(), run.settings.space, strict=True
        )
        if (read := run.published.get(name)) is not None
    }
    return opened


def _describe_images(run: JobRun) -> DataSummary:
    """Return the summary of the images of a run, which are checked at the first start."""
    data, earlier = run.data, run.record.data
    if earlier and (earlier.digest, earlier.skipped) == (data.digest, len(data.skipped)):
        problems, duplicates = earlier.problems, earlier.duplicates
    else:
        run.progress.begin("duplicates", "image")
        check = check_data(data, run.progress.advance)
        problems, duplicates = check.problems, dict(check.duplicates)
    return DataSummary(
        source=run.settings.data.source,
        digest=data.digest,
        license=run.settings.data.license,
        classes=list(data.classes),
        class_counts=data.part_class_counts,
        skipped=len(data.skipped),
        summary=data.summary,
        problems=problems,
        duplicates=duplicates,
        metric=data.metric,
    )


def _weights(pretrained: Mapping[str, PretrainedSummary]) -> dict[str, tuple[str, str]]:
    """Return what decides the published weights of each space: the file and its conventions."""
    return {name: (each.sha256, each.conventions) for name, each in pretrained.items()}


def note_few_images(settings: JobSettings, data: ImageDataset, progress: JobProgress) -> None:
    """Tell the user what a job lacks that has few training images.

    Published weights if it has none, and images to calibrate its int8 files on.
    """
    images = len(data.train)
    is_photo = data.image_size >= MIN_PHOTO_SIZE and data.channels == 3
    if (
        images < FEW_IMAGES
        and is_photo
        and not any(each.starts_from_weights for each in settings.space)
    ):
        progress.note(
            f"{images:,} training images are few for networks that start from random weights: with "
            "2,000 images of CIFAR-10, networks of efficientnet_lite reached 71% to 77% from "
            "published weights, and 49% to 51% without. Give a file of torchvision (mobilenet_v2, "
            "mobilenet_v3_small, shufflenet_v2_x1_0, squeezenet1_1) or timm (mobilenetv2_100, "
            "tf_efficientnet_lite0) with pretrained in [[space]]; see docs/pretrained.md"
        )
    is_int8 = any(model_format(name).precision == "int8" for name in job_formats(settings))
    if images < FEW_CALIBRATION_IMAGES and is_int8:
        progress.note(
            f"int8 files will be calibrated on {images} training images only: the largest value of "
            f"a tensor is then clipped in {clipped_share(images):.0%} of new images"
        )


def decide_training(run: JobRun) -> None:
    """Decide and record the batch size, and whether training images are mirrored and shifted.

    It is decided at the first start of a run, so that a later one on another device continues the
    same trainings. The job file, the source of the images or an experiment decides about mirroring.
    """
    if run.record.batch_size is None:
        training = run.settings.training
        run.record.batch_size = training.batch_size or default_batch_size(
            resolve_device(training.device)
        )
    if run.record.image_changes is not None:
        return
    recipe, data = run.recipe(), run.data
    changes = ImageChanges(
        flip=recipe.resolve_flip(data),
        shift=recipe.resolve_shift(data),
        is_from_job=recipe.flip is not None,
    )
    if planning.needs_mirroring_experiment(run.settings, data):
        run.progress.begin("mirroring", "step")
        changes.experiment = run_mirroring_experiment(
            data, seed=run.settings.seed, progress=run.progress.advance
        )
        changes.flip = not changes.experiment.changes_class
    run.record.image_changes = changes
    run.save()
    run.progress.note(changes.summary)


def open_device(run: JobRun) -> None:
    """Open the device and its latency table, and record the device.

    A device that is timed by kits may have no table yet.

    Raises:
        RunFolderError: it is another than at the first start of the run.
    """
    runtime, device = run.runtime, run.settings.device
    tables = {
        dtype: kits.open_table(run, device_of_kits)
        if (device_of_kits := carried(own))
        else LatencyTable.open_or_create(device.tables, own)
        for dtype, own in run.runtimes.items()
    }
    run.tables = {dtype: table for dtype, table in tables.items() if table is not None}
    fingerprint = runtime.fingerprint.to_json()
    recorded = fingerprint.pop("recorded")
    if carried(runtime) and run.tables:
        recorded = run.table.device.recorded  # What the device said of itself.
    must_match = {
        key: _as_text(value) for key, value in {**fingerprint, "dtype": device.dtypes}.items()
    }
    before = run.record.device and run.record.device.must_match
    run.require("device", before, must_match, "Continue on the device that the run was started on.")
    run.record.versions = {**run.record.versions, **runtime.fingerprint.versions}
    batches = f", batches of {device.batch} images" if device.batch > 1 else ""
    basis = ""
    if runtime.network_basis != MEASURED:
        basis = f"; latencies are {runtime.basis}"
        run.progress.note(f"no device is timed: all latencies are {runtime.basis}")
    elif runtime.basis != MEASURED:
        basis = f"; predictions are {runtime.basis}"
        run.progress.note(
            f"only whole networks are timed: the predictions before that are {runtime.basis}"
        )
    run.record.device = DeviceSummary(
        summary=f"{fingerprint['processor']}, {fingerprint['threads']} thread(s), "
        f"{fingerprint['runtime']} {' and '.join(device.dtypes)}{batches}{basis}",
        must_match=must_match,
        recorded={key: _as_text(value) for key, value in recorded.items()},
    )


def build_latency_table(run: JobRun) -> None:
    """Time every kernel of the spaces that the device's latency table lacks, and calibrate it.

    A job with two dtypes has two tables. What needs no first timing is bounded by the share of the
    stage in the budget.

    Raises:
        JobFileError: the kernels take so long that too little of the budget would be left.
        DeviceAwaitedError: a kit has to time them.
    """
    for dtype, runtime in run.runtimes.items():
        if (device_of_kits := carried(runtime)) is not None:
            kits.require_table(run, device_of_kits, dtype)
    end = time.monotonic() + max(0.0, run.seconds_for(planning.TABLE))
    for number, dtype in enumerate(run.tables):
        limit_s = max(0.0, end - time.monotonic()) / (len(run.tables) - number)
        run.record.tables = {**run.record.tables, dtype: _build(run, dtype, limit_s)}


def _build(run: JobRun, dtype: str, limit_s: float) -> TableSummary:
    """Complete and calibrate the latency table of a dtype, and return its summary.

    Args:
        run: the run.
        dtype: one of those of the job.
        limit_s: seconds after which nothing is timed that needs no first timing.
    """
    batch, start = run.settings.device.batch, time.monotonic()
    table, kernels = run.tables[dtype], run.kernels[dtype]
    before = run.record.tables.get(dtype)
    missing = table.missing(kernels)
    is_timed_now = carried(run.runtimes[dtype]) is None
    if is_timed_now:
        share = planning.KERNELS_SHARE if missing else planning.RETIMING_SHARE
        _time_kernels(run, dtype, missing, share * limit_s)
    if before is not None and not missing:
        # Another job may have calibrated the table anew; trials of one run are predicted alike.
        table.use_correction(before.calibration, batch)
    elif is_timed_now and (missing or lacks_correction(table, run.spaces.values(), batch)):
        _calibrate(run, dtype, max(0.0, limit_s - (time.monotonic() - start)))
    needed = [table.record(kernel) for kernel in kernels]
    failed = [record for record in needed if record is not None and record.status == "failed"]
    summary = TableSummary(
        file=table.path.name,
        kernels=len(needed),
        built=len(missing),
        failed=len(failed),
        unstable=sum(r is not None and r.status == UNSTABLE for r in needed),
        disturbed=sum(r is not None and r.status == DISTURBED for r in needed),
        dispatch_us=dict(table.dispatch.parts_us),
        calibration=None
        if (fitted := table.correction(batch, next(iter(run.spaces.values())).digest)) is None
        else fitted.model_copy(update={"networks": (), "supersedes": None}),
    )
    for record in failed:
        run.progress.note(
            f"{record.name} could not be compiled or timed, so networks that need it are left out: "
            f"{record.error}"
        )
    for count, what in (
        (summary.unstable, "did not agree in their time: they are unstable"),
        (summary.disturbed, "are all of a slowed core: they are disturbed"),
    ):
        if missing and count:
            run.progress.note(
                f"the timings of {count} of {len(needed)} kernels {what}, and a later job times "
                "them again"
            )
    return summary


def _time_kernels(run: JobRun, dtype: str, missing: Sequence[Kernel], limit_s: float) -> None:
    """Time the kernels that a latency table lacks, and those whose timings do not agree yet.

    Raises BudgetError if that takes too much of the budget.
    """
    start, runtime = time.monotonic(), run.runtimes[dtype]
    prepare_s = run.seconds_before(planning.TABLE)
    longest_s = ((1 - planning.MIN_REST) * run.settings.budget_s - prepare_s) / len(run.tables)
    timed: set[str] = set()

    def report(done: int, total: int | None, text: str = "") -> None:
        timed.add(text)
        run.progress.advance(len(timed), max(len(timed), len(missing)), text)
        table_s = (time.monotonic() - start) * len(missing) / len(timed)
        if MIN_TIMED_KERNELS <= len(timed) <= len(missing) and table_s > longest_s:
            table_s *= len(run.tables)
            tables = [(runtime, None)]
            raise too_short_error(run.settings, run.spaces, tables, prepare_s, table_s)

    run.progress.begin("latency table", "kernel")
    with timers_for(runtime) as timers:
        build_table(run.tables[dtype], run.kernels[dtype], timers, seconds=limit_s, progress=report)


def _calibrate(run: JobRun, dtype: str, seconds: float) -> None:
    """Fit the correction of a latency table's predictions.

    Args:
        run: the run.
        dtype: dtype of the table.
        seconds: time after which no network is timed again.
    """
    run.progress.begin("check of predictions", "network")
    try:
        calibration = correct_after_build(
            run.tables[dtype],
            list(run.spaces.values()),
            run.runtimes[dtype],
            batch=run.settings.device.batch,
            seconds=seconds,
            progress=run.progress.advance,
        )
    except MeasurementError as error:
        run.progress.note(
            f"predicted latencies could not be checked, and are not corrected: {error}"
        )
    else:
        if calibration is not None:
            run.progress.note(calibration.text)


def supernet_recipe(run: JobRun) -> Recipe:
    """Return the recipe of the supernets of a job: all for the same time.

    A training whose length the job does not set ends with its share of the budget, which is
    decided once; one whose length is set ends with it at the latest.
    """
    spent_s = run.seconds_before(planning.SUPERNETS)
    limit_s = planning.supernet_s(run.settings, spent_s, len(run.spaces))
    if run.settings.training.length is not None:
        return replace(run.recipe(), longest_seconds=limit_s)
    if run.record.supernet_seconds is None:
        run.record.supernet_seconds = round(limit_s, 1)
        run.save()
    return run.recipe(seconds=run.record.supernet_seconds)


def train_supernet(
    settings: JobSettings,
    space: SearchSpace,
    data: ImageDataset,
    folder: Path,
    recipe: Recipe,
    published: PublishedWeights | None,
    progress: Advance | None = None,
) -> Supernet:
    """Train the supernet of a space of a job, from published weights if there are any.

    Args:
        settings: the settings of the job.
        space, data, folder, published, progress: see `nas.train`.
        recipe: that of a training that starts from random weights.
    """
    if published is not None:
        recipe = settings.training.fine_tuned(recipe, len(data.train))
    return train(
        space, data, folder, recipe, seed=settings.seed, published=published, progress=progress
    )


def train_supernets(run: JobRun, recipe: Recipe) -> dict[str, Supernet]:
    """Train the supernet of each space, and score its largest and smallest network.

    Args:
        run: the run, which keeps the supernets.
        recipe: how each of them is trained.

    Returns:
        The trained supernets by space.
    """
    supernets: dict[str, Supernet] = {}
    for name, space in run.spaces.items():
        summary = run.record.supernets.get(name) if run.has_supernet(name) else None
        with run.stage(f"{planning.SUPERNETS} {name}"):
            run.progress.begin(f"supernet {name}", "step")
            supernets[name] = train_supernet(
                run.settings,
                space,
                run.data,
                run.supernet_folder(name),
                recipe,
                run.published.get(name),
                run.progress.advance,
            )
        if summary is None:
            ends = [space.largest, space.smallest]
            largest, smallest = evaluate(supernets[name], ends, run.data)
            summary = SupernetSummary(
                epochs=trained_epochs(run.supernet_folder(name)) or recipe.epochs,
                largest_accuracy=largest,
                smallest_accuracy=smallest,
            )
            run.record.supernets = {**run.record.supernets, name: summary}
        run.progress.note(
            f"{name}: its largest network is right on {summary.largest_accuracy:.1%} of the "
            f"validation images, its smallest on {summary.smallest_accuracy:.1%}"
        )
    return supernets


def write_report(run: JobRun) -> Path:
    """Write the report of what is in the run folder, and return its path."""
    run.save()
    return page.build(run)


def _copy_space_files(run: JobRun, sources: Sequence[str | Path], named: Sequence[str]) -> None:
    """Copy the files of the spaces into the run folder, since a user's own files may change.

    Until the run has begun to train, the copies are those of the latest job file. The copy of a
    space that the job restricts, or gives other resolutions or an exit, does so, too. It names the
    network of a run that it is restricted to.

    Args:
        run: the run.
        sources: names or files of the spaces.
        named: the names that these give the spaces.
    """
    folder = run.path / "spaces"
    folder.mkdir(exist_ok=True)
    spaces = zip(sources, named, run.spaces, run.settings.space, strict=True)
    for source, whole, name, each in spaces:
        copy = folder / f"{name}.py"
        if not copy.exists() or not (run.has_begun or source == copy):
            restricted = None if name == whole else name
            row = run.published[name].reference if each.within else None
            text = library.source_of(source, restricted, each.resolutions, row, each.exit)
            files.replace(copy, text)
    for copy in folder.glob("*.py"):
        if copy.stem not in run.spaces and not run.has_begun:
            copy.unlink()


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
