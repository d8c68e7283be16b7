"""Compiled networks against the rules by which a runtime fuses, and against torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.runtime import CompiledNetwork, Runtime, Schedules
from nas.torch_network import folded_weights
from tests.test_onnx_model import network

LARGEST_ERROR = {"float32": 1e-4, "float16": 2e-2}
"""Largest error of a few consecutive kernels, relative to the largest value."""

INT8_ERROR = 0.06
"""Root of the mean squared error of int8 outputs over their deviation.

Each rounding to one of 256 values adds noise of about 0.3% of the range.
"""


def first_schedules(runtime: Runtime, graph: Graph, batch: int = 1) -> Schedules:
    """Return a schedule of each kernel without timing any; only TVM needs schedules."""
    if runtime.name != "tvm":
        return {}
    templates = runtime.timer.templates  # type: ignore[attr-defined]
    return {kernel: templates.candidates(kernel)[0] for kernel in runtime.kernels(graph, batch)}


def random_images(graph: Graph, count: int) -> np.ndarray:
    """Return random images, such as those with which runtimes measure int8 ranges."""
    shape = (count, *graph.input_shape)
    return np.random.default_rng(1).random(shape, np.float32)


def check_network(runtime: Runtime, graph: Graph, batch: int = 1) -> None:
    """Check what a compiled network launches, and its outputs for some images, twice.

    All norms and biases of the network have an effect.
    """
    net = network(graph)
    schedules = first_schedules(runtime, graph, batch)
    compiled = runtime.compile(graph, schedules, folded_weights(net), batch)
    check_launches(compiled, runtime.kernels(graph, batch))
    images = random_images(graph, batch)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy().reshape(batch, -1)
    for _ in range(2):
        check_outputs(compiled.run(images if batch > 1 else images[0]), expected, runtime.dtype)


def check_launches(compiled: CompiledNetwork, kernels: Sequence[Kernel]) -> None:
    """Check what a network launches; runtimes that do not say have compared it themselves."""
    if compiled.launched is not None:
        assert Counter(compiled.launched) == Counter(kernels)


def check_outputs(outputs: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """Compare the outputs of a batch with those of torch in float32."""
    assert outputs.size == expected.size
    error = outputs.reshape(expected.shape) - expected
    if dtype == "int8":
        assert np.sqrt(np.mean(error**2)) <= INT8_ERROR * expected.std()
    else:
        assert np.abs(error).max() <= LARGEST_ERROR[dtype] * np.abs(expected).max()
