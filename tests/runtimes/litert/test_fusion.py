"""Compare the kernels of networks, op by op, with LiteRT's own profile of what it runs."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.networks import random_weights
from nas.runtimes.litert import fusion
from nas.runtimes.litert.network import network_file
from nas.runtimes.litert.repeated import forms_chain, repeat_kernel
from nas.runtimes.litert.runtime import LiteRt
from tests.latency.example_graphs import GRAPHS
from tests.runtimes.litert.op_profile import operators
from tests.spaces import WITH_EVERY_BLOCK

COPIES = 3

UNTIMED = {("gates", "int8")}
"""A ReLU of its own whose int8 output shares its scale with negative values, which no space has: it
runs outside of XNNPACK."""

CASES = [
    (name, dtype)
    for name in GRAPHS
    for dtype in ("float32", "int8")
    if (name, dtype) not in UNTIMED
]


@cache
def operators_of(kernel: Kernel) -> Counter[str]:
    """Return the operators of one copy of a kernel, from the file in which it is timed."""
    profile = operators(repeat_kernel(kernel, COPIES, np.random.default_rng(0)))
    # The slices that keep the outputs alive.
    is_int8 = kernel.dtype == "int8" and kernel.kind != "dequantize"
    outputs = 1 if forms_chain(kernel) else COPIES
    profile.subtract({"Slice (ND, X8)" if is_int8 else "Slice (ND, X32)": outputs})
    assert all(count % COPIES == 0 for count in profile.values()), f"{kernel}: {profile}"
    return Counter({name: count // COPIES for name, count in profile.items() if count})


def check(graph: Graph, dtype: str, *, is_calibrated: bool = False) -> None:
    weights = random_weights(graph, np.random.default_rng(0)) if is_calibrated else None
    expected: Counter[str] = Counter()
    for kernel in fusion.kernels(graph, dtype):
        expected += operators_of(kernel)
    assert operators(network_file(graph, weights, dtype)) == expected


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_blocks_run_the_operators_of_their_kernels(name: str, dtype: str) -> None:
    check(GRAPHS[name](), dtype)


@pytest.mark.parametrize("name", ["squeeze_excite", "shuffle_v1_downsampling", "classifier"])
def test_scales_of_images_and_made_up_scales_give_the_same_operators(name: str) -> None:
    check(GRAPHS[name](), "int8", is_calibrated=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_networks_run_the_operators_of_their_kernels(name: str, dtype: str) -> None:
    space = nas.space.load_space(name, image_size=24)
    graph = space.sample(np.random.default_rng(3)).graph
    if dtype == "int8" and graph.counts()["avg_pool"]:
        timer = LiteRt(dtype=dtype).timer
        (pooling, *_) = [k for k in fusion.kernels(graph, dtype) if k.kind == "avg_pool"]
        with pytest.raises(MeasurementError, match="XNNPACK has no average pooling in int8"):
            timer.time_kernel(pooling)
        return
    check(graph, dtype)


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("conv2d 128x6x6 -> 128x6x6 k3 s1 p1 g1 bias relu", 1),
        ("conv2d 96x6x6 -> 96x6x6 k5 s1 p2 g96 bias", 1),
        ("conv2d 96x6x6 -> 96x6x6 k7 s1 p3 g96 bias", 16),
        ("conv2d 96x6x6 -> 96x6x6 k3 s1 p1 g4 bias", 32 / 24),
        ("conv2d int8 96x6x6 -> 96x6x6 k7 s1 p3 g96 bias", 16 * 8),
        ("conv2d int8 3x6x6 -> 16x6x6 k3 s1 p1 g1 bias", 8 / 3),
        ("linear 20x1x1 -> 10x1x1 bias", 1.6),
        ("copy 8x4x4 -> 8x4x4 relu", 1),
    ],
)
def test_weights_are_packed_in_multiples_of_channels(text: str, factor: float) -> None:
    kernel = Kernel.parse(text)
    assert fusion.packed_weight_bytes(kernel) == pytest.approx(factor * kernel.weight_bytes)
