from __future__ import annotations

import numpy as np
import pytest

import nas.space
from nas.latency import cache_model
from nas.latency.cache_model import DispatchCosts
from nas.latency.runtime import NetworkCost
from nas.runtimes.onnxruntime.float32.fusion import BlockedFusion, block_size
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from tests.latency.example_graphs import GRAPHS

FUSION = BlockedFusion(16)

STRIDED = [
    "to_blocked blocked16 16x8x8 -> 16x8x8",
    "conv2d blocked16 16x8x8 -> 48x8x8 k1 s1 p0 g1 bias relu6",
    "conv2d blocked16 48x8x8 -> 48x4x4 k3 s2 p1 g48 bias relu6",
    "conv2d blocked16 48x4x4 -> 16x4x4 k1 s1 p0 g1 bias",
    "to_plain blocked16 16x4x4 -> 16x4x4",
]


def test_block_kernels_cover_both_layouts_of_the_input() -> None:
    block, unit = GRAPHS["strided"](), GRAPHS["shuffle_unit"]()
    assert [kernel.text for kernel in FUSION.kernels(block)] == STRIDED
    assert {kernel.text for kernel in FUSION.block_kernels(block)} == set(STRIDED[:-1])
    others = {*FUSION.block_kernels(unit)} - {*FUSION.kernels(unit)}
    assert {each.text for each in others} == {"to_plain blocked16 116x7x7 -> 116x7x7"}


@pytest.mark.parametrize(("name", "block"), [("mobilenet_v3", 8), ("shufflenet", 16)])
def test_block_kernels_contain_those_of_whole_networks_on_any_processor(
    name: str, block: int
) -> None:
    fusion = BlockedFusion(block)
    space = nas.space.load_space(name, image_size=8)
    known = {k for block_graph in space.block_graphs() for k in fusion.block_kernels(block_graph)}
    rng = np.random.default_rng(0)
    architectures = [space.smallest, space.largest, *(space.sample(rng) for _ in range(4))]
    needed = {kernel for each in architectures for kernel in fusion.kernels(each.graph)}
    assert needed <= known


def test_block_size_follows_the_vector_width_of_the_processor() -> None:
    assert block_size(("avx", "avx2", "avx512f", "fma")) == 16
    assert block_size(("avx", "avx2", "fma")) == 8
    assert block_size(("asimd", "dotprod")) == 1
    graph = GRAPHS["squeezenet_head"]()
    narrow = OnnxRuntime(features=("avx2",)).kernels(graph)
    assert narrow[0].text == "to_blocked blocked8 12x4x4 -> 12x4x4"
    assert all(kernel.block == 1 for kernel in OnnxRuntime(features=("asimd",)).kernels(graph))


def test_network_latency_is_kernels_launches_and_an_invocation() -> None:
    dispatch = {"launch": 0.25, "invocation": 3.0}
    cost = NetworkCost([10.0, 20.0], 0, 0)
    assert OnnxRuntime().network_us(cost, DispatchCosts(dispatch)) == 33.5
    assert set(OnnxRuntime.dispatch_parts) == {*dispatch, *cache_model.WEIGHT_PARTS}
