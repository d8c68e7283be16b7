"""Compare compiled networks with torch, and with what they really call."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import nas.space
from nas.errors import MissingKernelError
from nas.graph import Graph
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.torch_network import Network, folded_weights
from tests.latency.example_graphs import GRAPHS


def first_schedules(runtime: TvmRuntime, graph: Graph, batch: int = 1) -> dict:
    return {k: runtime.timer.templates.candidates(k)[0] for k in runtime.kernels(graph, batch)}


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


def check(runtime: TvmRuntime, graph: Graph) -> None:
    network = network_with_effective_norms(graph)
    compiled = runtime.compile(graph, first_schedules(runtime, graph), folded_weights(network))
    assert Counter(compiled.launched) == Counter(runtime.kernels(graph))
    image = np.random.default_rng(0).standard_normal(graph.input_shape).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None])[0].numpy()
    for _ in range(2):
        output = compiled.run(image)
        assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


def check_batch(runtime: TvmRuntime, graph: Graph, batch: int) -> None:
    """Check every image of a batch, whatever the others are."""
    network = network_with_effective_norms(graph)
    schedules = first_schedules(runtime, graph, batch)
    compiled = runtime.compile(graph, schedules, folded_weights(network), batch=batch)
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
def runtime() -> TvmRuntime:
    return TvmRuntime()


@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_compute_what_torch_computes(runtime: TvmRuntime, name: str) -> None:
    check(runtime, GRAPHS[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", nas.space.space_names())
def test_whole_networks_compute_what_torch_computes(runtime: TvmRuntime, name: str) -> None:
    space = nas.space.load_space(name, image_size=16, classes=5)
    rng = np.random.default_rng(2)
    for _ in range(2 if name.endswith("_tiny") else 1):
        check(runtime, space.sample(rng, uniform_over="choices").graph)


@pytest.mark.parametrize(
    "name",
    [
        "inverted_residual",
        "shuffle_unit",
        "classifier",
        "grouped",
        "squeeze_excite",
        "shuffle_v1_downsampling",
        "unpadded_stem",
    ],
)
def test_blocks_on_two_threads_compute_what_torch_computes(name: str) -> None:
    check(TvmRuntime(threads=2), GRAPHS[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_batches_compute_what_torch_computes(runtime: TvmRuntime, name: str) -> None:
    check_batch(runtime, GRAPHS[name](), 3)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("name", ["inverted_residual", "shuffle_unit", "squeeze_excite", "fire"])
def test_batches_on_several_threads_compute_what_torch_computes(name: str, threads: int) -> None:
    check_batch(TvmRuntime(threads=threads), GRAPHS[name](), 3)


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"])
def test_whole_networks_compute_batches(runtime: TvmRuntime, name: str) -> None:
    space = nas.space.load_space(name, image_size=16, classes=5)
    check_batch(runtime, space.sample(np.random.default_rng(2), uniform_over="choices").graph, 4)


def test_kernel_without_a_schedule_is_named(runtime: TvmRuntime) -> None:
    with pytest.raises(MissingKernelError, match="conv2d 12x4x4"):
        runtime.compile(GRAPHS["squeezenet_head"](), {})


def test_random_weights_give_ordinary_outputs(runtime: TvmRuntime) -> None:
    graph = GRAPHS["classifier"]()
    compiled = runtime.compile(graph, first_schedules(runtime, graph))
    output = compiled.run(np.ones(graph.input_shape, np.float32))
    assert np.isfinite(output).all()
    assert np.abs(output).max() > 1e-3
    assert all(seconds > 0 for seconds in compiled.evaluate(2, 3))


@pytest.mark.slow
def test_schedules_for_narrower_vectors_compute_the_same() -> None:
    """Run schedules for AVX2 and for 128-bit vectors on this machine."""
    for lanes in (8, 4):
        runtime = TvmRuntime()
        runtime.timer.templates.lanes, runtime.timer.templates.registers = lanes, 16
        for name in (
            "inverted_residual",
            "shuffle_unit",
            "fire",
            "squeeze_excite",
            "shuffle_v1_unit_of_8_groups",
            "shuffle_v1_downsampling",
            "unpadded_stem",
        ):
            check(runtime, GRAPHS[name]())
