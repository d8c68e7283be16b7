"""Kernels of blocks that are optimised alone, against whole networks that are optimised."""

from __future__ import annotations

import numpy as np
import pytest

from nas.latency import cache_model, open_runtime, space_kernels
from nas.latency.cache_model import DispatchCosts
from nas.latency.runtime import NetworkCost
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.space import load_space

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


def test_network_latency_is_kernels_launches_and_an_invocation() -> None:
    dispatch = {"launch": 0.25, "invocation": 3.0}
    cost = NetworkCost([10.0, 20.0], 0, 0)
    assert OnnxRuntime().network_us(cost, DispatchCosts(dispatch)) == 33.5
    assert set(OnnxRuntime.dispatch_parts) == {*dispatch, *cache_model.WEIGHT_PARTS}
