"""Exports networks of a run: the finalists of a job, or those that a user names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pandas as pd

from nas.data import ImageDataset
from nas.deploy.card import ModelOrigin
from nas.deploy.confidence import make_threshold
from nas.deploy.cpp_example import require_program
from nas.deploy.export import export_model
from nas.deploy.folder import ModelFolder
from nas.deploy.formats import all_formats, format_names, model_format
from nas.deploy.model import TrainedModel
from nas.deploy.networks import load_trained
from nas.deploy.requests import ExportRequest
from nas.errors import (
    CheckpointError,
    ExportError,
    NasError,
    RequestError,
    RunFolderError,
    TableError,
    as_nas_error,
)
from nas.files.paths import without_folders
from nas.latency import Runtime, configured_runtime
from nas.latency.core_speed import READING
from nas.latency.timing import MEASURED
from nas.machine import this_machine
from nas.run.answers import ANSWERS, ANSWERS_FILE
from nas.run.candidates import basis
from nas.run.model_card import ModelCard, ModelData, Threshold
from nas.run.progress import JobProgress
from nas.run.run import Run
from nas.run.settings import JobSettings
from nas.run.trained import MODELS_FOLDER, TRAINED, TRAINED_FILE, TrainedRecord
from nas.transports import is_address

TABLE_FORMATS = ("c", "tvm")
"""Formats that are compiled with the schedules of the latency table."""

PORTABLE_FORMATS = ("onnx", "onnx-int8")
"""Formats for most devices. ONNX Runtime, which checks them, is always installed."""


def default_formats(settings: JobSettings) -> tuple[str, ...]:
    """Return the formats of an export that names none.

    The first are those of the runtime that the latencies of the job are of, if there are any, so
    that what was chosen is what is shipped; then `PORTABLE_FORMATS`.
    """
    device = settings.device
    own = [each.name for each in all_formats() if each.is_made_for(device)]
    return possible_formats(settings, [*own, *PORTABLE_FORMATS])


def possible_formats(settings: JobSettings, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of some formats, once each, that can be written for the device of a job."""
    formats = []
    for name in dict.fromkeys(names):
        with suppress(RequestError):
            check_formats(settings, [name])
            formats.append(name)
    return tuple(formats)


def job_formats(settings: JobSettings) -> tuple[str, ...]:
    """Return the formats that a job exports: those that it names, or `default_formats`."""
    named = settings.finish.export
    return default_formats(settings) if named is None else named


def check_formats(settings: JobSettings, formats: Sequence[str]) -> None:
    """Check that formats can be written for the device of a job.

    Raises:
        RequestError: there is no such format, its package is not installed, or it does not exist
            for the device.
    """
    device = settings.device
    for name in formats:
        model_format(name).check_device(
            device.runtime, device.target, device.dtypes[0], device.threads
        )


def shipping_problem(settings: JobSettings) -> str:
    """Return why no exported file runs as the search of a job times networks, and what remains.

    It is a sentence for the user, or "" if there is such a file: a runtime without a format of its
    own, or whose formats refuse the target, finds networks whose shipped latency is another.
    """
    device, reasons = settings.device, []
    for each in all_formats():
        is_made = each.is_made_for(device)
        if not is_made and device.runtime not in each.runtimes:
            continue
        try:
            check_formats(settings, [each.name])
        except RequestError as error:
            reasons.append(error.message)
            continue
        if is_made:
            return ""
    reason = " ".join(reasons) or f"No format is for runtime '{device.runtime}'."
    others = possible_formats(settings, format_names())
    rest = f"Other runtimes run {', '.join(others)}, with latencies that the search does not know."
    return f"no exported file runs as the search times networks: {reason} {rest}"


def checked_request(run: Run, request: ExportRequest, progress: JobProgress) -> ExportRequest:
    """Return a request with its formats, after a check that they can be written.

    Args:
        run: the run.
        request: the settings of an export.
        progress: receives a message if a default format is left out, and `shipping_problem`.

    Raises:
        RequestError: a format is unknown, does not exist for the device, or its package is missing;
            or the example does not exist for the formats.
    """
    formats = _formats_here(run, progress) if request.formats is None else request.formats
    check_formats(run.settings, formats)
    if problem := shipping_problem(run.settings):
        progress.note(problem)
    if request.example is not None:
        require_program(request.example, formats)
    return replace(request, formats=formats)


def export(
    run: Run, names: Sequence[str], request: ExportRequest, progress: JobProgress
) -> list[ModelFolder]:
    """Export trained networks of a run.

    Files that were exported before are kept, if they are as they were exported. What the request
    does not say stays as an earlier export left it; `progress` receives what changes.

    Args:
        run: the run.
        names: names of the networks' folders in `models`.
        request: the settings of the export, see `checked_request`.
        progress: receives stages, progress and messages.

    Returns:
        The folders of the models, in the order of `names`.

    Raises:
        DataError: the images of the run are missing, or others.
        ExportError: some formats of some networks could not be exported; everything else was.
    """
    _ = run.data  # Images that are missing are a wrong request, not a failed export.
    errors = export_networks(run, list(dict.fromkeys(names)), request, progress)
    if len(errors) == len(set(names)) == 1:
        raise errors[names[0]]
    if errors:
        raise unfinished_error({}, errors, "All other files were exported.")
    return [ModelFolder(run.path / MODELS_FOLDER / name) for name in names]


def _formats_here(run: Run, progress: JobProgress) -> Sequence[str]:
    """Return the default formats without those that need a table of another machine."""
    formats = default_formats(run.settings)
    compiled = [name for name in formats if name in TABLE_FORMATS]
    if not compiled or _has_table(run):
        return formats
    progress.note(f"No {' or '.join(compiled)}: the latency table is not on this machine")
    return [name for name in formats if name not in compiled]


def export_networks(
    run: Run,
    names: Sequence[str],
    request: ExportRequest,
    progress: JobProgress,
    *,
    in_job: bool = False,
) -> dict[str, NasError]:
    """Export trained networks of a run; one that fails does not keep the others from it.

    Args:
        run: the run.
        names: names of the networks' folders in `models`.
        request: the settings of the export with its formats. What it does not say is taken from an
            earlier export of the network, and then from the job.
        progress: receives stages, progress and messages.
        in_job: whether the job exports its finalists. The job then decides whether they have a
            threshold, and which one, whatever an earlier export decided.

    Returns:
        The error of each network that could not be exported in all formats, by its name.
    """
    errors: dict[str, NasError] = {}
    for name in names if request.formats else ():
        try:
            _export(run, name, request, progress, in_job=in_job)
        # The other models must not be lost, whatever goes wrong with this one.
        except Exception as error:
            errors[name] = as_nas_error(error, ExportError)
            progress.note(f"{name} was not exported in all formats: {errors[name].message}")
    return errors


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


def _export(
    run: Run, name: str, request: ExportRequest, progress: JobProgress, *, in_job: bool
) -> None:
    """Export one trained network of a run. See `export_networks`."""
    folder = ModelFolder(run.path / MODELS_FOLDER / name)
    model = load_trained(run, name)
    record = TRAINED.read(folder.path / TRAINED_FILE)
    model.runtime = _runtime_of(run, record.architecture.dtype)
    with suppress(RunFolderError, TableError):  # Formats that need the table say what to do.
        model.table = run.table
    before = None
    with suppress(CheckpointError):
        before = folder.card
        earlier = ExportRequest.of_card(before)
        request = request.or_else(earlier.without_threshold if in_job else earlier)
    request = request.or_else(ExportRequest.of_job(run.settings))
    threshold = set_threshold(model, run.data, request)
    progress.begin(f"export {name}", "step")
    origin = _origin(run, record, threshold)
    card = export_model(model, run.data, folder, request, origin, progress.advance)
    if threshold is not None:
        progress.note(f"{name}: {threshold.summary}")
    for change in () if before is None else _changes(before, card):
        progress.note(f"{name}: {change}")


def _has_table(run: Run) -> bool:
    """Return whether the latency table of a run is there, and this machine can compile for it."""
    try:
        device = run.table.device
    except (RunFolderError, TableError):
        return False
    return _runtime_of(run).is_remote or device.processor == this_machine.processor()[0]


def _changes(before: ModelCard, now: ModelCard) -> Iterator[str]:
    """Yield what an export changed of what an earlier one had decided, as clauses."""
    if before.threshold is not None and (
        before.preprocessing.min_confidence and not now.preprocessing.min_confidence
    ):
        yield f"every image is answered now; before, {before.threshold.summary}"
    if now.int8 is not None and before.int8 is not None:
        if now.int8.weight_bits != before.int8.weight_bits:
            yield f"int8 weights have {now.int8.weight_bits} bits, not {before.int8.weight_bits}"
        if now.int8.max_drop != before.int8.max_drop:
            yield (
                f"int8 may lose {100 * now.int8.max_drop:g} points of accuracy, not "
                f"{100 * before.int8.max_drop:g}"
            )
    file, file_before = (each.script and each.script.file for each in (now, before))
    if file and file_before and file != file_before:
        yield f"run.py runs {file} by default, not {file_before}"
    if now.sustained is None and before.sustained is not None:
        yield "its sustained speed is no part of the card any more: measure it again"


def set_threshold(
    model: TrainedModel, data: ImageDataset, request: ExportRequest
) -> Threshold | None:
    """Give a model the confidence from which on it answers, and return what that does.

    Returns None if nobody asked for one, not even for none: for a confidence of 0.
    """
    threshold, judged = None, model.judged
    if request.min_confidence is not None or request.min_accuracy is not None:
        threshold = make_threshold(
            judged.pixel_logits(data.holdout.pixels),
            data.holdout.labels,
            None if data.unknown is None else judged.pixel_logits(data.unknown),
            min_confidence=request.min_confidence,
            min_accuracy=request.min_accuracy,
        )
    model.preprocessing = judged.preprocessing = model.preprocessing.model_copy(
        update={"min_confidence": (threshold and threshold.min_confidence) or None}
    )
    return threshold


def _origin(run: Run, record: TrainedRecord, threshold: Threshold | None) -> ModelOrigin:
    """Return where a trained network of a run comes from."""
    run_record, latencies_us = run.record, _latencies_us(run, record.digest)
    device, changes = run_record.device, run_record.image_changes
    pretrained = {}
    if (weights := run_record.pretrained.get(record.space)) is not None:
        pretrained["supernet_started_from"] = weights.summary
    if record.published is not None:
        pretrained["started_from"] = record.published.summary
    return ModelOrigin(
        id=record.id,
        answers=ANSWERS.read(run.path / MODELS_FOLDER / record.id / ANSWERS_FILE),
        data=model_data(run),
        statements=run.settings.card,
        calibration=record.calibration,
        refit=record.refit,
        threshold=threshold,
        recipe={
            "start": record.start,
            "epochs": record.epochs,
            "seed": record.seed,
            "teacher": record.teacher,
            **({"weights": "published, with a linear probe"} if record.is_probe else {}),
            **pretrained,
            **record.training,
        },
        image_changes="" if changes is None else changes.summary,
        latencies_us=latencies_us,
        search_device="" if device is None or not latencies_us else device.summary,
        address=target if is_address(target := run.settings.device.target) else "",
        device_threads=run.settings.device.threads,
        **_search_settings(run, record.architecture.dtype or run.settings.device.dtypes[0]),
    )


def model_data(run: Run) -> ModelData:
    """Return what the cards of a run's models say of its images."""
    settings, data = run.settings, run.data
    extra = tuple(map(without_folders, settings.data.extra))
    return ModelData(
        source=without_folders(run.data_source or settings.data.source),
        digest=data.digest,
        judging_digest=data.digest_of(*run.images.judging_parts),
        license=settings.data.license,
        class_counts=data.part_class_counts,
        seed=settings.seed,
        **{**settings.data.load_options, "metric": data.metric, "extra": extra},
    )


def _latencies_us(run: Run, digest: str) -> dict[str, float]:
    """Return the latencies of a network that a run knows, by `predicted` and `measured`."""
    trials = run.trials
    rows = trials[trials["digest"] == digest]
    if rows.empty:  # A published network was measured at most.
        latencies = {basis(trials): run.measured_us.get(digest)}
    else:
        row = rows.iloc[0]
        latencies = {"predicted": row["predicted_us"], row["basis"]: row["measured_us"]}
    return {name: float(us) for name, us in latencies.items() if pd.notna(us)}


def _runtime_of(run: Run, dtype: str | None = None) -> Runtime:
    """Return the runtime of the device of a run for a dtype of its job, which is not opened."""
    device = run.settings.device
    return configured_runtime(device.runtime, **device.runtime_options(dtype))


def _search_settings(run: Run, dtype: str) -> dict[str, Any]:
    """Return the settings of the search with which the files of a network are timed.

    Without a runtime if its latencies and those of the files are not of the same thing, see
    `nas.run.model_card.ModelCard`.
    """
    device, summary, (here, _) = run.settings.device, run.record.device, this_machine.processor()
    runtime = _runtime_of(run)
    if runtime.is_remote or summary is None or summary.must_match.get("processor") != here:
        return {}
    try:
        this_machine.require_cores(device.threads)
    except RequestError:  # This process may use fewer cores than the search.
        return {}
    is_compared = device.batch == 1 and runtime.network_basis == MEASURED
    names = {"search_runtime": device.runtime, "search_dtype": dtype} if is_compared else {}
    full_us = None
    with suppress(RunFolderError, TableError):  # The table may lie elsewhere by now.
        full_us = run.table.full_us if runtime.reading == READING else None
    return {"threads": device.threads, "full_us": full_us, **names}
