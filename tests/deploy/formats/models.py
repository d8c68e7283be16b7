"""Small models of each family on real digits, and the checks that all formats have in common."""

from __future__ import annotations

import os
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
from nas.space import Architecture, load_space
from nas.torch_network import Network, to_torch

FAMILIES = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny", "mobilenet_v3_small")
"""A space of each family; that of MobileNetV3 has hard swish and squeeze-excite."""


@cache
def digits_model(space: str) -> TrainedModel:
    """Return a small network of a space for digits. All its norms and biases have an effect."""
    data = load_dataset("digits", validation_fraction=0.5)
    settings = {"image_size": 8, "channels": 1, "classes": 10}
    network = _small_architecture(load_space(space, **settings))
    return TrainedModel(network, with_effective_norms(to_torch(network)), preprocessing_of(data))


@cache
def digits_images(count: int = 20) -> NDArray[np.float32]:
    """Return normalised digits, of the part that scores candidates."""
    data = load_dataset("digits", validation_fraction=0.5)
    return normalised(data.search, preprocessing_of(data))[:count]


def with_effective_norms(network: Network) -> Network:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in [*network.named_buffers(), *network.named_parameters()]:
            if name.endswith(("running_var", "norm.weight")):
                values.uniform_(0.7, 1.4, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                values.normal_(0, 0.3, generator=generator)
    return network


def _small_architecture(space) -> Architecture:
    """Return the smallest of a few random networks that have every kind of op of their space."""
    networks = [space.sample(seed=seed) for seed in range(8)]
    kinds = set().union(*(network.graph.counts() for network in networks))
    complete = [each for each in networks if set(each.graph.counts()) == kinds] or networks
    return min(complete, key=lambda each: each.macs)


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
