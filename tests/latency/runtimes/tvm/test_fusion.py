from __future__ import annotations

import numpy as np
import pytest
from networks import GRAPHS

import nas.space
from nas.graph import Graph, Op
from nas.latency.kernel import Kernel
from nas.latency.runtimes.tvm import fusion

EXPECTED = {
    "inverted_residual": [
        "conv2d 24x9x9 -> 72x9x9 k1 s1 p0 g1 bias relu6",
        "conv2d 72x9x9 -> 72x9x9 k3 s1 p1 g72 bias relu6",
        "conv2d 72x9x9 -> 24x9x9 k1 s1 p0 g1 bias add",
    ],
    "shuffle_unit": [
        "conv2d 116x7x7[58:116] -> 58x7x7 k1 s1 p0 g1 bias relu",
        "conv2d 58x7x7 -> 58x7x7 k3 s1 p1 g58 bias",
        "conv2d 58x7x7 -> 58x7x7 k1 s1 p0 g1 bias relu",
        "concat 116x7x7[0:58] 58x7x7 -> 116x7x7 shuffle2",
    ],
    "shuffle_downsampling": [
        "conv2d 24x9x9 -> 24x5x5 k3 s2 p1 g24 bias",
        "conv2d 24x5x5 -> 58x5x5 k1 s1 p0 g1 bias relu",
        "conv2d 24x9x9 -> 58x9x9 k1 s1 p0 g1 bias relu",
        "conv2d 58x9x9 -> 58x5x5 k3 s2 p1 g58 bias",
        "conv2d 58x5x5 -> 58x5x5 k1 s1 p0 g1 bias relu",
        "concat 58x5x5 58x5x5 -> 116x5x5 shuffle2",
    ],
    "fire": [
        "conv2d 13x7x7 -> 6x7x7 k1 s1 p0 g1 bias relu",
        "conv2d 6x7x7 -> 21x7x7 k1 s1 p0 g1 bias relu",
        "conv2d 6x7x7 -> 17x7x7 k3 s1 p1 g1 bias relu",
        "concat 21x7x7 17x7x7 -> 38x7x7",
        "max_pool 38x7x7 -> 38x4x4 k3 s2 p1 g1",
    ],
    "classifier": [
        "conv2d 10x5x5 -> 70x5x5 k1 s1 p0 g1 bias relu",
        "global_pool 70x5x5 -> 70x1x1",
        "linear 70x1x1 -> 11x1x1 bias",
    ],
    "squeezenet_head": [
        "conv2d 12x4x4 -> 10x4x4 k1 s1 p0 g1 bias relu",
        "global_pool 10x4x4 -> 10x1x1",
    ],
    "residual_branches": [
        "conv2d 8x6x6 -> 16x6x6 k1 s1 p0 g1 bias",
        "conv2d 8x6x6 -> 16x6x6 k5 s1 p2 g1 bias add relu",
    ],
    "grouped": [
        "conv2d 24x6x6 -> 36x6x6 k1 s1 p0 g3 bias relu",
        "copy 36x6x6 -> 36x6x6 shuffle3",
        "conv2d 36x6x6 -> 36x3x3 k3 s2 p1 g36 bias",
        "conv2d 36x3x3 -> 60x3x3 k3 s1 p1 g3",
    ],
    "slices_and_sums": [
        "copy 40x5x5[13:27] -> 14x5x5 add:40x5x5[26:40]",
        "copy 14x5x5 -> 14x5x5 add",
        "concat 14x5x5 40x5x5[13:27] 40x5x5[26:40] -> 42x5x5 shuffle2",
        "copy 42x5x5[5:14] -> 9x5x5",
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_fuses(name: str) -> None:
    assert [kernel.text for kernel in fusion.kernels(GRAPHS[name]())] == EXPECTED[name]


def _graphs() -> list[Graph]:
    found = [make() for make in GRAPHS.values()]
    rng = np.random.default_rng(1)
    for name in nas.space.names():
        space = nas.space.load(name).on(image_size=40, channels=3, classes=7)
        found += [space.lower(space.sample(rng)) for _ in range(10)]
    return found


@pytest.mark.parametrize("graph", _graphs(), ids=lambda graph: graph.digest)
def test_every_graph_splits_soundly(graph: Graph) -> None:
    launches = fusion.launches(graph)
    kernels = [launch.kernel for launch in launches]
    assert kernels == fusion.kernels(graph.folded), "folding norms changes nothing"
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
    assert sorted(launch.slot for launch in launches if launch.slot) == sorted(weighted)


def test_a_norm_without_a_convolution_has_no_kernel() -> None:
    graph = Graph((Op("input", (), (4, 2, 2)), Op("norm", (0,), (4, 2, 2))))
    with pytest.raises(ValueError, match="norm"):
        fusion.kernels(graph)
