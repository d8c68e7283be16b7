"""Small models on real digits, and the checks that all formats have in common."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data import load_dataset
from nas.deploy.formats import LoadedModel, ModelFormat
from nas.deploy.model import TrainedModel, normalised, preprocessing_of
from nas.run.model_card import Preprocessing
from nas.space import load_space
from nas.space.builder import Builder
from nas.torch_network import Network, to_torch


@cache
def digits_model(space: str = "squeezenet_tiny") -> TrainedModel:
    """Return the smallest network of a space for digits. Its norms and biases have an effect."""
    settings = {"image_size": 8, "channels": 1, "classes": 10}
    network = load_space(space, **settings).smallest
    return TrainedModel(network, with_effective_norms(to_torch(network)), _preprocessing())


@cache
def every_op_model() -> TrainedModel:
    """Return a network for digits with an op of each kind; its architecture is None."""
    build = Builder((1, 8, 8), norm=True, activation="hard_swish", classes=10)
    x = build.conv_unit(build.input, "stem", 16, kernel=3)
    y = build.depthwise_unit(build.conv_unit(x, "expand", 24), "depthwise", kernel=5)
    gate = build.activate(build.conv(build.global_pool(y), "reduce", 8, bias=True), "relu")
    gate = build.activate(build.conv(gate, "restore", 24, bias=True), "hard_sigmoid")
    x = build.add(x, build.conv_unit(build.multiply(y, gate), "project", 16, activate=False))
    left, right = build.split(x)
    right = build.conv_unit(right, "branch", 8, groups=2, activate="relu6")
    x = build.avg_pool(
        build.shuffle(build.concat(left, right), 2), "average", kernel=2, stride=2, padding="valid"
    )
    x = build.max_pool(build.conv_unit(x, "last", 24), "pool", kernel=3, stride=2)
    build.linear(build.global_pool(x), "classes", 10)
    network = Network(build.graph(), torch.Generator().manual_seed(0))
    return TrainedModel(None, with_effective_norms(network), _preprocessing())  # type: ignore


@cache
def _preprocessing() -> Preprocessing:
    return preprocessing_of(load_dataset("digits", validation_fraction=0.5))


@cache
def digits_images(count: int = 20) -> NDArray[np.float32]:
    """Return normalised digits, of the part that scores candidates."""
    data = load_dataset("digits", validation_fraction=0.5)
    return normalised(data.search.take(slice(count)), preprocessing_of(data))


def with_effective_norms(network: Network) -> Network:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in [*network.named_buffers(), *network.named_parameters()]:
            if name.endswith(("running_var", "norm.weight")):
                values.uniform_(0.7, 1.4, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                values.normal_(0, 0.3, generator=generator)
    return network


def write(model_format: ModelFormat, model: TrainedModel, folder: Path) -> Path:
    """Write a model into a folder, check that no other file is there, and return its path."""
    path = folder / model_format.file_name
    model_format.write(model, None, path)
    assert {each.name for each in folder.iterdir()} == {path.name, *model_format.companions}
    return path


def assert_computes_the_same(
    loaded: LoadedModel, model: TrainedModel, images: NDArray[np.float32], tolerance: float
) -> None:
    """Check the logits of a loaded file, and that the order of the images makes no difference."""
    expected = model.logits(images)
    limit = tolerance * expected.std()
    assert np.abs(loaded.logits(images) - expected).max() <= limit
    reversed_images = np.ascontiguousarray(images[::-1])
    assert np.abs(loaded.logits(reversed_images) - expected[::-1]).max() <= limit


def defined_symbols(path: Path, *, hidden: bool) -> set[str]:
    """Return the names that an object file defines for other objects."""
    text = subprocess.run(["readelf", "-sW", path], stdout=-1, check=True, text=True).stdout
    defined = re.findall(r" (?:GLOBAL|WEAK) +(DEFAULT|HIDDEN) +\w*\d (\S+)$", text, re.MULTILINE)
    return {name for visibility, name in defined if (visibility == "HIDDEN") == hidden}


def run_python(code: str, *arguments: str | Path, hidden: tuple[str, ...] = ()) -> str:
    """Run code in a fresh process in which some packages cannot be imported; return its output.

    Raises:
        AssertionError: the process failed.
    """
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
    completed = subprocess.run(
        [sys.executable, "-c", hide + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout
