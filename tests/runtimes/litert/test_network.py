"""Compare the outputs of networks in LiteRT with those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nas.space
from nas.graph import Graph
from nas.latency import open_runtime
from nas.latency.runtime import Runtime
from nas.torch_network import folded_weights
from tests.latency.example_graphs import GRAPHS
from tests.runtimes.onnxruntime.test_network import network_with_effective_norms


def check(runtime: Runtime, graph: Graph, batch: int = 1) -> None:
    network = network_with_effective_norms(graph)
    compiled = runtime.compile(graph, {}, folded_weights(network), batch=batch)
    images = np.random.default_rng(1).standard_normal((batch, *graph.input_shape), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy().reshape(batch, -1)
    for _ in range(2):
        outputs = compiled.run(images if batch > 1 else images[0]).reshape(batch, -1)
        error = outputs - expected
        if runtime.dtype == "float32":
            assert np.abs(error).max() <= 1e-4 * np.abs(expected).max()
        else:
            # Each rounding to one of 256 values adds noise of about 0.3% of the range.
            assert np.sqrt(np.mean(error**2)) <= 0.06 * expected.std()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_compute_what_torch_computes(name: str, dtype: str) -> None:
    check(open_runtime("litert", dtype=dtype), GRAPHS[name]())


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"])
def test_whole_networks_compute_what_torch_computes(name: str) -> None:
    space = nas.space.load_space(name, image_size=24, classes=5)
    architecture = space.sample(np.random.default_rng(2), uniform_over="choices")
    check(open_runtime("litert"), architecture.graph)


@pytest.mark.parametrize("name", ["inverted_residual", "shuffle_unit", "fire", "squeeze_excite"])
def test_batches_and_threads_compute_what_torch_computes(name: str) -> None:
    check(open_runtime("litert"), GRAPHS[name](), batch=3)
    check(open_runtime("litert", threads=2), GRAPHS[name]())
    check(open_runtime("litert", dtype="int8"), GRAPHS[name](), batch=3)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_random_weights_can_be_timed(dtype: str) -> None:
    graph = GRAPHS["classifier"]()
    compiled = open_runtime("litert", dtype=dtype).compile(graph, {})
    output = compiled.run(np.ones(graph.input_shape, np.float32))
    assert np.isfinite(output).all()
    assert np.abs(output).max() > 1e-3
    assert all(seconds > 0 for seconds in compiled.evaluate(2, 3))
