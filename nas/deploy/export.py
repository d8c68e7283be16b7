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

from nas.data import ImageDataset
from nas.data.dataset import joined
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
from nas.deploy.formats.base import silenced
from nas.deploy.int8 import MAX_DROP, Quantisation, quantise_within
from nas.deploy.model import TrainedModel
from nas.deploy.model_process import ModelProcess
from nas.deploy.requests import ExportRequest
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
from nas.quantisation.network import QuantisedNetwork
from nas.quantisation.simulation import simulate
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

    def missing(self, request: ExportRequest) -> dict[str, ModelFormat]:
        """Return the formats to write. All int8 files hold the same quantised network.

        A network that loses too much accuracy is quantised again only for a stricter limit, because
        everything was tried for the earlier one. A network whose weights have other bits than those
        asked for is quantised again, too.
        """
        chosen = {name: model_format(name) for name in dict.fromkeys(request.formats or ())}
        missing = {name: each for name, each in chosen.items() if name not in self.files}
        if self.renewed_by and not missing:
            missing = {self.renewed_by: model_format(self.renewed_by)}
        int8, max_drop = self.int8, _max_drop(request)
        is_worse = int8 is not None and max_drop < min(int8.drop, int8.max_drop)
        has_other_bits = int8 is not None and request.weight_bits not in (None, int8.weight_bits)
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
    request: ExportRequest,
    origin: ModelOrigin,
    progress: Advance | None = None,
) -> ModelCard:
    """Export a trained model to files, each verified with its own runtime.

    Files that were exported before from the same weights are kept. Formats do not depend on each
    other: one that fails leaves no file, and the others are exported before its error is raised.
    A file that was verified and then cannot be timed is kept, with a warning.

    Args:
        model: the trained model, with the threshold in its preprocessing.
        data: the images that it was trained on.
        folder: the model folder.
        request: the formats, and how int8 is made.
        origin: where the model comes from, for its card.
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
    for name in request.formats or ():
        model_format(name)
    with folder.staging() as staging:
        earlier = _Earlier.read(folder, digest_of_weights(model))
        missing = earlier.missing(request)
        steps = _Steps(len(missing) + 4, progress)
        export = _Export(model, data, folder, staging, request, origin, steps)
        card = export.write(missing, earlier) if missing else export.renew_card()
    if export.failed:
        raise IncompleteExportError(export.failed)
    return card


@dataclass(eq=False)
class _Export:
    """An export of a model to a staging folder, which then becomes the model folder.

    Attributes:
        model, data, folder, request, origin: see `export_model`.
        staging: folder of the new files.
        steps: reports what is being done.
        failed: errors of the formats that could not be exported, and of `run.py`, by name.
    """

    model: TrainedModel
    data: ImageDataset
    folder: ModelFolder
    staging: Path
    request: ExportRequest
    origin: ModelOrigin
    steps: _Steps
    failed: dict[str, NasError] = field(default_factory=dict)

    def write(self, formats: dict[str, ModelFormat], earlier: _Earlier) -> ModelCard:
        """Write, verify and time a file of each format, then describe all files, and publish.

        Args:
            formats: the formats to write, by name.
            earlier: what an earlier export left.
        """
        self.steps.begin("accuracy in torch")
        accuracy = measure_accuracy(self.model, self.data, self.origin.data.judging_parts)
        compared, samples = self._references()
        self.steps.begin("quantisation")
        int8 = None
        if int8_names := [name for name, each in formats.items() if each.precision == "int8"]:
            try:
                int8, compared, samples = self._quantise(compared, samples)
            except NasError as error:
                self.failed |= dict.fromkeys(int8_names, error)
                formats = {k: each for k, each in formats.items() if k not in int8_names}
        old = [file for name, file in earlier.files.items() if name not in formats]
        network = None if int8 is None else int8.network
        files = self._write_files(formats, old, compared, network)
        self.steps.begin("card")
        summary = earlier.int8 if int8 is None else int8.summary
        samples = earlier.with_int8_logits(samples)
        if all(file.precision != "int8" for file in files):
            summary, samples = None, replace(samples, int8_logits=None)
        samples.save(self.staging / SAMPLES_FILE)
        card = make_card(
            self.model,
            self.data,
            self.origin,
            weights_digest=digest_of_weights(self.model),
            accuracy=accuracy,
            files=files,
            int8=summary,
            script=self._write_script(files, samples),
        )
        outdated = {*earlier.names, SCRIPT_FILE, FIGURE_FILE, SUSTAINED_FILE, MISTAKES_FILE}
        sustained, old_formats = earlier.sustained, {file.format for file in old}
        if sustained and {load.format for load in sustained.loads} <= old_formats:
            card = card.model_copy(update={"sustained": sustained})
            outdated.remove(SUSTAINED_FILE)
        self._describe(card)
        self.folder.publish(self.staging, replaced=(outdated - _names(files)) | cpp_example.FILES)
        self.steps.end()
        return card

    def renew_card(self) -> ModelCard:
        """Return the card of the exported model with its license, threshold and mistakes.

        No file of a format depends on these. The card is written if they are new.
        """
        before, answers = self.folder.card, self.origin.answers
        images = sample_images(self.data.holdout, MAX_IMAGES)
        card = before.model_copy(
            update={
                "data": before.data.model_copy(update={"license": self.origin.data.license}),
                "preprocessing": self.model.preprocessing,
                "threshold": self.origin.threshold,
                "confidence": tuple(measure_confidence(self.model, images, self.data.unknown)),
            }
        )
        has_pictures = answers is not None and any(each.picture for each in answers.mistakes)
        same_pictures = has_pictures == (self.folder.path / MISTAKES_FILE).is_file()
        if card != before or not same_pictures or self.request.example is not None:
            self._describe(card)
            self.folder.publish(self.staging, replaced={MISTAKES_FILE})
        return card

    def _references(self) -> tuple[ReferenceImages, ReferenceImages]:
        """Return the images with which files are compared now, and those for the model folder.

        The latter have an image file of each kind in the data, too, for `run.py`.
        """
        compared = sample_images(self.data.test, COMPARED_IMAGES)
        images, examples = sample_images(self.data.search, SAMPLE_IMAGES), self.data.examples
        if self.data.inventory is not None:
            stored = np.array([each.position for each in examples if each.content], int)
            images = joined([images, self.data.inventory.images.take(stored)])
        files = tuple(ReferenceFile(each.kind, each.count, each.content) for each in examples)
        return (
            ReferenceImages(compared, self.model.pixel_logits(compared.pixels)),
            ReferenceImages(images, self.model.pixel_logits(images.pixels), files=files),
        )

    def _quantise(
        self, compared: ReferenceImages, samples: ReferenceImages
    ) -> tuple[Quantisation, ReferenceImages, ReferenceImages]:
        """Return the int8 network, and the reference images with its logits."""
        with _export_errors("The int8 network could not be made", self.staging):
            int8 = quantise_within(
                self.model,
                self.data,
                max_drop=_max_drop(self.request),
                weight_bits=self.request.weight_bits,
                progress=lambda method: self.steps.update(f"quantisation: {method}"),
            )
            how = self.model.preprocessing
            both = [
                replace(
                    each,
                    int8_logits=np.concatenate(
                        [simulate(int8.network, batch) for batch in batches(each.images, how)]
                    ),
                )
                for each in (compared, samples)
            ]
        return int8, both[0], both[1]

    def _write_files(
        self,
        formats: Mapping[str, ModelFormat],
        old: Sequence[ExportedFile],
        reference: ReferenceImages,
        int8: QuantisedNetwork | None,
    ) -> list[ExportedFile]:
        """Write and verify a file of each format, and time all files.

        The files of a format that failed are removed. Raises IncompleteExportError if all failed.

        Args:
            formats: the formats, by name.
            old: files that were exported before.
            reference: images with the logits to expect.
            int8: the quantised network; None without one.
        """
        files = list(old)
        with _Running(self.origin.threads) as running:
            for name, model_file in formats.items():
                self.steps.begin(name)
                try:
                    files.append(self._write_file(model_file, reference, int8, running))
                except NasError as error:
                    self.failed[name] = error
                    running.close(model_file)
                    beside = (*model_file.companions, *model_file.device_files)
                    for written in (model_file.file_name, *beside):
                        remove(self.staging / written)
            if len(files) == len(old):
                raise IncompleteExportError(self.failed)
            running.open_earlier(old, self.folder)
            self.steps.begin("latencies")
            return self._timed(files, running)

    def _write_file(
        self,
        model_file: ModelFormat,
        reference: ReferenceImages,
        int8: QuantisedNetwork | None,
        running: _Running,
    ) -> ExportedFile:
        """Write and verify the file of one format."""
        path = self.staging / model_file.file_name
        quantised = int8 if model_file.precision == "int8" else None
        with _export_errors(f"{path.name} could not be written", self.staging), silenced():
            model_file.write(self.model, quantised, path)
        with _export_errors(f"{path.name} could not be verified", self.staging):
            return check_file(
                running.open(model_file, path),
                reference,
                self.model.preprocessing,
                data=self.data,
                parts=self.origin.data.judging_parts,
                progress=lambda done, total, text="": self.steps.update(
                    f"{model_file.name}: {done} of {total} images"
                ),
            )

    def _timed(self, files: Sequence[ExportedFile], running: _Running) -> list[ExportedFile]:
        """Return the records of files with their latencies. A file that fails has none."""
        timed, failed = time_files(
            running.processes,
            first_image(self.data.test, self.model.preprocessing),
            lambda done, total, text="": self.steps.update(f"latencies: {done} of {total} timings"),
        )
        for error in failed.values():
            warnings.warn(f"A verified file was not timed. {error}", stacklevel=2)
        return [
            running.processes[file.format].described(file, latency=timed[file.format])
            if file.format in timed
            else file
            for file in files
        ]

    def _write_script(
        self, files: Sequence[ExportedFile], samples: ReferenceImages
    ) -> ScriptCheck | None:
        """Write and verify `run.py`; if it fails, leave none and note the error.

        The script runs the file of the searched runtime and dtype by default, if that runs here.
        """
        searched = (self.origin.search_runtime, self.origin.search_dtype)
        names = {
            file.format: file.file
            for file in sorted(files, key=lambda file: (file.runtime, file.precision) != searched)
            if file.runs_here
        }
        chosen = script_format(names)
        if chosen is None:
            return None
        staging, name = self.staging, names[chosen]
        (staging / PREPROCESSING_FILE).write_text(to_json(self.model.preprocessing), "utf-8")
        script = staging / SCRIPT_FILE
        script.write_text(run_script(name), encoding="utf-8")
        path = next(each / name for each in (staging, self.folder.path) if (each / name).exists())
        try:
            return check_script(script, path, model_format(chosen), samples)
        except NasError as error:
            script.unlink()
            remedy = f"{error.remedy} When the cause is mended, the same export adds {SCRIPT_FILE}."
            self.failed[SCRIPT_FILE] = ExportError(error.message, remedy=remedy.strip())
            return None

    def _describe(self, card: ModelCard) -> None:
        """Write everything beside the files of the formats, and the C++ example.

        The example is written if it is asked for, or if the folder has one of an earlier export.
        """
        model, staging, answers = self.model, self.staging, self.origin.answers
        sheet = draw_sheet(answers) if answers else None
        if sheet is not None:
            (staging / MISTAKES_FILE).write_bytes(sheet)
        figure = _draw_latencies(card, staging / FIGURE_FILE)
        mistakes = None if sheet is None else MISTAKES_FILE
        architecture = json.dumps(model.architecture.to_json(), indent=1)
        texts = {
            ARCHITECTURE_FILE: f"{architecture}\n",
            PREPROCESSING_FILE: to_json(model.preprocessing),
            CARD_FILE: to_json(card),
            CARD_PAGE: render_card(card, figure, answers, mistakes),
        }
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        if self.request.example is not None or cpp_example.is_in(self.folder):
            formats = [file.format for file in card.files]
            cpp_example.write_example(staging, formats, model.preprocessing)


def _max_drop(request: ExportRequest) -> float:
    """Return the largest accuracy that int8 may lose."""
    return MAX_DROP if request.max_accuracy_drop is None else request.max_accuracy_drop


def digest_of_weights(model: TrainedModel) -> str:
    """Return a digest of the trained weights, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, values in sorted(model.weights.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


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
