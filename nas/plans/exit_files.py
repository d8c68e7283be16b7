"""The two ONNX files of a network with an exit, as an exported cascade has them.

`k9c7@exit/prefix.onnx` gives the logits of the exit, and the `features` that `k9c7/rest.onnx`
reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.deploy.exits import load_with_exit
from nas.deploy.folder import PREPROCESSING_FILE, SAMPLES_FILE, ModelFolder
from nas.deploy.formats import ModelFormat, model_format
from nas.deploy.formats.onnx import Onnx, OnnxModel
from nas.deploy.model import TrainedModel
from nas.deploy.model_process import ModelProcess
from nas.deploy.networks import trained_record
from nas.deploy.verify import ReferenceImages, check_file
from nas.graph import Graph
from nas.plans.cascade import ON_EXIT
from nas.run.model_card import ExportedFile
from nas.run.run import Run
from nas.space.exits import with_exit


class Prefix(Onnx):
    """`prefix.onnx`: a network up to its exit."""

    file_name = "prefix.onnx"


class Rest(Onnx):
    """`rest.onnx`: what follows behind the exit, run behind the prefix of the same network."""

    file_name = "rest.onnx"

    def load(self, path: Path, threads: int = 1) -> OnnxModel:
        """See `ModelFormat.load`."""
        return _RestModel(path, threads)


class _RestModel(OnnxModel):
    """A rest in a session of ONNX Runtime, with its prefix in another one.

    The latency of `runner` is that of the rest alone.
    """

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
        network = path.parent
        prefix = network.with_name(network.name + ON_EXIT) / Prefix.file_name
        self._prefix = OnnxModel(prefix, threads)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        _, features = self._prefix.outputs(images)
        return super().logits(features)

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        _, features = self._prefix.outputs(image)
        return super().runner(features)


_PARTS: Mapping[str, type[Onnx]] = {each.file_name: each for each in (Prefix, Rest)}
"""The formats of the parts, by the names of their files."""


def format_of(file: ExportedFile) -> ModelFormat:
    """Return the format of a file of an exported cascade."""
    part = _PARTS.get(file.file)
    return part() if part else model_format(file.format)


def write_exit(run: Run, model: ModelFolder, folder: Path) -> list[ExportedFile]:
    """Write both parts of an exported network with an exit, each to a folder, and verify them.

    Each folder also gets `preprocessing.json`, and the images of the exported network with the
    logits of torch.

    Args:
        run: the run.
        model: the folder of the network without its exit, exported as ONNX.
        folder: the folder of the cascade.

    Raises:
        CheckpointError: a file of the trained network is damaged.
        ExportError: a part does not compute what torch does.
    """
    from nas import onnx_model

    name, preprocessing = model.path.name, model.preprocessing
    network = run.architecture_of(trained_record(run, name).architecture)
    parts = with_exit(network)
    trained = TrainedModel(network, load_with_exit(run, name), preprocessing)
    samples = ReferenceImages.load(model.path / SAMPLES_FILE)
    both = np.hsplit(trained.pixel_logits(samples.images.pixels), 2)
    features = len(Graph(parts.prefix.ops[: parts.source + 1]).folded.ops) - 1
    prefix = onnx_model.model(parts.prefix, trained.weights, features=features)
    rest = onnx_model.model(parts.rest, trained.weights)
    onnx_model.rename(rest, onnx_model.INPUT, onnx_model.FEATURES)
    folders = folder / f"{name}{ON_EXIT}", folder / name
    for own, kind, proto, logits in zip(
        folders, _PARTS.values(), (prefix, rest), both, strict=True
    ):
        own.mkdir()
        onnx_model.save(proto, own / kind.file_name)
        shutil.copy2(model.path / PREPROCESSING_FILE, own / PREPROCESSING_FILE)
        contiguous = np.ascontiguousarray(logits)
        replace(samples, logits=contiguous, int8_logits=None).save(own / SAMPLES_FILE)
    files = []
    for own, kind in zip(folders, _PARTS.values(), strict=True):
        with ModelProcess(kind(), own / kind.file_name) as process:
            reference = ReferenceImages.load(own / SAMPLES_FILE)
            files.append(check_file(process, reference, preprocessing, data=None))
    return files
