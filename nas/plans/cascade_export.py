"""Export of a cascade to a folder of its own, and its verification there.

The folder `cascades/<names>/` of a run has a folder for each network, with its file as `nas export`
wrote and verified it, beside `cascade.json` and a `run.py` that runs without this package.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import nas
from nas.data import ImageDataset, Images
from nas.deploy.confidence import largest_probabilities
from nas.deploy.exporting import checked_request, export, model_data
from nas.deploy.folder import (
    PREPROCESSING_FILE,
    SAMPLES_FILE,
    SCRIPT_FILE,
    SUMS_FILE,
    ModelFolder,
    first_part,
)
from nas.deploy.formats import format_names, model_format
from nas.deploy.model import normalised
from nas.deploy.model_process import ModelProcess
from nas.deploy.requests import ExportRequest
from nas.deploy.scripts import script_requirements, script_with_loaders
from nas.deploy.verify import (
    MAX_ACCURACY_CHANGE,
    ReferenceImages,
    check_file,
    classify,
    load_data,
    require_agreement,
    run_on_files,
    sample_images,
    script_check,
)
from nas.errors import (
    CheckpointError,
    DataError,
    ExportError,
    InfeasibleError,
    RequestError,
)
from nas.files.documents import Count, Document, Format, Fraction, Name, Positive, to_json
from nas.machine import this_machine
from nas.machine.processes import ChildProcess
from nas.plans.cascade import HIGH_SHARE, Cascade
from nas.plans.cascade_members import dtype_of
from nas.plans.cascade_timing import time_images
from nas.plans.exit_files import format_of, write_exit
from nas.run.model_card import PREPROCESSING, ExportedFile, ModelData, Preprocessing, ScriptCheck
from nas.run.progress import JobProgress
from nas.run.run import Run

CASCADES_FOLDER = "cascades"
"""Name of the folder with a folder for each exported cascade, in a run folder."""

CASCADE_FILE = "cascade.json"

TIMED_IMAGES = 200
"""Most images on which a cascade is timed: 95% of them leave ten."""

TIMING_LIMIT_SECONDS = 600.0
"""How long the timing may take: an image takes at most a tenth of a second in five rounds."""


class CascadeStage(Document):
    """A network of an exported cascade.

    Attributes:
        network: its name, and that of its folder.
        file: its file, with what its own runtime computed at the export.
        min_confidence: smallest confidence of its answer; None for the last network.
    """

    network: Name
    file: ExportedFile
    min_confidence: Fraction | None


class CascadeTiming(Document):
    """What an exported cascade took end to end, for test images one after the other.

    Attributes:
        images: number of images.
        answered: number of these that each network answered.
        mean_us, high_us, worst_us: mean, 95% and largest of the latencies of the images.
        alone_us: mean latency of each network alone, on the same images in the same rounds.
        whole_us: likewise that of the whole network without its exit, if it has one.
        threads: number of threads that the runtime may use.
    """

    images: Count
    answered: tuple[Count, ...]
    mean_us: Positive
    high_us: Positive
    worst_us: Positive
    alone_us: tuple[Positive, ...]
    whole_us: Positive | None = None
    threads: Annotated[int, Field(ge=1)]


class CascadeRecord(Document):
    """`cascade.json`: an exported cascade, and what was measured of it.

    Attributes:
        cascade: the cascade as it was chosen, with what the stored answers say of it.
        stages: its networks in order.
        data: the images, and how to load them again.
        accuracy: accuracy of the files on the test images.
        timing: its latency on this device.
        script: what `run.py` computed; None while it is run for the first time.
        device: processor that exported and timed the files.
        versions: versions of Python and this package by name.
        exported: date and time of the export.
    """

    schema_version: Literal[2] = Field(default=2, alias="schema")
    cascade: Cascade
    stages: tuple[CascadeStage, ...]
    data: ModelData
    accuracy: Fraction
    timing: CascadeTiming
    script: ScriptCheck | None = None
    device: str
    versions: dict[str, str]
    exported: str


CASCADE = Format(
    CascadeRecord,
    "the record of a cascade",
    CheckpointError,
    "Export the cascade again with `nas cascade`.",
)


@dataclass(frozen=True)
class CascadeVerification:
    """What a verification says of the folder of a cascade.

    Attributes:
        files: the file of each network, with what was computed now.
        accuracy: accuracy on the test images; None if the data is not there.
        no_accuracy: why it was not measured; empty if it was.
        script: what `run.py` computed.
    """

    files: tuple[ExportedFile, ...]
    accuracy: float | None
    no_accuracy: str
    script: ScriptCheck


class _Network(NamedTuple):
    """A network of a cascade whose file runs in a process of its own."""

    stage: CascadeStage
    process: ModelProcess
    preprocessing: Preprocessing
    reference: ReferenceImages

    def is_sure(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether it answers each image, `N`, from its logits `N x classes`."""
        return largest_probabilities(logits) >= (self.stage.min_confidence or 0)


def export_cascade(
    run: Run, cascade: Cascade, format_name: str, progress: JobProgress
) -> CascadeRecord:
    """Export a cascade of a run to the folder `cascades/<names>`, and verify and time it there.

    Its networks are exported to their own folders first, as by `nas export`. A network with an exit
    is exported without it there, and as its two parts to the folder of the cascade.

    Args:
        run: the run.
        cascade: the cascade.
        format_name: format of all its files, in the dtype of its networks.
        progress: receives stages, progress and messages.

    Raises:
        InfeasibleError: the cascade is not shown to be better than a single network.
        RequestError: there is no such format, `run.py` does not run it, it is of another dtype, or
            a network of the cascade runs on a server.
        DataError: the images of the run are missing, or others.
        ExportError: a file could not be exported or does not compute what it should.
    """
    if cascade.is_on_server:
        raise RequestError(
            f"{cascade.name} runs on two machines, and no folder holds it.",
            remedy="Export its networks with `nas export`, and leave the server out to export a "
            "cascade for the device alone.",
        )
    if not cascade.is_better:
        raise InfeasibleError(cascade.verdict, remedy="Export the single network.")
    _require_format(run, cascade, format_name)
    request = checked_request(run, ExportRequest(formats=(format_name,)), progress)
    exported = cascade.networks[1:] if cascade.has_exit else cascade.networks
    models = export(run, exported, request, progress)
    folder, data = cascade_folder(run, cascade), model_data(run)
    threads = min(run.settings.device.threads, this_machine.allowed_cores())
    progress.begin(f"cascade {cascade.name}", "step")
    with folder.staging() as staging:
        if cascade.has_exit:
            files = write_exit(run, models[0], staging)
        else:
            files = [_copy_stage(model, staging, format_name) for model in models]
        stages = [
            CascadeStage(network=name, file=file, min_confidence=threshold)
            for name, file, threshold in zip(
                cascade.networks, files, (*cascade.thresholds, None), strict=True
            )
        ]
        with _running(staging, stages) as networks:
            for at, network in enumerate(networks):
                progress.advance(at, len(networks) + 2, f"verify {network.stage.network}")
                _check(network)
            progress.advance(len(networks), len(networks) + 2, "accuracy")
            accuracy = _accuracy(networks, run.data, run.data.test)
            progress.advance(len(networks) + 1, len(networks) + 2, "latency")
            whole = models[0].path if cascade.has_exit else None
            # Networks may have learned all others: they would be surer of these, and answer sooner.
            timed = sample_images(run.data.test, TIMED_IMAGES)
            timing = _time(networks, timed, threads, whole)
            record = CascadeRecord(
                cascade=cascade,
                stages=tuple(stages),
                data=data,
                accuracy=accuracy,
                timing=timing,
                device=this_machine.processor()[0],
                versions={"python": platform.python_version(), "hardware-nas": nas.__version__},
                exported=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            template = Path(__file__).with_name("cascade_template.py")
            (staging / SCRIPT_FILE).write_text(
                script_with_loaders(template, formats=[format_name]), encoding="utf-8"
            )
            (staging / CASCADE_FILE).write_text(to_json(record), encoding="utf-8")
            script = _check_script(staging, networks)
        record = CascadeRecord(**{**dict(record), "script": script})
        (staging / CASCADE_FILE).write_text(to_json(record), encoding="utf-8")
        before = folder.sums() if (folder.path / SUMS_FILE).is_file() else {}
        folder.publish(staging, replaced=set(map(first_part, before)))
    return record


def cascade_folder(run: Run, cascade: Cascade) -> ModelFolder:
    """Return the folder that a cascade of a run is exported to."""
    return ModelFolder(run.path / CASCADES_FOLDER / cascade.name)


def verify_cascade(path: Path | str, progress: JobProgress) -> CascadeVerification:
    """Verify an exported cascade again, on this or another machine.

    The digests of all files are checked, each file is run and compared with what torch computed at
    the export, the accuracy of the cascade is measured if the images are there, and `run.py` is run
    on image files.

    Args:
        path: the folder of the cascade, or a copy of it.
        progress: receives what is verified.

    Raises:
        RequestError: the package of the format is not installed.
        RunFolderError: nothing was exported to the folder.
        ExportError: a file is missing or changed, does not compute what it should, or the cascade
            has another accuracy than at the export.
    """
    folder = ModelFolder(Path(path))
    folder.require_unchanged()
    record = CASCADE.read(folder.path / CASCADE_FILE)
    accuracy, no_accuracy = None, ""
    progress.begin("verify", "step")
    with _running(folder.path, record.stages) as networks:
        files = tuple(map(_check, networks))
        try:
            size = networks[0].preprocessing.reading.decoded_size
            data = load_data(record.data, size, folder.path)
        except DataError as error:
            no_accuracy = error.message
        else:
            accuracy = _accuracy(networks, data, data.test)
        if accuracy is not None and abs(accuracy - record.accuracy) > MAX_ACCURACY_CHANGE:
            raise ExportError(
                f"The cascade has an accuracy of {accuracy:.4f} on the test images here, and had "
                f"{record.accuracy:.4f} at the export.",
                remedy="Export it in another format for this machine.",
            )
        script = _check_script(folder.path, networks)
    return CascadeVerification(files, accuracy, no_accuracy, script)


def _require_format(run: Run, cascade: Cascade, name: str) -> None:
    """Raise RequestError unless a format holds the networks, and `run.py` runs it."""
    if cascade.has_exit and name != "onnx":
        raise RequestError(
            f"{cascade.name} cannot be exported as {name}: its two parts are ONNX files.",
            remedy="Use --format onnx.",
        )
    (dtype,) = {dtype_of(run, model) for model in run.models if model.record.id in cascade.networks}
    runnable = [each for each in format_names() if script_requirements(each)]
    if name in runnable and model_format(name).precision == dtype:
        return
    possible = [each for each in runnable if each.endswith("-int8") == (dtype == "int8")]
    raise RequestError(
        f"A cascade of {dtype} networks cannot be exported as {name}: its thresholds hold in "
        f"{dtype}, and its run.py runs {', '.join(runnable)}.",
        remedy=f"Use --format {' or '.join(possible)}.",
    )


def _copy_stage(model: ModelFolder, staging: Path, format_name: str) -> ExportedFile:
    """Copy the file of an exported network, and what verifies it, to the folder of a cascade."""
    file = next(each for each in model.card.files if each.format == format_name)
    if not file.runs_here:
        raise ExportError(
            f"{model.path / file.file} does not run on this machine, where the cascade would be "
            "verified and timed.",
            remedy="Export another format, such as onnx.",
        )
    folder = staging / model.path.name
    folder.mkdir()
    for name in (file.file, *file.companions, PREPROCESSING_FILE, SAMPLES_FILE):
        source = model.path / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    return file


@contextmanager
def _running(folder: Path, stages: Sequence[CascadeStage]) -> Iterator[list[_Network]]:
    """Yield the networks of a cascade, each with a process that has not loaded its file yet."""
    with ExitStack() as processes:
        networks = []
        for stage in stages:
            own = folder / stage.network
            process = ModelProcess(format_of(stage.file), own / stage.file.file)
            networks.append(
                _Network(
                    stage,
                    processes.enter_context(process),
                    PREPROCESSING.read(own / PREPROCESSING_FILE),
                    ReferenceImages.load(own / SAMPLES_FILE),
                )
            )
        yield networks


def _check(network: _Network) -> ExportedFile:
    """Load the file of a network, and compare it with torch, see `check_file`."""
    return check_file(network.process, network.reference, network.preprocessing, data=None)


def _answering(
    logits: Sequence[NDArray[np.float32]], networks: Sequence[_Network]
) -> NDArray[np.int64]:
    """Return which network answers each of some images, from the logits of each network."""
    is_sure = [network.is_sure(own) for own, network in zip(logits, networks, strict=True)]
    return np.argmax(is_sure, axis=0)


def _accuracy(networks: Sequence[_Network], data: ImageDataset, images: Images) -> float:
    """Return the accuracy of a cascade on some images of a dataset, as its files compute it."""
    logits = [classify(each.process, images, each.preprocessing) for each in networks]
    stages = _answering(logits, networks)
    classes = np.array([own.argmax(1) for own in logits])[stages, np.arange(len(stages))]
    return data.score(classes, images.labels)


def _time(
    networks: Sequence[_Network], images: Images, threads: int, whole: Path | None
) -> CascadeTiming:
    """Time a cascade end to end on some images, beside its networks and a whole one in a folder."""
    files = [(each.process.model_file, each.process.path.absolute()) for each in networks]
    inputs = [normalised(images, each.preprocessing) for each in networks]
    if whole is not None:
        format_ = model_format("onnx")
        files.append((format_, (whole / format_.file_name).absolute()))
        inputs.append(inputs[0])
    process = ChildProcess()
    try:
        stages, seconds, alone = process.call(
            time_images,
            files,
            threads,
            [each.stage.min_confidence for each in networks[:-1]],
            inputs,
            limit_s=TIMING_LIMIT_SECONDS,
        )
    except (ChildProcessError, TimeoutError, RuntimeError) as error:
        raise ExportError(f"The process that times the cascade: {error}.") from error
    finally:
        process.close()
    alone_us = (1e6 * alone.mean(0)).tolist()
    return CascadeTiming(
        images=len(images),
        answered=tuple(np.bincount(stages, minlength=len(networks)).tolist()),
        mean_us=1e6 * float(seconds.mean()),
        high_us=1e6 * float(np.quantile(seconds, HIGH_SHARE)),
        worst_us=1e6 * float(seconds.max()),
        alone_us=tuple(alone_us[: len(networks)]),
        whole_us=alone_us[-1] if whole is not None else None,
        threads=threads,
    )


def _check_script(folder: Path, networks: Sequence[_Network]) -> ScriptCheck:
    """Run the `run.py` of a cascade on image files, and compare it with torch and its thresholds.

    Raises:
        ExportError: the script does not run or does not read a file, its logits differ by more than
            the tolerance of the format, or another network answers than the thresholds say.
    """
    script, reference = folder / SCRIPT_FILE, networks[0].reference
    model_file = networks[0].process.model_file
    answers = run_on_files(script, (), reference)
    difference = 0.0
    for at, network in enumerate(networks):
        classified = [position for position, own in enumerate(answers) if len(own) > at]
        if not classified:
            break
        logits = np.array([answers[position][at] for position in classified], np.float32)
        if (
            network.is_sure(logits) != [len(answers[position]) == at + 1 for position in classified]
        ).any():
            raise ExportError(
                f"{script} does not stop at {network.stage.network} where its confidence reaches "
                f"{network.stage.min_confidence}.",
                remedy="Export the cascade again.",
            )
        expected = network.reference.expected(model_file.precision)[classified]
        difference = max(difference, require_agreement(str(script), logits, expected, model_file))
    return script_check(reference, model_file, difference)
