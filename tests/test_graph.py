import pytest

from nas.graph import Graph
from nas.space.builder import Builder


def inverted_residual(norm: bool = True) -> Graph:
    build = Builder((4, 6, 6), classes=3, norm=norm, activation="relu6")
    y = build.conv_unit(build.input, "expand", 12)
    y = build.depthwise_unit(y, "depthwise", kernel=3)
    y = build.conv_unit(y, "project", 4, activate=False)
    y = build.add(y, build.input)
    build.linear(build.global_pool(y), "linear", 3)
    return build.graph()


def test_counts_in_closed_form():
    graph = inverted_residual()
    assert graph.macs == 36 * (4 * 12 + 9 * 12 + 12 * 4) + 4 * 3
    assert graph.params == (48 + 24) + (108 + 24) + (48 + 8) + (12 + 3)


def test_peak_memory_is_the_depthwise_layers_with_the_waiting_residual():
    assert inverted_residual().peak_memory_bytes == 4 * 36 * (4 + 12 + 12)


def test_slices_are_views_and_released_with_their_parent():
    build = Builder((4, 5, 5), classes=2, norm=False, activation="relu")
    side, main = build.split(build.input)
    main = build.conv_unit(main, "conv", 2)
    build.concat(side, main)
    # 4 channels in, 2 convolved, and 4 concatenated while both are read
    assert build.graph().peak_memory_bytes == 4 * 25 * (4 + 2 + 4)


def test_folding_removes_every_norm_and_leaves_a_bias():
    graph, folded = inverted_residual(), inverted_residual().folded
    assert folded.counts()["norm"] == 0
    assert len(folded.ops) == len(graph.ops) - 3
    assert all(op.bias for op in folded.ops if op.kind == "conv")
    assert folded.macs == graph.macs
    assert folded.digest == inverted_residual(norm=False).digest
    for index, op in enumerate(folded.ops):
        assert all(source < index for source in op.inputs)


def test_a_norm_without_a_convolution_of_its_own_cannot_be_folded():
    build = Builder((4, 5, 5), classes=2, norm=True, activation="relu")
    build.finish_conv(build.input, "norm")
    with pytest.raises(ValueError, match="folded only into a convolution"):
        _ = build.graph().folded


def test_the_digest_ignores_slots_and_sees_everything_else():
    def graph(name="conv", kernel=3, out=8, stride=1):
        build = Builder((4, 9, 9), classes=2, norm=True, activation="relu")
        build.conv_unit(build.input, name, out, kernel=kernel, stride=stride)
        return build.graph().digest

    assert graph() == graph(name="other")
    assert len({graph(), graph(kernel=5), graph(out=9), graph(stride=2)}) == 4


def squeeze_excite() -> Graph:
    """MobileNetV3's block on a 5x7 map: 4 channels, 12 expanded, 3 squeezed."""
    build = Builder((4, 5, 7), classes=3, norm=True, activation="hard_swish")
    x = build.conv_unit(build.input, "expand", 12)
    x = build.depthwise_unit(x, "depthwise", kernel=3)
    gate = build.conv(build.global_pool(x), "reduce", 3, bias=True)
    gate = build.conv(build.activate(gate, "relu"), "restore", 12, bias=True)
    x = build.multiply(x, build.activate(gate, "hard_sigmoid"))
    build.add(build.conv_unit(x, "project", 4, activate=False), build.input)
    return build.graph()


def test_a_gate_counts_its_two_layers_and_nothing_else():
    graph = squeeze_excite()
    assert graph.macs == 35 * (4 * 12 + 9 * 12 + 12 * 4) + (12 * 3 + 3 * 12)
    assert graph.params == (48 + 24) + (108 + 24) + (48 + 8) + (36 + 3) + (36 + 12)


def test_a_gate_is_applied_in_place_while_the_residual_waits():
    # the waiting input, what the depthwise convolution reads, and what it makes
    assert squeeze_excite().peak_memory_bytes == 4 * 35 * (4 + 12 + 12)


def test_a_gate_is_kept_until_it_is_applied():
    build = Builder((6, 3, 3), classes=2, norm=False, activation="relu")
    build.multiply(build.input, build.global_pool(build.input))
    assert build.graph().peak_memory_bytes == 4 * (6 * 9 + 6)


def test_an_average_has_a_buffer_and_neither_weights_nor_multiply_accumulates():
    build = Builder((8, 7, 7), classes=2, norm=False, activation="relu")
    pooled = build.avg_pool(build.input, "pool", kernel=3, stride=2)
    graph = build.graph()
    assert (graph.macs, graph.params) == (0, 0)
    assert pooled.shape == graph.output_shape == (8, 4, 4)
    assert graph.peak_memory_bytes == 4 * 8 * (49 + 16)


def test_a_grouped_convolution_sees_the_channels_of_its_group():
    build = Builder((12, 4, 4), classes=2, norm=False, activation="relu")
    build.conv(build.input, "conv", 30, kernel=3, groups=3, padding="valid", bias=True)
    graph = build.graph()
    assert graph.output_shape == (30, 2, 2)
    assert graph.macs == 4 * 30 * 4 * 9
    assert graph.params == 30 * 4 * 9 + 30
