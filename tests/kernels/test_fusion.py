from __future__ import annotations

import numpy as np
import pytest

import nas.space
from nas.graph import Channels, Graph, Op, Slot
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.templates import random_constants
from tests.latency.example_graphs import GRAPHS

EXPECTED = {
    "inverted_residual": [
        "conv2d 24x9x9 expanded bias relu6 -> 72x9x9 k3 s1 p1 g72 bias relu6",
        "conv2d 72x9x9 -> 24x9x9 k1 s1 p0 g1 bias add",
    ],
    "shuffle_unit": [
        "conv2d 116x7x7[58:116] expanded bias relu -> 58x7x7 k3 s1 p1 g58 bias",
        "conv2d 58x7x7 -> 58x7x7 k1 s1 p0 g1 bias relu",
        "concat 116x7x7[0:58] 58x7x7 -> 116x7x7 shuffle2",
    ],
    "residual_branches": [
        "conv2d 8x6x6 -> 16x6x6 k1 s1 p0 g1 bias",
        "conv2d 8x6x6 -> 16x6x6 k5 s1 p2 g1 bias add relu",
    ],
    "slices_and_sums": [
        "copy 40x5x5[13:27] -> 14x5x5 add:40x5x5[26:40]",
        "copy 14x5x5 -> 14x5x5 add",
        "concat 14x5x5 40x5x5[13:27] 40x5x5[26:40] -> 42x5x5 shuffle2",
        "copy 42x5x5[5:14] -> 9x5x5",
    ],
    "squeeze_excite": [
        "conv2d 24x9x9 expanded bias hard_swish -> 72x9x9 k5 s1 p2 g72 bias hard_swish",
        "global_pool 72x9x9 -> 72x1x1",
        "conv2d 72x1x1 -> 24x1x1 k1 s1 p0 g1 bias relu",
        "conv2d 24x1x1 -> 72x1x1 k1 s1 p0 g1 bias hard_sigmoid",
        "copy 72x9x9 -> 72x9x9 multiply",
        "conv2d 72x9x9 -> 24x9x9 k1 s1 p0 g1 bias add",
    ],
    "gates": [
        "global_pool 12x5x5 -> 12x1x1",
        "conv2d 12x1x1 -> 20x1x1 k1 s1 p0 g1 hard_sigmoid",
        "conv2d 12x5x5 -> 20x5x5 k1 s1 p0 g1 bias hard_swish multiply relu6",
        "global_pool 20x5x5 -> 20x1x1",
        "conv2d 20x1x1 -> 40x1x1 k1 s1 p0 g1",
        "conv2d 20x5x5 -> 20x5x5 k3 s1 p1 g1 bias multiply:40x1x1[20:40] add hard_swish",
        "copy 20x5x5[10:20] -> 10x5x5 multiply:40x1x1[10:20] relu",
        "copy 40x1x1[10:20] -> 10x1x1 hard_swish",
        "copy 40x1x1[10:20] -> 10x1x1 multiply",
        "copy 10x5x5 -> 10x5x5 add:20x5x5[0:10]",
        "concat 10x1x1 40x1x1[0:10] -> 20x1x1",
        "concat 10x5x5 10x5x5 -> 20x5x5 multiply",
    ],
    "shuffle_v1_downsampling": [
        "avg_pool 24x7x7 -> 24x4x4 k3 s2 p1 g1",
        "conv2d 24x7x7 expanded bias relu -> 15x4x4 k3 s2 p1 g15 bias",
        "conv2d 15x4x4 -> 36x4x4 k1 s1 p0 g3 bias relu",
        "concat 24x4x4 36x4x4 -> 60x4x4",
    ],
    "fire_with_simple_bypass": [
        "conv2d 38x7x7 -> 6x7x7 k1 s1 p0 g1 bias relu",
        "conv2d 6x7x7 -> 21x7x7 k1 s1 p0 g1 bias relu",
        "conv2d 6x7x7 -> 17x7x7 k3 s1 p1 g1 bias relu",
        "concat 21x7x7 17x7x7 -> 38x7x7 add",
        "conv2d 38x7x7 -> 8x7x7 k1 s1 p0 g1 bias relu",
    ],
}


def _pointwise_then_depthwise(
    *, slots: tuple[str, str], readers: int = 1, inner: str = ""
) -> Graph:
    """Return a 1x1 convolution followed by a depthwise one, with which it may be fused."""
    first, second = (Slot(name, Channels.prefix(18, 18)) for name in slots)
    ops = [
        Op("input", (), (9, 6, 6)),
        Op("conv", (0,), (18, 6, 6), bias=True, slot=first),
    ]
    if inner:
        ops.append(Op(inner, (1,) * (2 if inner == "add" else 1), (18, 6, 6), groups=2))
    at = len(ops) - 1
    ops.append(Op("conv", (at,), (18, 6, 6), 3, 1, 1, 18, True, slot=second))
    if readers > 1:
        ops.append(Op("add", (at, at + 1), (18, 6, 6)))
    return Graph(tuple(ops))


BLOCK = ("stage1.block0.expand", "stage1.block0.depthwise")


def test_depthwise_fuses_pointwise_of_same_block() -> None:
    assert [
        kernel.text for kernel in TvmRuntime().kernels(_pointwise_then_depthwise(slots=BLOCK))
    ] == ["conv2d 9x6x6 expanded bias -> 18x6x6 k3 s1 p1 g18 bias"]


@pytest.mark.parametrize(
    "graph",
    [
        # It belongs to the block before, on which kernels must not depend.
        _pointwise_then_depthwise(slots=("stage0.block1.project", BLOCK[1])),
        # Another op reads it too.
        _pointwise_then_depthwise(slots=BLOCK, readers=2),
        # Another op comes in between.
        _pointwise_then_depthwise(slots=BLOCK, inner="shuffle"),
        _pointwise_then_depthwise(slots=BLOCK, inner="add"),
    ],
)
def test_other_pointwise_convolutions_are_not_fused(graph: Graph) -> None:
    assert not any(kernel.is_expanded for kernel in TvmRuntime().kernels(graph))


@pytest.mark.parametrize("name", EXPECTED)
def test_kernels_of_each_block_type(name: str) -> None:
    assert [kernel.text for kernel in TvmRuntime().kernels(GRAPHS[name]())] == EXPECTED[name]


@pytest.mark.parametrize("name", [*GRAPHS, *nas.space.space_names()])
def test_launches_cover_every_op_in_a_runnable_order(name: str) -> None:
    if name in GRAPHS:
        check_launches(GRAPHS[name]())
    else:
        space, rng = nas.space.load_space(name, image_size=40, classes=7), np.random.default_rng(1)
        for _ in range(3):
            check_launches(space.sample(rng).graph)


def check_launches(graph: Graph) -> None:
    launches = fusion.launches(graph, fuse_expansions=True)
    kernels = [launch.kernel for launch in launches]
    assert kernels == TvmRuntime().kernels(graph.folded), "folding norms changes nothing"
    assert sum(kernel.macs for kernel in kernels) == graph.macs
    assert [Kernel.parse(kernel.text) for kernel in kernels] == kernels
    made = {0}
    for launch in launches:
        assert set(launch.sources) <= made, "a launch reads only what was made before"
        assert len(launch.sources) == len(launch.kernel.operands)
        for source, operand in zip(launch.sources, launch.kernel.operands, strict=True):
            assert graph.ops[source].shape == operand.shape
        made.add(launch.result)
    assert launches[-1].result == len(graph.ops) - 1
    weighted = [op.slot.name for op in graph.ops if op.kind in ("conv", "linear") and op.slot]
    slots = [slot for launch in launches for slot in (launch.slot, launch.expansion) if slot]
    assert sorted(slots) == sorted(weighted)


def test_tensor_multiplied_with_itself_is_both_operands() -> None:
    graph = Graph(
        (
            Op("input", (), (4, 1, 1)),
            Op("relu", (0,), (4, 1, 1)),
            Op("multiply", (1, 1), (4, 1, 1)),
        )
    )
    assert [kernel.text for kernel in TvmRuntime().kernels(graph)] == [
        "copy 4x1x1 -> 4x1x1 relu",
        "copy 4x1x1 -> 4x1x1 multiply",
    ]


def test_winograd_weight_bytes_match_packed_weights() -> None:
    """The size equals that of the packed weights, for output tiles of 2 x 2 and 4 x 4."""
    runtime = TvmRuntime()
    kernel = Kernel.parse("conv2d 64x12x12 -> 64x12x12 k3 s1 p1 g1 bias relu")
    plain = {"channels": 1}
    assert runtime.weight_bytes(kernel, plain) == kernel.weight_bytes == 4 * 64 * 64 * 9
    schedules = [each for each in runtime.timer.templates.candidates(kernel) if "winograd" in each]
    assert schedules
    rng = np.random.default_rng(0)
    for schedule in schedules:
        weight, _bias = random_constants(runtime.timer.templates, kernel, schedule, rng)
        assert runtime.weight_bytes(kernel, schedule) == weight.nbytes
