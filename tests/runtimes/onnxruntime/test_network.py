"""Int8 networks that no space has, and exported ones, launch the kernels of their blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nas import onnx_model
from nas.errors import MeasurementError
from nas.latency import open_runtime
from nas.latency.networks import random_weights
from nas.latency.runtime import Runtime
from nas.quantisation.network import assemble, native_weight_bits
from nas.quantisation.ranges import activations, least_squares, measure
from nas.runtimes.files import Files
from nas.runtimes.onnxruntime import session
from nas.runtimes.onnxruntime.network import OnnxRuntimeNetwork, require_nodes
from nas.runtimes.onnxruntime.nodes import optimised_nodes
from nas.space import load_space
from nas.space.builder import Builder


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime("onnxruntime", dtype="int8")


@pytest.mark.parametrize(
    "name", ["mobilenet", "mobilenet_v3", "shufflenet", "shufflenet_v1", "squeezenet"]
)
def test_an_exported_network_launches_the_kernels_that_are_timed(
    runtime: Runtime, name: str
) -> None:
    """A timed network has made-up weights and ranges, an exported one those of its images."""
    graph = load_space(name, image_size=32, classes=5).sample(seed=0).graph.folded
    weights = random_weights(graph, np.random.default_rng(0))
    images = np.random.default_rng(0).standard_normal((8, *graph.input_shape), np.float32)
    ranges = activations(graph, measure(graph, weights, images), least_squares)
    exported = assemble(graph, weights, ranges, images, native_weight_bits())
    data = onnx_model.quantised_model(exported).SerializeToString()
    image = {onnx_model.INPUT: (1, *graph.input_shape)}
    nodes = optimised_nodes(Files(session, 1), data, image)
    require_nodes(nodes, runtime.kernels(graph))


Block = Callable[[Builder], int]


def _consecutive_pools(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16)
    return build.max_pool(build.avg_pool(x, "mean", kernel=3, stride=2), "most", kernel=3, stride=1)


def _shuffled_and_added(build: Builder) -> int:
    x = build.shuffle(build.conv_unit(build.input, "first", 16), 2)
    return build.add(x, build.conv_unit(x, "second", 16))


def _split_behind_a_convolution(build: Builder) -> int:
    untouched, x = build.split(build.conv_unit(build.input, "first", 16))
    return build.concat(untouched, build.conv_unit(x, "second", 8))


def _clipped_for_one_of_two_readers(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16, activate=False)
    return build.add(x, build.conv_unit(build.activate(x, "relu6"), "second", 16))


def _hard_swish_of_a_sum(build: Builder) -> int:
    x = build.conv_unit(build.input, "first", 16)
    y = build.conv_unit(build.concat(x, build.conv_unit(x, "second", 16)), "third", 16)
    return build.conv_unit(build.activate(build.add(x, y), "hard_swish"), "fourth", 8)


@pytest.mark.parametrize(
    "block",
    [
        _consecutive_pools,
        _shuffled_and_added,
        _split_behind_a_convolution,
        _clipped_for_one_of_two_readers,
        _hard_swish_of_a_sum,
    ],
)
@pytest.mark.parametrize("size", [8, 1])
def test_blocks_that_no_space_has(runtime: Runtime, block: Block, size: int) -> None:
    build = Builder((3, size, size), norm=True, activation="relu", classes=10)
    if size > 1 or "pool" not in block.__name__:
        build.linear(build.global_pool(block(build)), "linear", 7)
        runtime.compile(build.graph(), {})


def test_clipped_tensor_that_shares_its_scale_with_negative_values(runtime: Runtime) -> None:
    """Its range does not end where it is clipped, which takes nodes of their own."""
    build = Builder((3, 8, 8), norm=True, activation="relu", classes=10)
    x = build.conv_unit(build.input, "first", 16)
    y = build.conv_unit(build.input, "second", 16, activate=False)
    build.conv_unit(build.concat(x, y), "third", 8)
    runtime.compile(build.graph(), {})
    assert "relu" in {kernel.kind for kernel in runtime.kernels(build.graph())}


def test_network_that_runs_other_kernels_than_its_blocks_is_refused() -> None:
    graph = load_space("mobilenet_tiny", image_size=8).smallest.graph
    kernels = open_runtime("onnxruntime").kernels(graph)
    with pytest.raises(MeasurementError, match="ONNX Runtime runs 'node .*Conv") as caught:
        OnnxRuntimeNetwork(graph, None, "float32", kernels[1:], Files(session, 1))
    assert caught.value.remedy
