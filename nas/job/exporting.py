"""Exports trained networks of a run: the finalists of a job, or those that a command names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from nas.data import ImageDataset
from nas.deploy.card import ModelOrigin
from nas.deploy.export import export_model
from nas.deploy.folder import ModelFolder
from nas.deploy.formats import DEFAULT_FORMATS, model_format
from nas.deploy.int8 import MAX_DROP
from nas.deploy.retrain import load_trained, model_folder
from nas.errors import (
    ExportError,
    IncompleteExportError,
    NasError,
    RequestError,
    RunFolderError,
    as_nas_error,
)
from nas.job.context import JobContext
from nas.job.folder import RunFolder, saved_settings
from nas.job.progress import JobProgress, SilentProgress
from nas.job.retraining import retrain_run
from nas.job.settings import JobSettings
from nas.latency import LatencyTable, Runtime, configured_runtime
from nas.quantisation.post_training import FEW_CALIBRATION_IMAGES, WeightBits, clipped_share
from nas.report import page
from nas.run.model_card import ModelData
from nas.run.run import Run, open_run
from nas.run.trained import MODELS_FOLDER, TRAINED, TRAINED_FILE, TrainedRecord, read_trained

TABLE_FORMAT = "tvm"
"""Format that is compiled with the schedules of the latency table."""


def check_formats(settings: JobSettings) -> None:
    """Check that a job can write the formats of `[finish] export`, before it does anything.

    Raises:
        RequestError: the package of a format is not installed, or the format does not exist for the
            device of the job.
    """
    device = settings.device
    for name in settings.finish.export:
        model_format(name).check_device(device.runtime, device.target, device.dtype)


def note_few_images(job: JobContext) -> None:
    """Tell the user if a job has few training images to calibrate its int8 files on."""
    formats = map(model_format, job.settings.finish.export)
    images = len(job.data.train)
    if images < FEW_CALIBRATION_IMAGES and any(each.precision == "int8" for each in formats):
        job.progress.note(
            f"int8 files will be calibrated on {images} training images only: the largest value of "
            f"a tensor is then clipped in {clipped_share(images):.0%} of new images"
        )


def export_finalists(
    job: JobContext, run: RunFolder, finalists: Sequence[str]
) -> dict[str, NasError]:
    """Export the finalists of a job in the formats of `[finish] export`.

    A finalist that fails does not keep the others from being exported. The run's record then says
    why.

    Args:
        job: the job.
        run: the run folder, with the trained finalists.
        finalists: names of their folders in `models`.

    Returns:
        The error of each finalist that could not be exported in all formats, by its name.
    """
    opened = open_run(run.path)
    formats = job.settings.finish.export
    errors: dict[str, NasError] = {}
    if formats:
        table = job.table if TABLE_FORMAT in formats else None
        for name in finalists:
            with _collecting(errors, name, job.progress):
                _export(opened, job.data, name, formats, table, job.progress)
    run.record.export_errors = {name: _reasons(error) for name, error in errors.items()}
    return errors


@contextmanager
def _collecting(errors: dict[str, NasError], name: str, progress: JobProgress) -> Iterator[None]:
    """Put the error of one model into a dictionary, so that the other models are exported."""
    try:
        yield
    # The other models must not be lost, whatever goes wrong with this one.
    except Exception as error:
        errors[name] = as_nas_error(error, ExportError)
        progress.note(f"{name} was not exported in all formats: {errors[name].message}")


def _reasons(error: NasError) -> dict[str, str]:
    """Return why formats of a model failed, by format; under "all" if none was written."""
    if isinstance(error, IncompleteExportError):
        return {name: own.message for name, own in error.failed.items()}
    return {"all": error.message}


def unfinished_error(
    untrained: Mapping[str, NasError], unexported: Mapping[str, NasError], remedy: str
) -> NasError:
    """Return one error for all models that could not be trained or exported in all formats.

    Args:
        untrained: the errors of training by model.
        unexported: the errors of export by model.
        remedy: what the user can do, beside what the errors say.
    """
    texts = [f"{name} was not trained: {error.message}" for name, error in untrained.items()]
    texts += [
        f"{name} was not exported in all formats: {error.message}"
        for name, error in unexported.items()
    ]
    errors = (*untrained.values(), *unexported.values())
    remedies = dict.fromkeys([each.remedy for each in errors if each.remedy] + [remedy])
    result = ExportError(" ".join(texts), remedy=" ".join(remedies))
    result.__cause__ = errors[0]
    return result


def export_run(
    folder: Path,
    picks: Sequence[str],
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    max_accuracy_drop: float | None = None,
    weight_bits: int | None = None,
    data_source: str | None = None,
    command: str = "",
    progress: JobProgress | None = None,
) -> list[ModelFolder]:
    """Export networks of a run. Those that are not trained to the end are trained first.

    Files that were exported before are kept, if they are as they were exported. The report of the
    run then lists all of them.

    Args:
        folder: the run folder.
        picks: the beginnings of digests, such as IDs of the front, or names of published networks
            that were trained.
        formats: names of the formats.
        max_accuracy_drop: largest accuracy that int8 may lose on validation images, as a fraction;
            by default `nas.deploy.int8.MAX_DROP`.
        weight_bits: bits of a weight in int8, 7 or 8; by default what this processor needs. Files
            for x86 processors without VNNI instructions need 7.
        data_source: where the images of the run are, if they were moved.
        command: command that the run names as what made it.
        progress: receives stages, progress and messages.

    Returns:
        The folders of the models, in the order of `picks`.

    Raises:
        RequestError: a network or a format is unknown, or the package of a format is missing.
        RunFolderError: the folder is no run, is in use, or has no supernet to train from.
        DataError: the images of the run are missing, or others.
        ExportError: some formats of some networks could not be exported; everything else was, and
            the report is written.
    """
    progress = progress or SilentProgress()
    if not picks:
        raise RequestError(
            "There is nothing to export.", remedy="Give --pick with an ID of the front."
        )
    max_drop = MAX_DROP if max_accuracy_drop is None else max_accuracy_drop
    if not 0 <= max_drop <= 1:
        raise RequestError(
            f"The accuracy that int8 may lose is {max_drop}.",
            remedy="Give a fraction, such as 0.005 for half a point.",
        )
    if weight_bits not in (None, 7, 8):
        raise RequestError(
            f"An int8 weight cannot have {weight_bits} bits.",
            remedy="Use 8, or 7 for x86 processors without VNNI instructions.",
        )
    chosen = [model_format(name) for name in formats]
    settings = saved_settings(folder)
    if settings is not None:
        device = settings.device
        for each in chosen:
            each.check_device(device.runtime, device.target, device.dtype)
    opened = open_run(folder, data_source)
    untrained = [pick for pick in picks if not _is_trained(opened, pick)]
    if untrained:
        retrain_run(folder, untrained, data_source=data_source, command=command, progress=progress)
    table = _find_table(folder) if TABLE_FORMAT in formats else None
    names = [model_folder(opened, pick).name for pick in picks]
    bits = cast("WeightBits | None", weight_bits)
    data = opened.data
    folders: list[ModelFolder] = []
    errors: dict[str, NasError] = {}
    for name in dict.fromkeys(names):
        with _collecting(errors, name, progress):
            folders.append(_export(opened, data, name, formats, table, progress, max_drop, bits))
    page.build(folder)
    if len(errors) == len(set(names)) == 1:
        raise errors[names[0]]
    if errors:
        raise unfinished_error({}, errors, "All other files were exported.")
    return folders


def _export(
    run: Run,
    data: ImageDataset,
    name: str,
    formats: Sequence[str],
    table: LatencyTable | None,
    progress: JobProgress,
    max_accuracy_drop: float = MAX_DROP,
    weight_bits: WeightBits | None = None,
) -> ModelFolder:
    """Export one trained network of a run, and return the folder of the model."""
    folder = ModelFolder(run.path / MODELS_FOLDER / name)
    model = load_trained(run, name)
    model.table, model.runtime = table, _device_runtime(run.path)
    progress.begin(f"export {name}", "step")
    export_model(
        model,
        data,
        folder,
        formats,
        _origin(run, TRAINED.read(folder.path / TRAINED_FILE)),
        max_accuracy_drop=max_accuracy_drop,
        weight_bits=weight_bits,
        progress=progress.advance,
    )
    return folder


def _origin(run: Run, record: TrainedRecord) -> ModelOrigin:
    """Return where a trained network of a run comes from."""
    record_of_run = run.record
    summary, options = record_of_run.data, record_of_run.job.data
    if summary is None or options is None:
        raise RunFolderError(
            f"{run.path} does not say what its images are.", remedy="Run its job again."
        )
    rows = run.trials
    rows = rows[rows["digest"] == record.digest]
    names = {"predicted": "predicted", "measured": rows.iloc[0]["basis"]} if len(rows) else {}
    latencies = {
        name: float(rows.iloc[0][f"{column}_us"])
        for column, name in names.items()
        if rows[f"{column}_us"].notna().all()
    }
    device = record_of_run.device
    return ModelOrigin(
        id=record.id,
        data=ModelData(
            source=run.data_source or options.source,
            digest=summary.digest,
            license=summary.license,
            counts=summary.counts,
            seed=record_of_run.job.seed,
            **options.load_options,
        ),
        recipe={
            "start": record.start,
            "epochs": record.epochs,
            "seed": record.seed,
            "teacher": record.teacher,
            **record.training,
        },
        image_changes=""
        if record_of_run.image_changes is None
        else record_of_run.image_changes.summary,
        latencies_us=latencies,
        search_device="" if device is None or not latencies else device.summary,
    )


def _is_trained(run: Run, pick: str) -> bool:
    records = read_trained(run.path).values()
    return any(pick == each.id or (pick and each.digest.startswith(pick)) for each in records)


def _device_runtime(folder: Path) -> Runtime | None:
    """Return the runtime of a run's device, not opened; None if the run does not name it."""
    settings = saved_settings(folder)
    if settings is None:
        return None
    device = settings.device
    return configured_runtime(
        device.runtime, target=device.target, threads=device.threads, dtype=device.dtype
    )


def _find_table(folder: Path) -> LatencyTable | None:
    """Return the latency table of a run's device; None if it is not there."""
    settings = saved_settings(folder)
    if settings is None:
        return None
    job = JobContext(settings, SilentProgress(), read_only=True)
    return LatencyTable.find(settings.device.tables, job.runtime)
