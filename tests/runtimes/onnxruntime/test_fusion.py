"""Kernels of blocks that are optimised alone, against whole networks that are optimised."""

from __future__ import annotations

import numpy as np
import pytest

from nas.latency import cache_model, open_runtime, space_kernels
from nas.latency.cache_model import DispatchCosts
from nas.latency.composition import NetworkCost
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.space import SearchSpace, Stage, load_space
from nas.space.builder import Builder, SymbolicTensor

SPACES = ["mobilenet", "mobilenet_v3", "shufflenet", "shufflenet_v1", "squeezenet"]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.slow
def test_a_network_launches_the_kernels_of_its_blocks(name: str, dtype: str) -> None:
    """`compile` compares the optimised network with the kernels, and raises if they differ."""
    runtime = open_runtime("onnxruntime", dtype=dtype)
    space = load_space(name, image_size=32, classes=5)
    rng = np.random.default_rng(0)
    for architecture in (space.smallest, space.largest, space.sample(rng), space.sample(rng)):
        runtime.compile(architecture.graph, {})
    runtime.compile(space.smallest.graph, {}, batch=3)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_kernels_of_a_space_are_those_of_its_networks(dtype: str) -> None:
    runtime = OnnxRuntime(dtype=dtype)
    for name in ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"):
        space = load_space(name, image_size=8)
        kernels = set(space_kernels(space, runtime))
        rng = np.random.default_rng(0)
        networks = [space.smallest, space.largest, *(space.sample(rng) for _ in range(6))]
        assert {each for one in networks for each in runtime.kernels(one.graph)} <= kernels
        # Each layout conversion between blocks is one that some network needs.
        assert len(kernels) < 1.2 * len({kernel.text for kernel in kernels})


def pooled_beside(
    build: Builder, x: SymbolicTensor, name: str, *, width: int, stride: int, kernel: int
) -> SymbolicTensor:
    """Concatenate a convolution and a pooling of the same tensor, which share a scale in int8."""
    convolved = build.conv_unit(x, f"{name}.conv", width, kernel=kernel, stride=stride)
    return build.concat(convolved, build.max_pool(x, f"{name}.pool", kernel=3, stride=stride))


@pytest.mark.parametrize("activation", ["relu", "hard_swish"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_block_gives_its_input_the_scale_of_its_output(dtype: str, activation: str) -> None:
    runtime = open_runtime("onnxruntime", dtype=dtype)
    blocks = [Stage(f"b{n}", pooled_beside, 8, per_block={"kernel": 3}) for n in range(2)]
    stem = Stage("stem", "conv", 5, stride=2, per_stage={"kernel": 3})
    stages = (stem, *blocks, Stage("head", "linear_classifier"))
    space = SearchSpace("own", stages, activation=activation, image_size=16)
    runtime.compile(space.smallest.graph, {})
    assert set(runtime.kernels(space.smallest.graph)) <= set(space_kernels(space, runtime))


def test_network_latency_is_kernels_launches_and_an_invocation() -> None:
    dispatch = {"launch": 0.25, "invocation": 3.0}
    cost = NetworkCost([10.0, 20.0], 0, 0)
    assert OnnxRuntime().network_us(cost, DispatchCosts(dispatch)) == 33.5
    assert set(OnnxRuntime.capabilities.dispatch_parts) == {*dispatch, *cache_model.WEIGHT_PARTS}
