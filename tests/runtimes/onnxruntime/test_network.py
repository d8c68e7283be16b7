"""Compare networks in sessions with torch and with the fusion rules."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import nas.space
from nas.errors import MeasurementError
from nas.graph import Graph
from nas.latency import open_runtime
from nas.latency.runtime import Runtime
from nas.runtimes.onnxruntime.float32.fusion import BlockedFusion
from nas.runtimes.onnxruntime.network import OnnxRuntimeNetwork
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.torch_network import Network, folded_weights
from tests.latency.example_graphs import GRAPHS


def network_with_effective_norms(graph: Graph) -> Network:
    """Return a network whose norms and biases all have an effect."""
    generator = torch.Generator().manual_seed(0)
    network = Network(graph, generator).eval()
    with torch.no_grad():
        for name, values in [*network.named_buffers(), *network.named_parameters()]:
            if name.endswith("running_var"):
                values.uniform_(0.5, 2.0, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                values.normal_(0, 0.5, generator=generator)
    return network


def check(runtime: Runtime, graph: Graph) -> None:
    network = network_with_effective_norms(graph)
    compiled = runtime.compile(graph, {}, folded_weights(network))
    assert Counter(compiled.launched) == Counter(runtime.kernels(graph))
    image = np.random.default_rng(0).standard_normal(graph.input_shape).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None])[0].numpy().reshape(-1)
    for _ in range(2):
        output = compiled.run(image)
        assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


def check_batch(runtime: Runtime, graph: Graph, batch: int) -> None:
    network = network_with_effective_norms(graph)
    compiled = runtime.compile(graph, {}, folded_weights(network), batch=batch)
    assert Counter(compiled.launched) == Counter(runtime.kernels(graph, batch))
    assert {kernel.batch for kernel in compiled.launched} == {batch}
    images = np.random.default_rng(0).standard_normal((batch, *graph.input_shape), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy().reshape(batch, -1)
    for _ in range(2):
        outputs = compiled.run(images)
        assert outputs.shape == expected.shape
        assert np.abs(outputs - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime("onnxruntime")


@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_compute_what_torch_computes(runtime: Runtime, name: str) -> None:
    check(runtime, GRAPHS[name]())


@pytest.mark.parametrize("name", nas.space.space_names())
def test_whole_networks_compute_what_torch_computes(runtime: Runtime, name: str) -> None:
    space = nas.space.load_space(name, image_size=24, classes=5)
    check(runtime, space.sample(np.random.default_rng(2), uniform_over="choices").graph)


@pytest.mark.parametrize("name", nas.space.space_names())
def test_fusion_rules_match_the_optimised_models(runtime: Runtime, name: str) -> None:
    space = nas.space.load_space(name, image_size=33)
    rng = np.random.default_rng(3)
    architectures = [space.sample(rng) for _ in range(4)]
    architectures += [space.reference(reference.name) for reference in space.references]
    for architecture in architectures:
        graph = architecture.graph
        compiled = runtime.compile(graph, {})
        assert Counter(compiled.launched) == Counter(runtime.kernels(graph))


@pytest.mark.parametrize("name", GRAPHS)
def test_batches_have_the_kernels_of_their_graph_and_compute_what_torch_computes(
    runtime: Runtime, name: str
) -> None:
    check_batch(runtime, GRAPHS[name](), 3)


def test_networks_on_two_threads_compute_what_torch_computes() -> None:
    runtime = open_runtime("onnxruntime", threads=2)
    for name in ("inverted_residual", "shuffle_unit", "squeeze_excite"):
        check(runtime, GRAPHS[name]())


def test_random_weights_give_ordinary_outputs(runtime: Runtime) -> None:
    graph = GRAPHS["classifier"]()
    compiled = runtime.compile(graph, {})
    output = compiled.run(np.ones(graph.input_shape, np.float32))
    assert np.isfinite(output).all()
    assert np.abs(output).max() > 1e-3
    assert all(seconds > 0 for seconds in compiled.evaluate(2, 3))


def test_network_whose_kernels_differ_from_the_rules_is_refused() -> None:
    other = BlockedFusion(8 if OnnxRuntime().fusion.block == 16 else 16)
    graph = GRAPHS["squeezenet_head"]()
    with pytest.raises(MeasurementError, match=r"onnxruntime .* kernel '"):
        OnnxRuntimeNetwork(graph, None, fusion=other, threads=1)
