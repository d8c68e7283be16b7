import pytest

from nas.space.blocks import BLOCKS
from nas.space.builder import Builder
from nas.space.elastic import Elastic


def kinds(graph):
    return [op.kind for op in graph.ops[1:]]


@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 4)])
def test_separable_block_has_the_ops_of_the_paper(place, stride, size):
    graph = place("separable", (8, 8, 8), width=16, stride=stride, kernel=3)
    assert graph.output_shape == (16, size, size)
    assert graph.params == 8 * 9 + 2 * 8 + 8 * 16 + 2 * 16
    assert graph.macs == (8 * 9 + 8 * 16) * size * size
    assert kinds(graph) == ["conv", "norm", "relu"] * 2


@pytest.mark.parametrize("block", ["inverted_residual", "linear_bottleneck"])
@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 4)])
def test_version_2_block_has_the_ops_of_the_paper(place, block, stride, size):
    graph = place(block, (8, 8, 8), width=8, stride=stride, kernel=5, expand=6)
    hidden = 6 * 8
    assert graph.output_shape == (8, size, size)
    assert graph.params == 8 * hidden + hidden * 25 + hidden * 8 + 2 * (hidden + hidden + 8)
    assert graph.macs == 8 * hidden * 64 + (hidden * 25 + hidden * 8) * size * size
    adds = block == "inverted_residual" and stride == 1
    assert kinds(graph) == ["conv", "norm", "relu"] * 2 + ["conv", "norm"] + ["add"] * adds


def test_an_expand_ratio_of_1_has_no_expansion(place):
    graph = place("inverted_residual", (8, 8, 8), width=16, stride=1, kernel=3, expand=1)
    assert graph.params == 8 * 9 + 8 * 16 + 2 * (8 + 16)


# 40 * 2.3 = 92 becomes 96; 40 / 4 = 10 becomes 16, because 8 is more than a tenth below it.
@pytest.mark.parametrize(
    ("expand", "hidden", "reduced"), [(2.3, 96, 24), (6, 240, 64), (1, 40, 16)]
)
@pytest.mark.parametrize(("stride", "size"), [(1, 6), (2, 3)])
@pytest.mark.parametrize("se", ["none", "se"])
def test_version_3_block_has_the_ops_of_the_paper(place, expand, hidden, reduced, stride, size, se):
    graph = place(
        "inverted_residual_v3",
        (40, 6, 6),
        width=40,
        stride=stride,
        kernel=5,
        expand=expand,
        se=se,
        activation="hard_swish",
    )
    params = hidden * 25 + hidden * 40 + 2 * (hidden + 40)
    macs = (hidden * 25 + hidden * 40) * size * size
    if expand != 1:
        params += 40 * hidden + 2 * hidden
        macs += 40 * hidden * 36
    if se == "se":
        params += 2 * hidden * reduced + hidden + reduced
        macs += 2 * hidden * reduced
    assert graph.output_shape == (40, size, size)
    assert (graph.params, graph.macs) == (params, macs)
    gate = ["global_pool", "conv", "relu", "conv", "hard_sigmoid", "multiply"]
    expected = ["conv", "norm", "hard_swish"] * (1 + (expand != 1))
    expected += gate * (se == "se") + ["conv", "norm"] + ["add"] * (stride == 1)
    assert kinds(graph) == expected


def test_version_3_bottleneck_has_no_addition(place):
    choices = {"width": 40, "stride": 1, "kernel": 3, "expand": 3, "se": "se", "activation": "relu"}
    with_addition = place("inverted_residual_v3", (40, 6, 6), **choices)
    without = place("linear_bottleneck_v3", (40, 6, 6), **choices)
    assert kinds(with_addition) == [*kinds(without), "add"]
    wider = place("inverted_residual_v3", (40, 6, 6), **{**choices, "width": 48})
    assert "add" not in kinds(wider)


def test_version_3_head_has_the_ops_of_the_paper(place):
    graph = place("mobilenet_v3_head", (8, 5, 5), width=48, hidden=64)
    assert graph.output_shape == (10, 1, 1)
    assert graph.params == 8 * 48 + 2 * 48 + 48 * 64 + 64 + 64 * 10 + 10
    assert graph.macs == 8 * 48 * 25 + 48 * 64 + 64 * 10
    assert kinds(graph) == [
        *("conv", "norm", "hard_swish", "global_pool", "linear", "hard_swish", "linear")
    ]


def test_a_narrow_block_uses_the_first_channels_of_the_widest():
    build = Builder((3, 8, 8), classes=10, norm=True, activation="relu")
    x = build.conv_unit(build.input, "stem", Elastic(16, 16, 24))
    BLOCKS["inverted_residual_v3"](
        build,
        x,
        "block",
        width=Elastic(16, 16, 32),
        stride=1,
        kernel=Elastic(3, 3, 5),
        expand=Elastic(3, 3, 6),
        se="se",
        activation="relu",
    )
    slots = {
        op.slot.name.removeprefix("block.relu.se."): op.slot
        for op in build.graph().ops[4:]
        if op.slot
    }
    hidden, widest = 48, 24 * 6
    assert (slots["expand"].outputs.runs, slots["expand"].outputs.extent) == (((0, 48),), widest)
    assert slots["depthwise"].kernel == 5
    reduced = slots["se.reduce"].outputs
    assert (reduced.runs, reduced.extent) == (((0, 16),), widest // 4 + 4)
    assert slots["se.expand"].outputs.runs == ((0, hidden),)
    assert slots["project"].outputs.extent == 32
