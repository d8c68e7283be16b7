"""The card of an exported model, `card.json` and `card.md`: what it is and what was measured."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from nas import __version__
from nas.data import ImageDataset, Images, Part
from nas.data.image_reading import OLDEST
from nas.deploy.folder import SUSTAINED_FILE
from nas.deploy.formats.base import package_versions
from nas.deploy.model import TrainedModel, preprocessing_steps
from nas.deploy.robustness import (
    ATTACK_STEPS,
    CONFIDENT,
    MAX_IMAGES,
    attacked_images,
    measure_attacks,
    measure_confidence,
    measure_robustness,
)
from nas.deploy.scripts import script_requirements
from nas.deploy.verify import sample_images
from nas.display.formatting import (
    format_accuracy,
    format_bytes,
    format_count,
    format_latency,
    latency_number,
)
from nas.machine.this_machine import processor
from nas.quantisation.post_training import FEW_CALIBRATION_IMAGES, clipped_share
from nas.run.answers import Answers
from nas.run.model_card import (
    ExportedFile,
    Int8Summary,
    ModelAccuracy,
    ModelCard,
    ModelData,
    SustainedRecord,
    Threshold,
)
from nas.run.settings import CardSettings
from nas.run.trained import Calibration, RefitRecord
from nas.statistics import wilson_interval
from nas.supernet.evaluation import accuracy_by_class

_PACKAGES = ("torch", "numpy", "PIL", "onnx")


@dataclass(frozen=True)
class ModelOrigin:
    """Where a trained model comes from. Fields that `ModelCard` has, too, are stated there.

    Attributes:
        id: name of the model folder.
        data: the images that it was trained on, and how to load them again.
        statements: what the job file says for the card.
        calibration: its temperature and its confidence; None if that was not measured.
        refit: the training of its weights; None if these are the ones that were judged.
        threshold: from which confidence on it answers, as was asked; None if nobody asked.
        recipe: settings of its training.
        image_changes: how its training images were mirrored and shifted, and why.
        latencies_us: latency that the search knew, by `predicted` and `measured`.
        search_device: device that these latencies are for.
        address: target of that device if it is reached by an address, and else empty.
        device_threads: number of threads that run a network there.
        search_runtime, search_dtype: see `nas.run.model_card.ModelCard`.
        threads: number of threads with which the files are timed.
        full_us: reading of the core's speed at full speed on this machine; None if not known.
        answers: what it answered on the images that judge it; None if that is not known.
    """

    id: str
    data: ModelData
    statements: CardSettings = field(default_factory=CardSettings)
    calibration: Calibration | None = None
    refit: RefitRecord | None = None
    threshold: Threshold | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    image_changes: str = ""
    latencies_us: dict[str, float] = field(default_factory=dict)
    search_device: str = ""
    address: str = ""
    device_threads: int = 1
    search_runtime: str = ""
    search_dtype: str = ""
    threads: int = 1
    full_us: float | None = None
    answers: Answers | None = None


def make_card(
    model: TrainedModel,
    data: ImageDataset,
    origin: ModelOrigin,
    *,
    weights_digest: str,
    accuracy: ModelAccuracy,
    files: Sequence[ExportedFile],
    int8: Int8Summary | None,
) -> ModelCard:
    """Return the card of a model, with its answers to changed and attacked images measured.

    What its `run.py` computes is added when that has run.

    Args:
        model: the trained model.
        data: the images that it was trained on.
        origin: where it comes from.
        weights_digest: digest of its weights.
        accuracy: its accuracy in torch.
        files: its exported files.
        int8: how it was quantised; None if it was not.
    """
    images = sample_images(data.holdout, MAX_IMAGES)
    attacked = attacked_images(model.network.graph.macs)
    judging = sample_images(data.part(*origin.data.judging_parts), attacked)
    judged = model.judged
    device, _ = processor()
    stated = {name: value for name, value in vars(origin).items() if name in ModelCard.model_fields}
    return ModelCard.of_architecture(
        model.architecture,
        schema=10,
        **stated,
        weights_digest=weights_digest,
        image_size=model.architecture.space.image_size,
        channels=1 if model.preprocessing.channels == 1 else 3,
        classes=model.preprocessing.classes,
        accuracy=accuracy,
        robustness=tuple(measure_robustness(judged, images, data.score)),
        robustness_images=len(images),
        attacks=tuple(measure_attacks(judged, judging, data.score)),
        attack_images=len(judging),
        confidence=tuple(measure_confidence(judged, images, data.unknown)),
        files=tuple(files),
        preprocessing=model.preprocessing,
        script=None,
        int8=int8,
        device=device,
        versions={
            "nas": __version__,
            "python": platform.python_version(),
            **package_versions(_PACKAGES),
        },
        exported=datetime.now(UTC).isoformat(timespec="seconds"),
        limits=tuple(_limits(files, int8, data)),
    )


def measure_accuracy(
    model: TrainedModel, data: ImageDataset, parts: Sequence[Part]
) -> ModelAccuracy:
    """Return the accuracy of a model in torch: of its weights that were judged, but on the test
    images of those that are shipped.

    `parts` are those that judge it: the hold-out, or the search and the hold-out.
    """

    def classes(images: Images, own: TrainedModel = model.judged) -> NDArray[np.int64]:
        return own.pixel_logits(images.pixels).argmax(1)

    by_part = {"search": classes(data.search), "holdout": classes(data.holdout)}
    judged = np.concatenate([by_part[part] for part in parts])
    test, by_class = accuracy_by_class(data, classes(data.test, model), data.test.labels)
    return ModelAccuracy(
        search=data.score(by_part["search"], data.search.labels),
        holdout=data.score(judged, data.part(*parts).labels),
        test=test,
        by_class=by_class,
    )


def render_card(
    card: ModelCard,
    figure: str | None,
    answers: Answers | None = None,
    mistakes_figure: str | None = None,
) -> str:
    """Return the text of `card.md`.

    Args:
        card: the card.
        figure: name of the file with the plot of the latencies; None if there is none.
        answers: what the model answered on the images that judge it; None if that is not known.
        mistakes_figure: name of the file with the pictures of its mistakes; None without pictures.
    """
    return _template("card.md.j2").render(
        card=card,
        sustained=card.sustained and render_sustained(card.sustained),
        confident=CONFIDENT,
        attack_steps=ATTACK_STEPS,
        steps=preprocessing_steps(card.preprocessing),
        requirements=shlex.join(
            script_requirements(card.script_file.format) if card.script_file else ()
        ),
        python=".".join(map(str, OLDEST["Python"])),
        figure=figure,
        by_class={
            name: _accuracy_of(value, count)
            for (name, value), count in zip(
                card.accuracy.by_class.items(), card.data.class_counts["test"], strict=True
            )
        },
        answers=answers,
        mistakes_figure=mistakes_figure,
    )


def render_sustained(record: SustainedRecord) -> str:
    """Return the section of `card.md` about the latencies under a load of some minutes."""
    return _template("sustained.md.j2").render(record=record, figure=SUSTAINED_FILE)


def with_sustained(page: str, record: SustainedRecord) -> str:
    """Return the text of `card.md` with the section of a record in place of an earlier one."""
    rest = re.sub(r"^## Sustained speed\n.*?(?=^## )", "", page, count=1, flags=re.M | re.S)
    before, heading, after = rest.partition("\n## Data\n")
    return f"{before}\n{render_sustained(record)}\n{heading}{after}"


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas.deploy", ""),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "ms": format_latency,
        "ms_number": lambda us: "-" if us is None else latency_number(us),
        "percent": _percent,
        "accuracy_of": _accuracy_of,
        "cell": _cell,
    }
    return environment.get_template(name)


def _limits(
    files: Sequence[ExportedFile],
    int8: Int8Summary | None,
    data: ImageDataset,
) -> list[str]:
    """Return what the figures of a card do not say."""
    limits = [
        f"The accuracies hold for images like the data. The test accuracy comes from "
        f"{len(data.test)} images. The 95% intervals know the number of images, but not that "
        "another training would end with another accuracy, nor that several images show one thing.",
        "The model gives every image one of its classes, also an image that shows none of them. "
        "Its confidence is the largest softmax value. What it means was measured on images like "
        "the data, and does not hold for others.",
        "Latencies and peak memory are those of one image at a time on the processor above. "
        "`nas benchmark` measures them on another device.",
    ]
    if int8 is not None and int8.calibration_images < FEW_CALIBRATION_IMAGES:
        limits.append(
            f"int8 was calibrated on {int8.calibration_images} training images only: the largest "
            f"value of a tensor is clipped in {clipped_share(int8.calibration_images):.0%} of new "
            "images, if nothing else widens its range."
        )
    if int8 is not None and int8.drop > int8.max_drop:
        limits.append(
            f"int8 loses {100 * int8.drop:.1f} points on validation images of the search, more "
            f"than the {100 * int8.max_drop:g} points asked for."
        )
    if any(file.format == "onnx-int8" for file in files):
        limits.append(
            "model-int8.onnx has unsigned activations with zero points, which TensorRT does not "
            "take. Build its engine from the float32 file of format onnx."
        )
    for file in files:
        if file.runs_here and file.latency is None:
            limits.append(f"{file.file} was not timed, because its process failed then.")
        if file.emulator:
            limits.append(
                f"{file.file} was {file.elsewhere}, not by its own processor. Its accuracy and its "
                "latency were not measured."
            )
        elif not file.runs_here:
            where = "on one that can"
            if file.format == "c":
                where = "where there is an emulator (qemu-user). Until then it is not verified"
            limits.append(
                f"{file.file} was not run: the machine that exported it cannot run it. "
                f"`nas verify` checks it {where}."
            )
    return limits


def _accuracy_of(accuracy: float | None, images: float) -> str:
    """Return a plain accuracy on so many images with its interval; nothing for None."""
    return format_accuracy(None if accuracy is None else wilson_interval(accuracy, [images]))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"


def _cell(text: object) -> str:
    """Return a text for a cell of a table in Markdown."""
    escaped = re.sub(r"([\\`*\[\]|])", r"\\\1", str(text).replace("\n", " "))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")
