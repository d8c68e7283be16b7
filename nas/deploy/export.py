"""Export of a trained model: its files are written, run by their own runtimes, and published."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nas.data import ImageDataset, Images
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
    first_part,
    remove,
)
from nas.deploy.formats import ModelFormat, model_format
from nas.deploy.formats.base import silenced
from nas.deploy.int8 import MAX_DROP, Quantisation, int8_logits, quantise_within
from nas.deploy.model import TrainedModel
from nas.deploy.model_process import ModelProcess
from nas.deploy.reference import REFERENCE_FILE, field_reference
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
from nas.latency.core_scheduling import cores_of_processes
from nas.quantisation.network import QuantisedNetwork
from nas.quantisation.simulation import simulate
from nas.run.model_card import (
    CARD_FILE,
    DeviceResults,
    ExportedFile,
    Int8Summary,
    ModelCard,
    ScriptCheck,
    SustainedRecord,
)
from nas.run.progress import SilentProgress

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
            changed = set(map(first_part, folder.changed_files()))
            card = folder.card
            samples = ReferenceImages.load(folder.path / SAMPLES_FILE)
        except (RunFolderError, CheckpointError, ExportError):
            return cls()  # Nothing was exported, or what was is damaged and is replaced.
        names = _names(card.files)
        if card.weights_digest != weights_digest or {CARD_FILE, SAMPLES_FILE} & changed:
            return cls(names=names)
        files = {
            file.format: file for file in card.files if not changed & {file.file, *file.companions}
        }
        has_int8 = any(file.precision == "int8" for file in files.values())
        scripted = script_format([name for name, file in files.items() if file.runs_here])
        renewed_by = None
        if (scripted and card.script is None) or changed - names:
            renewed_by = scripted or next(iter(files), None)
        int8 = card.int8 if has_int8 else None
        return cls(files, names, int8, samples, card.sustained, renewed_by)

    def missing(
        self, formats: Mapping[str, ModelFormat], request: ExportRequest
    ) -> dict[str, ModelFormat]:
        """Return the formats to write, of those that are asked for and of earlier ones.

        All int8 files hold the same quantised network: with one of them, all are written.
        """
        missing = {name: each for name, each in formats.items() if name not in self.files}
        if self.renewed_by and not missing:
            missing = {self.renewed_by: model_format(self.renewed_by)}
        decisive = {**missing, **formats} if self._has_other_int8(request) else missing
        if any(each.precision == "int8" for each in decisive.values()):
            own = [name for name, file in self.files.items() if file.precision == "int8"]
            missing |= {name: model_format(name) for name in own}
        return missing

    def _has_other_int8(self, request: ExportRequest) -> bool:
        """Return whether the int8 network is not what is asked for.

        Its weights have other bits, or it loses more accuracy than a limit that is stricter than
        the earlier one, for which everything was tried.
        """
        int8 = self.int8
        return int8 is not None and (
            request.weight_bits not in (None, int8.weight_bits)
            or _max_drop(request) < min(int8.drop, int8.max_drop)
        )


class _Steps:
    """Reports the steps of an export: the next one begins, or the current one goes on."""

    def __init__(self, total: int, progress: Advance) -> None:
        self._done, self._total, self._progress = -1, total, progress

    def begin(self, text: str) -> None:
        self._done += 1
        self.update(text)

    def update(self, text: str) -> None:
        self._progress(self._done, self._total, text)


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
    formats = {name: model_format(name) for name in request.formats or ()}
    with folder.staging() as staging:
        earlier = _Earlier.read(folder, digest_of_weights(model))
        missing = earlier.missing(formats, request)
        steps = _Steps(len(missing) + 4, progress or SilentProgress().advance)
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
        judged_accuracies: of a model that was refitted, by precision: the accuracy of the weights
            that were judged on the images that judge them, which the files have learned.
    """

    model: TrainedModel
    data: ImageDataset
    folder: ModelFolder
    staging: Path
    request: ExportRequest
    origin: ModelOrigin
    steps: _Steps
    failed: dict[str, NasError] = field(default_factory=dict)
    judged_accuracies: dict[str, float] = field(default_factory=dict)

    def write(self, formats: dict[str, ModelFormat], earlier: _Earlier) -> ModelCard:
        """Write, verify and time a file of each format, then describe all files, and publish.

        Args:
            formats: the formats to write, by name.
            earlier: what an earlier export left.
        """
        self.steps.begin("accuracy in torch")
        parts = self.origin.data.judging_parts
        accuracy = measure_accuracy(self.model, self.data, parts)
        self.steps.begin("quantisation")
        int8 = None
        if int8_names := [name for name, each in formats.items() if each.precision == "int8"]:
            try:
                int8 = self._quantise()
            except NasError as error:
                self.failed |= dict.fromkeys(int8_names, error)
                formats = {k: each for k, each in formats.items() if k not in int8_names}
        if self.model.judged is not self.model:
            self.judged_accuracies = {"float32": accuracy.holdout}
            if int8:
                images = self.data.part(*parts)
                classes = int8_logits(self.model, int8.judged, images).argmax(1)
                self.judged_accuracies["int8"] = self.data.score(classes, images.labels)
        old = [file for name, file in earlier.files.items() if name not in formats]
        network, summary = (int8.network, int8.summary) if int8 else (None, None)
        compared, samples = self._references(network)
        files = self._write_files(formats, old, compared, network)
        self.steps.begin("card")
        if earlier.int8 and earlier.samples and not int8:
            summary, samples = earlier.int8, earlier.samples
        elif all(file.precision != "int8" for file in files):
            summary, samples = None, replace(samples, int8_logits=None)
        samples.save(self.staging / SAMPLES_FILE)
        on_device = self._run_on_device(files, samples) if self.origin.address else None
        digest = digest_of_weights(self.model)
        # What is deployed is compared with its own answers, to images that it did not learn.
        is_refit = self.model.judged is not self.model
        unlearned = self.data.test if is_refit else self.data.part(*parts)
        reference = field_reference(self.model, unlearned, digest)
        (self.staging / REFERENCE_FILE).write_text(to_json(reference), encoding="utf-8")
        with ThreadPoolExecutor() as pool:  # The script is another process, which a signal ends.
            card_of = pool.submit(
                make_card,
                self.model,
                self.data,
                self.origin,
                weights_digest=digest,
                accuracy=accuracy,
                files=files,
                int8=summary,
            )
            script = self._write_script(files, samples)
        card = card_of.result().model_copy(update={"script": script, "on_device": on_device})
        outdated = {*earlier.names, SCRIPT_FILE, FIGURE_FILE, SUSTAINED_FILE, MISTAKES_FILE}
        sustained, old_formats = earlier.sustained, {file.format for file in old}
        if sustained and {load.format for load in sustained.loads} <= old_formats:
            card = card.model_copy(update={"sustained": sustained})
            outdated.remove(SUSTAINED_FILE)
        self._describe(card)
        self.folder.publish(self.staging, replaced=(outdated - _names(files)) | cpp_example.FILES)
        self.steps.begin("")  # All of them are done.
        return card

    def renew_card(self) -> ModelCard:
        """Return the card of the exported model with what an export can change alone.

        License, statements, threshold and mistakes: no file of a format depends on them. The card
        is written if they are new.
        """
        before, answers, judged = self.folder.card, self.origin.answers, self.model.judged
        images = sample_images(self.data.holdout, MAX_IMAGES)
        card = before.model_copy(
            update={
                "data": before.data.model_copy(update={"license": self.origin.data.license}),
                "statements": self.origin.statements,
                "preprocessing": self.model.preprocessing,
                "threshold": self.origin.threshold,
                "confidence": tuple(measure_confidence(judged, images, self.data.unknown)),
            }
        )
        has_pictures = answers is not None and any(each.picture for each in answers.mistakes)
        same_pictures = has_pictures == (self.folder.path / MISTAKES_FILE).is_file()
        if card != before or not same_pictures or self.request.example is not None:
            self._describe(card)
            self.folder.publish(self.staging, replaced={MISTAKES_FILE})
        return card

    def _quantise(self) -> Quantisation:
        with _export_errors("The int8 network could not be made", self.staging):
            return quantise_within(
                self.model,
                self.data,
                max_drop=_max_drop(self.request),
                weight_bits=self.request.weight_bits,
                progress=lambda method: self.steps.update(f"quantisation: {method}"),
            )

    def _references(self, int8: QuantisedNetwork | None) -> tuple[ReferenceImages, ReferenceImages]:
        """Return the images with which files are compared now, and those for the model folder.

        The latter have an image file of each kind in the data, too, for `run.py`.
        """
        how = self.model.preprocessing

        def with_logits(images: Images, files: Sequence[ReferenceFile] = ()) -> ReferenceImages:
            logits, int8_logits = self.model.pixel_logits(images.pixels), None
            if int8 is not None:
                int8_logits = np.concatenate(
                    [simulate(int8, batch) for batch in batches(images, how)]
                )
            return ReferenceImages(images, logits, int8_logits, tuple(files))

        images, examples = sample_images(self.data.search, SAMPLE_IMAGES), self.data.examples
        if self.data.inventory is not None:
            stored = np.array([each.position for each in examples if each.content], int)
            images = joined([images, self.data.inventory.images.take(stored)])
        files = [ReferenceFile(each.kind, each.count, each.content) for each in examples]
        compared = sample_images(self.data.test, COMPARED_IMAGES)
        return with_logits(compared), with_logits(images, files)

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
        running: dict[str, ModelProcess] = {}
        threads = self.origin.threads
        cores: tuple[int, ...] | None = None
        if hasattr(os, "sched_setaffinity"):  # Chosen once, while nothing of the export works.
            (cores,) = cores_of_processes(1, threads)
        with ExitStack() as processes:

            def process_of(model_file: ModelFormat, path: Path) -> ModelProcess:
                process = ModelProcess(model_file, path, threads=threads, cores=cores)
                return processes.enter_context(process)

            own = [process_of(each, self.staging / each.file_name) for each in formats.values()]
            with ThreadPoolExecutor() as pool:  # They start at the same time. Errors come again.
                pool.map(ModelProcess.start, (each for each in own if each.model_file.runs_here))
            for name, process in zip(formats, own, strict=True):
                self.steps.begin(name)
                try:
                    file = self._write_file(process, reference, int8)
                except NasError as error:
                    self.failed[name] = error
                    process.close()
                    each = process.model_file
                    for written in (each.file_name, *each.companions, *each.device_files):
                        remove(self.staging / written)
                    continue
                files.append(file)
                if file.runs_here:
                    running[name] = process
            if len(files) == len(old):
                raise IncompleteExportError(self.failed)
            for file in old:
                path = self.folder.path / file.file
                with suppress(RequestError):  # Without its package, its latency stays as it was.
                    model_file = model_format(file.format)
                    if model_file.can_run(path):
                        running[file.format] = process_of(model_file, path)
            self.steps.begin("latencies")
            return self._timed(files, running)

    def _write_file(
        self, process: ModelProcess, reference: ReferenceImages, int8: QuantisedNetwork | None
    ) -> ExportedFile:
        """Write the file of a process, which then verifies it."""
        model_file, path = process.model_file, process.path
        quantised = int8 if model_file.precision == "int8" else None
        with _export_errors(f"{path.name} could not be written", self.staging), silenced():
            model_file.write(self.model, quantised, path)
        with _export_errors(f"{path.name} could not be verified", self.staging):
            file = check_file(
                process,
                reference,
                self.model.preprocessing,
                data=self.data,
                parts=() if self.judged_accuracies else self.origin.data.judging_parts,
                progress=lambda done, total, text="": self.steps.update(
                    f"{model_file.name}: {done} of {total} images"
                ),
            )
        if self.judged_accuracies and file.accuracy is not None:
            accuracy = self.judged_accuracies[file.precision]
            return file.model_copy(update={"holdout_accuracy": accuracy})
        return file

    def _timed(
        self, files: Sequence[ExportedFile], running: Mapping[str, ModelProcess]
    ) -> list[ExportedFile]:
        """Return the records of files with their latencies. A file that fails has none."""
        timed, failed = time_files(
            running,
            first_image(self.data.test, self.model.preprocessing),
            lambda done, total, text="": self.steps.update(f"latencies: {done} of {total} timings"),
            self.origin.full_us,
        )
        for error in failed.values():
            warnings.warn(f"A verified file was not timed. {error}", stacklevel=2)
        return [
            running[file.format].described(file, latency=timed[file.format])
            if file.format in timed
            else file
            for file in files
        ]

    def _run_on_device(
        self, files: Sequence[ExportedFile], samples: ReferenceImages
    ) -> DeviceResults:
        """Verify and time the files on the device of the search.

        A file that does not run there is exported all the same, and the card says why.
        """
        origin, preprocessing = self.origin, self.model.preprocessing
        checked: dict[str, ExportedFile] = {}
        errors: dict[str, str] = {}
        with ExitStack() as stack:
            running: dict[str, ModelProcess] = {}
            for file in files:
                name = file.format
                self.steps.update(f"{name} on the device")
                folders = (self.staging, self.folder.path)
                path = next(each / file.file for each in folders if (each / file.file).exists())
                process = stack.enter_context(
                    ModelProcess(
                        model_format(name),
                        path,
                        threads=origin.device_threads,
                        device=origin.address,
                    )
                )
                try:
                    own = check_file(process, samples, preprocessing, data=None)
                except NasError as error:
                    errors[name] = str(error)
                    process.close()
                    continue
                if own.runs_here:
                    checked[name], running[name] = own, process
            image = first_image(samples.images, preprocessing)
            latencies, failed = time_files(running, image)
            errors |= {name: first_line(error) for name, error in failed.items()}
            for name, latency in latencies.items():
                checked[name] = running[name].described(checked[name], latency=latency)
        for name, text in errors.items():
            warnings.warn(f"Format '{name}' on the device: {text}", stacklevel=2)
        return DeviceResults(
            device=origin.search_device, files=tuple(checked.values()), errors=errors
        )

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
        script.write_text(run_script(name, names), encoding="utf-8")
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
        is_timed = any(file.latency is not None for file in card.files)
        if is_timed:
            draw_benchmark(card.files, card.device, staging / FIGURE_FILE, card.data)
        figure = FIGURE_FILE if is_timed else None
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


def _names(files: Sequence[ExportedFile]) -> frozenset[str]:
    """Return the names of files with those of their companions."""
    return frozenset(name for file in files for name in (file.file, *file.companions))
