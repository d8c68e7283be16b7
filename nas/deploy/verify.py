"""Verification of exported files: each is run by its own runtime and compared with torch.

`run.py` is verified, too: it reads image files of each kind in the data, and its logits are
compared with those of torch for the pixels that training decoded.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from nas.data import ImageDataset, Images, Part, load_dataset
from nas.deploy.folder import SAMPLES_FILE, SCRIPT_FILE, ModelFolder, size_bytes
from nas.deploy.formats import ModelFormat, model_format
from nas.deploy.model import normalised
from nas.deploy.model_process import ModelProcess
from nas.deploy.script_check import INT8_SHARE
from nas.deploy.scripts import script_logits
from nas.display.progress import Advance
from nas.errors import DataError, ExportError, RequestError, RunFolderError
from nas.files.documents import read_bytes
from nas.files.paths import expanded
from nas.run.model_card import (
    EnergyRecord,
    ExportedFile,
    ModelData,
    Preprocessing,
    ScriptCheck,
)
from nas.run.progress import JobProgress, shown
from nas.run.record import read_run

SAMPLE_IMAGES = 32
"""Images in a model folder, with which it is verified where its data is not. They have less than
5 MB at 224 pixels, and a wrong file differs from torch on the first of them."""

COMPARED_IMAGES = 512
"""Most test images whose logits are compared at the export. Simulating int8 takes 30 times as long
as running it; the accuracy is measured on all test images."""

MAX_ACCURACY_CHANGE = 0.005
"""Largest difference of the accuracy of a file from the one in its card, on another machine: half a
point, the loss that int8 may have. Processors round differently."""

EMULATED_IMAGES = 4
"""Images that an emulator classifies. It takes seconds for one at 224 pixels."""

BATCH_SIZE = 64
"""Images of a batch when a file or torch classifies many."""


@dataclass(frozen=True)
class ReferenceFile:
    """An image file of the data that stands for all files of its kind.

    Attributes:
        kind: what matters to reading it, such as "PNG RGBA, alpha".
        count: number of images of this kind in the data.
        content: content of the file; empty if it is not stored.
    """

    kind: str
    count: int
    content: bytes


@dataclass(frozen=True, eq=False)
class ReferenceImages:
    """Images with the logits that exported files should compute for them.

    Attributes:
        images: `N` decoded images with their labels.
        logits: logits `N x classes` of torch, in float32.
        int8_logits: those of the quantised network, simulated in torch; None without one.
        files: an image file of each kind in the data. The last of the `N` images are those of the
            files that are stored, in the same order.
    """

    images: Images
    logits: NDArray[np.float32]
    int8_logits: NDArray[np.float32] | None = None
    files: tuple[ReferenceFile, ...] = ()

    @property
    def stored(self) -> list[ReferenceFile]:
        """The files whose content is stored."""
        return [file for file in self.files if file.content]

    def expected(self, precision: str) -> NDArray[np.float32]:
        """Return the logits that a file of a precision should compute."""
        if precision == "float32":
            return self.logits
        assert self.int8_logits is not None, "int8 files are exported with these logits"
        return self.int8_logits

    def first(self, count: int) -> ReferenceImages:
        """Return the first images with their logits, without files."""
        part = slice(count)
        int8_logits = None if self.int8_logits is None else self.int8_logits[part]
        return ReferenceImages(self.images.take(part), self.logits[part], int8_logits)

    def save(self, path: Path) -> None:
        """Write the images and their logits as safetensors."""
        tensors = {
            "pixels": np.ascontiguousarray(self.images.pixels[: len(self.images)]),
            "labels": self.images.labels,
            "logits": self.logits,
        }
        if self.int8_logits is not None:
            tensors["int8_logits"] = self.int8_logits
        kinds = json.dumps([(file.kind, file.count) for file in self.files])
        tensors["file_kinds"] = np.frombuffer(kinds.encode(), np.uint8)
        for index, file in enumerate(self.files):
            tensors[f"file_{index}"] = np.frombuffer(file.content, np.uint8)
        path.write_bytes(safetensors_numpy.save(tensors))

    @classmethod
    def load(cls, path: Path) -> ReferenceImages:
        """Return what `save` wrote. Raises ExportError for a damaged file."""
        try:
            tensors = safetensors_numpy.load(read_bytes(path))
            images = Images(tensors["pixels"], tensors["labels"])
            files = tuple(
                ReferenceFile(kind, count, tensors[f"file_{index}"].tobytes())
                for index, (kind, count) in enumerate(json.loads(tensors["file_kinds"].tobytes()))
            )
            return cls(images, tensors["logits"], tensors.get("int8_logits"), files)
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise ExportError(
                f"{path} cannot be read: {error}.",
                remedy="Restore it, or export the model again with `nas export`.",
            ) from None


@dataclass(frozen=True)
class FileOutcome:
    """What a verification or a benchmark says of one file.

    Attributes:
        file: the file with what was measured now.
        status: `verified` or `timed`, `not run here` (it is for another system or processor), `run
            by qemu-arm on 4 images` or `not installed`.
        remedy: command that installs its runtime; empty if it is installed.
        energy: energy at full load; None if it was not measured.
    """

    file: ExportedFile
    status: str
    remedy: str = ""
    energy: EnergyRecord | None = None


@dataclass(frozen=True)
class FolderVerification:
    """What a verification says of a model folder.

    Attributes:
        files: the files; `accuracy` is None if the data is not there.
        images: number of test images whose classes were compared with their labels.
        no_accuracy: why the accuracy was not checked; empty if it was.
        script: what `run.py` computed; None if it was not run.
        no_script: why it was not run; empty if it was.
    """

    files: tuple[FileOutcome, ...]
    images: int
    no_accuracy: str
    script: ScriptCheck | None
    no_script: str


def check_file(
    process: ModelProcess,
    reference: ReferenceImages,
    preprocessing: Preprocessing,
    *,
    data: ImageDataset | None,
    parts: Sequence[Part] = ("holdout",),
    progress: Advance | None = None,
) -> ExportedFile:
    """Load and run an exported file, and compare its logits with the reference.

    A file whose runtime does not exist for this system is only read, which checks its structure.
    One for another kind of processor is run by an emulator on a few images, and is not even read
    without one.

    Args:
        process: the process of the file, which loads it now.
        reference: images with the logits to expect.
        preprocessing: how the images become the input.
        data: the dataset on whose test images, which may be those of `reference`, and `parts` the
            accuracy is measured. None measures no accuracy.
        parts: the parts of the data that judge networks; none for a file that has learned them.
        progress: receives the number of classified images.

    Raises:
        ExportError: the runtime refuses the file, its logits differ by more than the tolerance of
            the format, or a file of precision int8 has no layer that runs in int8.
    """
    model_file, path = process.model_file, process.path
    names = (model_file.file_name, *model_file.companions)
    runs_here = process.can_run
    file = ExportedFile(
        format=model_file.name,
        file=model_file.file_name,
        companions=(*model_file.companions, *model_file.device_files),
        precision=model_file.precision,
        size_bytes=sum(size_bytes(path.parent / name) for name in names),
        runs_here=runs_here,
        emulator="" if runs_here or process.device else model_file.emulator(path),
        runtime=next(iter(model_file.runtimes), ""),
    )
    size = BATCH_SIZE
    if file.emulator:
        reference, data, size = reference.first(EMULATED_IMAGES), None, 1
    elif not file.runs_here:
        if not model_file.runs_here and not process.device:
            model_file.open(path)
        return file
    expected = reference.expected(model_file.precision)
    layers = process.load(first_image(reference.images, preprocessing)).quantised_layers
    if model_file.precision == "int8" and layers is not None and not layers[0]:
        raise ExportError(
            f"{path.name} was written as int8, but none of its {layers[1]} layers runs in int8.",
            remedy="Use another int8 format.",
        )
    logits = classify(process, reference.images, preprocessing, progress, size)
    difference = require_agreement(path.name, logits, expected, model_file)
    accuracies = {}
    if data is not None:
        measured = {"accuracy": data.test}
        if parts:
            measured["holdout_accuracy"] = data.part(*parts)
        for name, images in measured.items():
            is_same = images is reference.images
            own = logits if is_same else classify(process, images, preprocessing, progress)
            accuracies[name] = data.score(own.argmax(1), images.labels)
    checked = file.model_copy(
        update={
            **accuracies,
            "images": len(logits),
            "agreement": float((logits.argmax(1) == reference.logits.argmax(1)).mean()),
            "difference": difference,
            "tolerance": model_file.tolerance,
        }
    )
    # What an emulator takes says nothing about the device.
    return checked if file.emulator else process.described(checked)


def check_script(
    script: Path, model: Path, model_file: ModelFormat, reference: ReferenceImages
) -> ScriptCheck:
    """Run a `run.py` on image files, and compare its logits with the reference.

    The files are PNG files of the decoded pixels, and the stored files of each kind in the data,
    which the script has to read as training did.

    Args:
        script: path of the `run.py`.
        model: file of the network that it runs.
        model_file: format of that file.
        reference: images and files with the logits to expect.

    Raises:
        ExportError: the script does not run or does not read a file, or its logits differ by more
            than the tolerance of the format.
    """
    logits = np.array(
        run_on_files(script, ["--model", str(model.absolute())], reference), np.float32
    )
    expected, kinds = reference.expected(model_file.precision), _kinds(reference)
    worst = kinds[int(np.abs(logits - expected).max(1).argmax())]
    name = f"{script.name}, most of all for files {worst},"
    return script_check(
        reference, model_file, require_agreement(name, logits, expected, model_file)
    )


def script_check(
    reference: ReferenceImages, model_file: ModelFormat, difference: float
) -> ScriptCheck:
    """Return the record of a script whose logits differ so much from the reference."""
    return ScriptCheck(
        file=model_file.file_name,
        images=len(reference.images) - len(reference.stored),
        kinds={file.kind: file.count for file in reference.stored},
        unchecked=tuple(file.kind for file in reference.files if not file.content),
        difference=difference,
        tolerance=model_file.tolerance,
    )


def _kinds(reference: ReferenceImages) -> list[str]:
    """Return what the files are that a script reads for each of the reference images."""
    count = len(reference.images) - len(reference.stored)
    return ["PNG of decoded pixels"] * count + [file.kind for file in reference.stored]


def run_on_files(script: Path, options: Sequence[str], reference: ReferenceImages) -> list[Any]:
    """Run a script on files of the reference images, and return its logits.

    Args:
        script, options: see `nas.deploy.scripts.script_logits`.
        reference: the images; those of files that are stored are read from these files.

    Raises:
        ExportError: the script does not run or does not read a file.
    """
    stored = reference.stored
    count = len(reference.images) - len(stored)
    with tempfile.TemporaryDirectory(prefix="nas-script-") as folder:
        names = [f"image{index}" for index in range(len(reference.images))]
        for name, pixels in zip(names, reference.images.pixels[:count], strict=False):
            Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
                Path(folder) / name, "PNG"
            )
        for name, file in zip(names[count:], stored, strict=True):
            (Path(folder) / name).write_bytes(file.content)
        results = script_logits(script, options, names, Path(folder))
    for kind, result in zip(_kinds(reference), results, strict=True):
        if isinstance(result, str):
            raise ExportError(
                f"{script.name} does not read an image of the data ({kind}): {result}.",
                remedy="Use the packages that the card of the model names.",
            )
    return results


def verify(
    path: Path | str, *, device: str = "", progress: JobProgress | bool | None = True
) -> FolderVerification:
    """Verify an exported model again, on this or another machine.

    The digests of all files are checked first. Then every file is run on the images in the folder,
    whose logits torch computed at the export, and on the test images if the data is there. Last,
    `run.py` is run on image files.

    Args:
        path: the model folder, `models/<id>` of a run or a copy of it.
        device: another device that runs the files, a target with an address (`nas.transports`);
            empty for this machine. Only logits for the images in the folder are compared there.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or what receives
            how many images of how many a file has classified.

    Raises:
        DeviceError: the device is not there.
        RunFolderError: nothing was exported to the folder.
        ExportError: a file is missing or changed, does not compute what it should, or is less
            accurate than at the export.
    """
    folder = ModelFolder(Path(path))
    folder.require_unchanged()
    card, preprocessing = folder.card, folder.preprocessing
    samples = ReferenceImages.load(folder.path / SAMPLES_FILE)
    results = []
    with shown(progress) as bars:
        bars.begin("verify", "image")
        data, no_accuracy = None, ""
        if device:
            no_accuracy = f"{device} classified the {len(samples.images)} images in the folder."
        else:
            try:
                data = load_data(card.data, card.image_size, folder.path)
            except DataError as error:
                no_accuracy = error.message
        for recorded in card.files:
            try:
                model_file = model_format(recorded.format)
            except RequestError as error:
                results.append(FileOutcome(recorded, "not installed", error.remedy))
                continue
            with ModelProcess(model_file, folder.path / recorded.file, device=device) as process:
                checked_file = check_file(
                    process,
                    samples,
                    preprocessing,
                    data=data,
                    parts=() if card.refit else card.data.judging_parts,
                    progress=partial(bars.advance, text=recorded.format),
                )
            _require_same_accuracy(recorded, checked_file)
            status = checked_file.elsewhere or "verified"
            if device and not checked_file.runs_here:
                status = "not run on other devices"
            results.append(FileOutcome(checked_file, status))
        script, no_script = None, f"{SCRIPT_FILE} is run on this machine only."
        if not device:
            script, no_script = _verify_script(folder, results, samples)
    return FolderVerification(
        tuple(results), 0 if data is None else len(data.test), no_accuracy, script, no_script
    )


def _verify_script(
    folder: ModelFolder, files: list[FileOutcome], samples: ReferenceImages
) -> tuple[ScriptCheck | None, str]:
    """Run the `run.py` of a folder; return what it computed, or None and why it was not run."""
    path, chosen = folder.path / SCRIPT_FILE, folder.card.script_file
    if chosen is None or SCRIPT_FILE not in folder.sums():
        return None, f"The folder has no {SCRIPT_FILE}."
    outcome = next(each for each in files if each.file.format == chosen.format)
    if outcome.status != "verified":
        return None, f"{SCRIPT_FILE} runs {outcome.file.file}, which is {outcome.status}."
    model = folder.path / outcome.file.file
    return check_script(path, model, model_format(outcome.file.format), samples), ""


def load_data(
    own: ModelData, image_size: int, folder: Path, *, with_unknown: bool = False
) -> ImageDataset:
    """Return the images that a model was trained on.

    Args:
        own: what its card says of them.
        image_size: height and width of the decoded images, in pixels.
        folder: folder of the model. If a run has it, the run knows the place of the images.
        with_unknown: whether to load the images of no class, which the run alone knows.

    Raises DataError if they are not there, or are others than at the export.
    """
    source, options = own.source, own.load_options
    with suppress(RunFolderError):
        settings = read_run(folder.resolve().parent.parent).job.data
        if os.path.lexists(expanded(settings.source)):
            source, options["extra"] = settings.source, settings.extra
        options["unknown"] = settings.unknown if with_unknown else None
    data = load_dataset(source, image_size=image_size, seed=own.seed, **options)
    if data.digest != own.digest:
        raise DataError(
            f"{source} has other images than the model was trained on: their digest is "
            f"{data.digest}, not {own.digest}."
        )
    return data


def sample_images(images: Images, count: int) -> Images:
    """Return some images, evenly spaced; all of them if there are not more."""
    if len(images) <= count:
        return images
    positions = np.linspace(0, len(images) - 1, count).astype(np.int64)
    return images.take(positions)


def first_image(images: Images, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the first of some images as the input of a network, `1 x C x H x W`."""
    return normalised(images.take(slice(1)), preprocessing)


def batches(
    images: Images, preprocessing: Preprocessing, size: int = BATCH_SIZE
) -> Iterator[NDArray[np.float32]]:
    """Yield images as the input of a network, `size` at a time."""
    for start in range(0, len(images), size):
        yield normalised(images.take(slice(start, start + size)), preprocessing)


def classify(
    process: ModelProcess,
    images: Images,
    preprocessing: Preprocessing,
    progress: Advance | None = None,
    size: int = BATCH_SIZE,
) -> NDArray[np.float32]:
    """Return the logits `N x classes` that a file, which its process has loaded, computes."""
    parts: list[NDArray[np.float32]] = []
    for batch in batches(images, preprocessing, size):
        parts.append(process.logits(batch))
        if progress:
            progress(sum(map(len, parts)), len(images))
    return np.concatenate(parts)


def require_agreement(
    name: str,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    model_file: ModelFormat,
) -> float:
    """Return the difference of logits, as a share of their standard deviation.

    This is the largest difference of an image, for int8 without `1 - INT8_SHARE` of the images.

    Raises:
        ExportError: they differ by more than the tolerance, or are not finite.
    """
    if logits.shape != expected.shape:
        raise ExportError(f"{name} gives logits {logits.shape}, not {expected.shape}.")
    differences = np.abs(logits - expected).max(1) / max(float(expected.std()), 1e-12)
    share = 1.0 if model_file.precision == "float32" else INT8_SHARE
    difference, tolerance = float(np.quantile(differences, share)), model_file.tolerance
    if not difference <= tolerance:
        agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
        raise ExportError(
            f"{name} does not compute what it should: its logits differ from the reference by "
            f"{difference:.3g} of their standard deviation, and {tolerance:g} is allowed. "
            f"{agreement:.1%} of the images get the same class.",
            remedy="Use another format.",
        )
    return difference


def _require_same_accuracy(recorded: ExportedFile, now: ExportedFile) -> None:
    """Raise ExportError if the accuracy of a file is another than at the export."""
    if recorded.accuracy is None or now.accuracy is None:
        return
    if abs(now.accuracy - recorded.accuracy) > MAX_ACCURACY_CHANGE:
        raise ExportError(
            f"{recorded.file} has an accuracy of {now.accuracy:.4f} on the test images here, and "
            f"had {recorded.accuracy:.4f} at the export.",
            remedy="Use another format on this machine.",
        )
