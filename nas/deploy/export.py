"""Export of a trained model: its files are written, run by their own runtimes, and published."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nas.data import ImageDataset, Images, Part
from nas.deploy import cpp_example
from nas.deploy.answers import draw_sheet
from nas.deploy.benchmark import draw_benchmark, time_files
from nas.deploy.card import ModelOrigin, make_card, measure_accuracy, render_card
from nas.deploy.folder import (
    ARCHITECTURE_FILE,
    CARD_PAGE,
    FIGURE_FILE,
    MISTAKES_FILE,
    PREPROCESSING_FILE,
    SAMPLES_FILE,
    SCRIPT_FILE,
    SUSTAINED_FILE,
    ModelFolder,
    is_part_of,
    remove,
)
from nas.deploy.formats import ModelFormat, model_format
from nas.deploy.int8 import MAX_DROP, Quantisation, quantise_within
from nas.deploy.model import TrainedModel
from nas.deploy.model_process import ModelProcess
from nas.deploy.robustness import MAX_IMAGES, measure_confidence
from nas.deploy.scripts import run_script, script_format
from nas.deploy.verify import (
    COMPARED_IMAGES,
    SAMPLE_IMAGES,
    ReferenceFile,
    ReferenceImages,
    batches,
    check_file,
    check_script,
    first_image,
    sample_images,
)
from nas.display.progress import Advance
from nas.errors import (
    CheckpointError,
    ExportError,
    IncompleteExportError,
    NasError,
    RequestError,
    RunFolderError,
    first_line,
)
from nas.files.documents import to_json
from nas.quantisation.network import QuantisedNetwork, WeightBits
from nas.quantisation.simulation import simulate
from nas.run.answers import Answers
from nas.run.model_card import (
    CARD_FILE,
    ExportedFile,
    Int8Summary,
    ModelCard,
    ScriptCheck,
    SustainedRecord,
)

_FULL_DISK_BYTES = 1 << 20
"""Free space below which a failure to write a file counts as that of a full disk."""


@dataclass(frozen=True, eq=False)
class _Earlier:
    """What an earlier export left in a model folder.

    Attributes:
        files: files of the same weights that are unchanged, by format.
        names: names of all files of formats, also of other weights.
        int8: how the int8 files among `files` were quantised; None without any.
        samples: images with their logits, also those of that quantised network.
        sustained: sustained speed of files among `files`; None if it was not saved.
        renewed_by: format whose export renews `run.py` and the descriptions, because one is missing
            or changed; None if all are there.
    """

    files: Mapping[str, ExportedFile] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    int8: Int8Summary | None = None
    samples: ReferenceImages | None = None
    sustained: SustainedRecord | None = None
    renewed_by: str | None = None

    @classmethod
    def read(cls, folder: ModelFolder, weights_digest: str) -> _Earlier:
        try:
            changed = folder.changed_files()
            card = folder.card
            samples = ReferenceImages.load(folder.path / SAMPLES_FILE)
        except (RunFolderError, CheckpointError, ExportError):
            return cls()  # Nothing was exported, or what was is damaged and is replaced.
        names = _names(card.files)
        if card.weights_digest != weights_digest or {CARD_FILE, SAMPLES_FILE} & changed.keys():
            return cls(names=names)
        files = {
            file.format: file
            for file in card.files
            if not any(is_part_of(name, (file.file, *file.companions)) for name in changed)
        }
        has_int8 = any(file.precision == "int8" for file in files.values())
        scripted = script_format([name for name, file in files.items() if file.runs_here])
        renewed_by = None
        if (scripted and card.script is None) or any(
            not is_part_of(each, names) for each in changed
        ):
            renewed_by = scripted or next(iter(files), None)
        int8 = card.int8 if has_int8 else None
        return cls(files, names, int8, samples, card.sustained, renewed_by)

    def missing(
        self,
        chosen: Mapping[str, ModelFormat],
        max_accuracy_drop: float,
        weight_bits: WeightBits | None,
    ) -> dict[str, ModelFormat]:
        """Return the formats to write. All int8 files hold the same quantised network.

        A network that loses too much accuracy is quantised again only for a stricter limit, because
        everything was tried for the earlier one. A network whose weights have other bits than those
        asked for is quantised again, too.
        """
        missing = {name: each for name, each in chosen.items() if name not in self.files}
        if self.renewed_by and not missing:
            missing = {self.renewed_by: model_format(self.renewed_by)}
        int8 = self.int8
        is_worse = (
            int8 is not None
            and int8.float_accuracy - int8.accuracy > max_accuracy_drop
            and max_accuracy_drop < int8.max_drop
        )
        has_other_bits = int8 is not None and weight_bits not in (None, int8.weight_bits)
        if any(each.precision == "int8" for each in missing.values()) or (
            (is_worse or has_other_bits)
            and any(each.precision == "int8" for each in chosen.values())
        ):
            own = [name for name, file in self.files.items() if file.precision == "int8"]
            missing |= {name: chosen.get(name) or model_format(name) for name in own}
        return missing

    def with_int8_logits(self, samples: ReferenceImages) -> ReferenceImages:
        """Return the images of the earlier export if only these have int8 logits."""
        if samples.int8_logits is not None or self.int8 is None or self.samples is None:
            return samples
        return self.samples


class _Steps:
    """Reports the steps of an export: the next one begins, or the current one goes on."""

    def __init__(self, total: int, progress: Advance | None) -> None:
        self._done, self._total, self._progress = -1, total, progress

    def begin(self, text: str) -> None:
        self._done += 1
        self.update(text)

    def update(self, text: str) -> None:
        if self._progress:
            self._progress(self._done, self._total, text)

    def end(self) -> None:
        if self._progress:
            self._progress(self._total, self._total, "")


class _Running:
    """The processes of the files of an export, which verify a file and later time it.

    Args:
        threads: number of threads that each runtime may use.
    """

    def __init__(self, threads: int) -> None:
        self.processes: dict[str, ModelProcess] = {}
        self._threads = threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes.values():
            process.close()

    def open(self, model_file: ModelFormat, path: Path) -> ModelProcess:
        """Return a process for a file. Files that do not run here are not timed."""
        process = ModelProcess(model_file, path, threads=self._threads)
        if model_file.can_run(path):
            self.processes[model_file.name] = process
        return process

    def open_earlier(self, files: Sequence[ExportedFile], folder: ModelFolder) -> None:
        """Add processes for files that were exported before, if their packages are still there."""
        for file in files:
            try:
                model_file = model_format(file.format)
            except RequestError:  # The latency that was measured at its export stays in the card.
                continue
            self.open(model_file, folder.path / file.file)

    def close(self, model_file: ModelFormat) -> None:
        """End the process of a file that failed."""
        process = self.processes.pop(model_file.name, None)
        if process is not None:
            process.close()


def export_model(
    model: TrainedModel,
    data: ImageDataset,
    folder: ModelFolder,
    formats: Sequence[str],
    origin: ModelOrigin,
    *,
    max_accuracy_drop: float = MAX_DROP,
    weight_bits: WeightBits | None = None,
    with_cpp: bool = False,
    progress: Advance | None = None,
) -> ModelCard:
    """Export a trained model to files, each verified with its own runtime.

    Files that were exported before from the same weights are kept. Formats do not depend on each
    other: one that fails leaves no file, and the others are exported before its error is raised.
    A file that was verified and then cannot be timed is kept, with a warning.

    Args:
        model: the trained model.
        data: the images that it was trained on.
        folder: the model folder.
        formats: names of the formats.
        origin: where the model comes from, for its card.
        max_accuracy_drop: largest accuracy that int8 may lose on validation images, as a fraction.
        weight_bits: bits of a weight in int8; by default what this processor needs.
        with_cpp: whether the folder gets a C++ example; one that it has is renewed anyway.
        progress: receives the number of finished steps and what is being done.

    Returns:
        The card of the model.

    Raises:
        RequestError: there is no such format, or its package is not installed; nothing was done.
        RunFolderError: another process exports to the folder, or it holds files from elsewhere.
        IncompleteExportError: a format cannot hold the model, its file cannot be written or does
            not compute what it should, or the model could not be quantised.
        OSError: what belongs to all files cannot be written, as on a full disk. The folder is as it
            was.
    """
    chosen = {name: model_format(name) for name in dict.fromkeys(formats)}
    weights_digest = digest_of_weights(model)
    with folder.staging() as staging:
        earlier = _Earlier.read(folder, weights_digest)
        missing = earlier.missing(chosen, max_accuracy_drop, weight_bits)
        if not missing:
            return _with_origin(model, data, folder, staging, origin, with_cpp=with_cpp)
        steps = _Steps(len(missing) + 4, progress)
        steps.begin("accuracy in torch")
        judges = origin.data.judging_parts
        accuracy = measure_accuracy(
            data,
            *(model.pixel_logits(each.pixels) for each in (data.test, data.search, data.holdout)),
            parts=judges,
        )
        failed: dict[str, NasError] = {}
        compared = sample_images(data.test, COMPARED_IMAGES)
        reference = ReferenceImages(compared, model.pixel_logits(compared.pixels))
        samples = _samples(model, data)
        steps.begin("quantisation")
        int8 = None
        int8_formats = [name for name, each in missing.items() if each.precision == "int8"]
        if int8_formats:
            try:
                with _export_errors("The int8 network could not be made", staging):
                    int8 = quantise_within(
                        model,
                        data,
                        max_drop=max_accuracy_drop,
                        weight_bits=weight_bits,
                        progress=lambda method: steps.update(f"quantisation: {method}"),
                    )
                    reference, samples = (
                        _with_int8(each, model, int8.network) for each in (reference, samples)
                    )
            except NasError as error:
                int8 = None
                for name in int8_formats:
                    failed[name] = error
                    del missing[name]
        with _Running(origin.threads) as running:
            files = [file for name, file in earlier.files.items() if name not in missing]
            new, unwritten = _write_files(
                model, staging, missing, reference, data, judges, int8, running, steps
            )
            failed |= unwritten
            if not new:
                raise IncompleteExportError(failed)
            running.open_earlier(files, folder)
            steps.begin("latencies")
            image = first_image(data.test, model.preprocessing)
            files = _timed([*files, *new], running, image, steps)
        steps.begin("card")
        summary = earlier.int8 if int8 is None else int8.summary
        samples = earlier.with_int8_logits(samples)
        if all(file.precision != "int8" for file in files):
            summary, samples = None, replace(samples, int8_logits=None)
        samples.save(staging / SAMPLES_FILE)
        searched = (origin.search_runtime, origin.search_dtype)
        script, problem = _write_script(model, staging, folder, files, searched, samples)
        if problem is not None:
            failed[SCRIPT_FILE] = problem
        card = make_card(
            model,
            data,
            origin,
            weights_digest=weights_digest,
            accuracy=accuracy,
            files=files,
            int8=summary,
            script=script,
        )
        outdated = {*earlier.names, SCRIPT_FILE, FIGURE_FILE, SUSTAINED_FILE, MISTAKES_FILE}
        kept = earlier.files.keys() - missing.keys()
        if earlier.sustained and {load.format for load in earlier.sustained.loads} <= kept:
            card = card.model_copy(update={"sustained": earlier.sustained})
            outdated.remove(SUSTAINED_FILE)
        _write_descriptions(model, staging, card, origin.answers)
        _write_example(model, staging, folder, card, with_cpp=with_cpp)
        folder.publish(staging, replaced=(outdated - _names(files)) | cpp_example.FILES)
        steps.end()
    if failed:
        raise IncompleteExportError(failed)
    return card


def digest_of_weights(model: TrainedModel) -> str:
    """Return a digest of the trained weights, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, values in sorted(model.weights.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _write_files(
    model: TrainedModel,
    staging: Path,
    formats: Mapping[str, ModelFormat],
    reference: ReferenceImages,
    data: ImageDataset,
    judges: Sequence[Part],
    int8: Quantisation | None,
    running: _Running,
    steps: _Steps,
) -> tuple[list[ExportedFile], dict[str, NasError]]:
    """Write and verify a file of each format. Return the good ones, and the errors of the others.

    The files of a format that failed are removed.
    """
    files: list[ExportedFile] = []
    failed: dict[str, NasError] = {}
    for name, model_file in formats.items():
        steps.begin(name)

        def report(done: int, total: int | None, text: str = "", name: str = name) -> None:
            steps.update(f"{name}: {done} of {total} images")

        path = staging / model_file.file_name
        quantised = int8.network if int8 is not None and model_file.precision == "int8" else None
        try:
            with _export_errors(f"{path.name} could not be written", staging):
                model_file.write(model, quantised, path)
            with _export_errors(f"{path.name} could not be verified", staging):
                files.append(
                    check_file(
                        running.open(model_file, path),
                        reference,
                        model.preprocessing,
                        data=data,
                        parts=judges,
                        progress=report,
                    )
                )
        except NasError as error:
            failed[name] = error
            running.close(model_file)
            for written in (
                path,
                *(staging / each for each in (*model_file.companions, *model_file.device_files)),
            ):
                remove(written)
    return files, failed


@contextmanager
def _export_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn all that a format's package or the system raises into an ExportError.

    The other formats are then exported nevertheless.

    Args:
        what: what failed, without a full stop.
        folder: a folder on the disk that the files are written to.
    """
    try:
        yield
    except NasError:
        raise
    # Packages raise anything, also about a full disk.
    except Exception as error:
        reason, remedy = first_line(error), "Export another format."
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOSPC or shutil.disk_usage(folder).free < _FULL_DISK_BYTES:
            reason, remedy = os.strerror(errno.ENOSPC), "Make room, and export again."
        elif isinstance(error, OSError):
            remedy = "Export again."
        raise ExportError(f"{what}: {reason}.", remedy=remedy) from error


def _with_int8(
    reference: ReferenceImages, model: TrainedModel, network: QuantisedNetwork
) -> ReferenceImages:
    """Return reference images with the logits of a quantised network."""
    parts = [simulate(network, batch) for batch in batches(reference.images, model.preprocessing)]
    return replace(reference, int8_logits=np.concatenate(parts))


def _samples(model: TrainedModel, data: ImageDataset) -> ReferenceImages:
    """Return the images and image files with which a model folder is verified elsewhere."""
    images = sample_images(data.search, SAMPLE_IMAGES)
    stored = [each for each in data.examples if each.content]
    pixels = [np.asarray(images.pixels[: len(images)]), *(each.pixels[None] for each in stored)]
    labels = np.array([each.label for each in stored], np.int64)
    images = Images(np.concatenate(pixels), np.concatenate([images.labels, labels]))
    files = tuple(ReferenceFile(each.kind, each.count, each.content) for each in data.examples)
    return ReferenceImages(images, model.pixel_logits(images.pixels), files=files)


def _write_script(
    model: TrainedModel,
    staging: Path,
    folder: ModelFolder,
    files: Sequence[ExportedFile],
    searched: tuple[str, str],
    samples: ReferenceImages,
) -> tuple[ScriptCheck | None, NasError | None]:
    """Write and verify `run.py`; if it fails, leave none and return the error.

    The script runs the file of the searched runtime and dtype by default, if that runs here.
    """
    names = {
        file.format: file.file
        for file in sorted(files, key=lambda file: (file.runtime, file.precision) != searched)
        if file.runs_here
    }
    chosen = script_format(names)
    if chosen is None:
        return None, None
    (staging / PREPROCESSING_FILE).write_text(to_json(model.preprocessing), encoding="utf-8")
    script = staging / SCRIPT_FILE
    name = names[chosen]
    script.write_text(run_script(name), encoding="utf-8")
    path = next(each / name for each in (staging, folder.path) if (each / name).exists())
    try:
        return check_script(script, path, model_format(chosen), samples), None
    except NasError as error:
        script.unlink()
        remedy = f"{error.remedy} When the cause is mended, the same export adds {SCRIPT_FILE}."
        return None, ExportError(error.message, remedy=remedy.strip())


def _timed(
    files: Sequence[ExportedFile], running: _Running, image: NDArray[np.float32], steps: _Steps
) -> list[ExportedFile]:
    """Return the records of files with their latencies. A file that fails has none."""
    failed: dict[str, ExportError] = {}
    timed = time_files(
        running.processes,
        image,
        lambda done, total, text="": steps.update(f"latencies: {done} of {total} timings"),
        failed,
    )
    for error in failed.values():
        warnings.warn(f"A verified file was not timed. {error}", stacklevel=2)
    return [timed[file.format].update(file) if file.format in timed else file for file in files]


def _with_origin(
    model: TrainedModel,
    data: ImageDataset,
    folder: ModelFolder,
    staging: Path,
    origin: ModelOrigin,
    *,
    with_cpp: bool,
) -> ModelCard:
    """Return the card of an exported model with its license, threshold and pictures of mistakes.

    No file of a format depends on these. The card is written if they are new.
    """
    before, answers = folder.card, origin.answers
    images = sample_images(data.holdout, MAX_IMAGES)
    card = before.model_copy(
        update={
            "data": before.data.model_copy(update={"license": origin.data.license}),
            "preprocessing": model.preprocessing,
            "threshold": origin.threshold,
            "confidence": tuple(measure_confidence(model, images, data.unknown)),
        }
    )
    has_pictures = answers is not None and any(each.picture for each in answers.mistakes)
    same_pictures = has_pictures == (folder.path / MISTAKES_FILE).is_file()
    if card == before and same_pictures and not with_cpp:
        return card
    _write_descriptions(model, staging, card, answers)
    _write_example(model, staging, folder, card, with_cpp=with_cpp)
    folder.publish(staging, replaced={MISTAKES_FILE})
    return card


def _write_descriptions(
    model: TrainedModel, staging: Path, card: ModelCard, answers: Answers | None
) -> None:
    """Write everything beside the files of the formats."""
    sheet = draw_sheet(answers) if answers else None
    if sheet is not None:
        (staging / MISTAKES_FILE).write_bytes(sheet)
    architecture = json.dumps(model.architecture.to_json(), indent=1)
    texts = {
        ARCHITECTURE_FILE: f"{architecture}\n",
        PREPROCESSING_FILE: to_json(model.preprocessing),
        CARD_FILE: to_json(card),
        CARD_PAGE: render_card(
            card,
            _draw_latencies(card, staging / FIGURE_FILE),
            answers,
            None if sheet is None else MISTAKES_FILE,
        ),
    }
    for name, text in texts.items():
        (staging / name).write_text(text, encoding="utf-8")


def _write_example(
    model: TrainedModel, staging: Path, folder: ModelFolder, card: ModelCard, *, with_cpp: bool
) -> None:
    """Write the C++ example if it is asked for, or if the folder has one of an earlier export."""
    if with_cpp or cpp_example.is_in(folder):
        formats = [file.format for file in card.files]
        cpp_example.write_example(staging, formats, model.preprocessing)


def _draw_latencies(card: ModelCard, path: Path) -> str | None:
    """Draw the latencies of the files of a card. Return the name of the plot; None without one."""
    if all(file.latency is None for file in card.files):
        return None
    try:
        draw_benchmark(card.files, card.device, path, card.data)
    # The files are worth more than their plot.
    except Exception as error:
        remove(path)
        warnings.warn(f"{path.name} could not be drawn: {first_line(error)}.", stacklevel=2)
        return None
    return path.name


def _names(files: Sequence[ExportedFile]) -> frozenset[str]:
    """Return the names of files with those of their companions."""
    return frozenset(name for file in files for name in (file.file, *file.companions))
