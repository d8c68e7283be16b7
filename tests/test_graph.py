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
