import doctest
import json
import subprocess
import sys

import numpy as np
import pytest

import nas.graph
from nas.graph import ACTIVATIONS, OP_KINDS, POOLING_KINDS, WEIGHTED_KINDS, Graph, Op
from nas.space import load_definition, space_names
from nas.space.builder import Builder


def inverted_residual(norm: bool = True) -> Graph:
    build = Builder((4, 6, 6), classes=3, norm=norm, activation="relu6")
    y = build.conv_unit(build.input, "expand", 12)
    y = build.depthwise_unit(y, "depthwise", kernel=3)
    y = build.conv_unit(y, "project", 4, activate=False)
    y = build.add(y, build.input)
    build.linear(build.global_pool(y), "linear", 3)
    return build.graph()


def test_macs_and_params_equal_closed_form():
    graph = inverted_residual()
    assert graph.macs == 36 * (4 * 12 + 9 * 12 + 12 * 4) + 4 * 3
    assert graph.params == (48 + 24) + (108 + 24) + (48 + 8) + (12 + 3)
    # the depthwise convolution's input and output, and the input that waits for the addition
    assert graph.peak_memory_bytes == 4 * 36 * (4 + 12 + 12)


def test_peak_memory_counts_slices_as_views_of_their_input():
    build = Builder((4, 5, 5), classes=2, norm=False, activation="relu")
    side, main = build.split(build.input)
    main = build.conv_unit(main, "conv", 2)
    build.concat(side, main)
    # 4 input channels, 2 convolved channels, and their concatenation while both are read
    assert build.graph().peak_memory_bytes == 4 * 25 * (4 + 2 + 4)


def test_folded_graph_has_biases_instead_of_norms():
    graph, folded = inverted_residual(), inverted_residual().folded
    assert folded.counts()["norm"] == 0
    assert len(folded.ops) == len(graph.ops) - 3
    assert all(op.bias for op in folded.ops if op.kind == "conv")
    assert folded.macs == graph.macs
    assert folded.digest == inverted_residual(norm=False).digest
    for index, op in enumerate(folded.ops):
        assert all(source < index for source in op.inputs)


def test_folding_refuses_norm_that_does_not_follow_a_convolution():
    build = Builder((4, 5, 5), classes=2, norm=True, activation="relu")
    build.norm_and_activate(build.input, "norm")
    with pytest.raises(ValueError, match="folded only into a convolution"):
        _ = build.graph().folded


def test_digest_ignores_slots_and_nothing_else():
    def graph(name="conv", kernel=3, out=8, stride=1):
        build = Builder((4, 9, 9), classes=2, norm=True, activation="relu")
        build.conv_unit(build.input, name, out, kernel=kernel, stride=stride)
        return build.graph().digest

    assert graph() == graph(name="other")
    assert len({graph(), graph(kernel=5), graph(out=9), graph(stride=2)}) == 4


def squeeze_excite() -> Graph:
    """Return a MobileNetV3 block on a 5x7 map with 4 channels, 12 expanded and 3 squeezed."""
    build = Builder((4, 5, 7), classes=3, norm=True, activation="hard_swish")
    x = build.conv_unit(build.input, "expand", 12)
    x = build.depthwise_unit(x, "depthwise", kernel=3)
    gate = build.conv(build.global_pool(x), "reduce", 3, bias=True)
    gate = build.conv(build.activate(gate, "relu"), "restore", 12, bias=True)
    x = build.multiply(x, build.activate(gate, "hard_sigmoid"))
    build.add(build.conv_unit(x, "project", 4, activate=False), build.input)
    return build.graph()


def test_squeeze_excite_counts_only_its_two_layers():
    graph = squeeze_excite()
    assert graph.macs == 35 * (4 * 12 + 9 * 12 + 12 * 4) + (12 * 3 + 3 * 12)
    assert graph.params == (48 + 24) + (108 + 24) + (48 + 8) + (36 + 3) + (36 + 12)
    # the input for the residual, and the depthwise convolution's input and output
    assert graph.peak_memory_bytes == 4 * 35 * (4 + 12 + 12)


def test_peak_memory_counts_gate_until_it_is_applied():
    build = Builder((6, 3, 3), classes=2, norm=False, activation="relu")
    build.multiply(build.input, build.global_pool(build.input))
    assert build.graph().peak_memory_bytes == 4 * (6 * 9 + 6)


def test_average_pooling_has_a_buffer_and_no_macs_or_params():
    build = Builder((8, 7, 7), classes=2, norm=False, activation="relu")
    pooled = build.avg_pool(build.input, "pool", kernel=3, stride=2)
    graph = build.graph()
    assert (graph.macs, graph.params) == (0, 0)
    assert pooled.shape == graph.output_shape == (8, 4, 4)
    assert graph.peak_memory_bytes == 4 * 8 * (49 + 16)


def test_grouped_convolution_reads_the_channels_of_its_group():
    build = Builder((12, 4, 4), classes=2, norm=False, activation="relu")
    build.conv(build.input, "conv", 30, kernel=3, groups=3, padding="valid", bias=True)
    graph = build.graph()
    assert graph.output_shape == (30, 2, 2)
    assert graph.macs == 4 * 30 * 4 * 9
    assert graph.params == 30 * 4 * 9 + 30


def test_module_example_is_right():
    assert doctest.testmod(nas.graph).failed == 0
    assert doctest.testmod(nas.graph).attempted > 0


def test_op_kinds_declare_only_fields_of_op():
    for kind, needs in OP_KINDS.items():
        assert set(needs.fields) <= set(Op._field_defaults), kind
        assert ("slot" in needs.fields) == (needs.parameters != "none"), kind


def test_kind_sets_follow_from_the_table():
    assert {"relu", "relu6", "hard_swish", "hard_sigmoid"} == ACTIVATIONS
    assert {"conv", "linear"} == WEIGHTED_KINDS
    assert {"max_pool", "avg_pool"} == POOLING_KINDS


@pytest.mark.parametrize("name", space_names())
def test_networks_of_a_space_keep_to_the_table_of_op_kinds(name):
    space = load_definition(name)
    rng = np.random.default_rng(0)
    for architecture in (space.largest, space.smallest, *(space.sample(rng) for _ in range(3))):
        for op in architecture.graph.ops:
            needs = OP_KINDS[op.kind]
            assert needs.inputs in (None, len(op.inputs))
            for field, default in Op._field_defaults.items():
                assert field in needs.fields or getattr(op, field) == default, (op.kind, field)


def test_parameters_are_counted_exactly_for_kinds_that_declare_them():
    graph = Graph((Op("input", (), (8, 1, 1)),))
    for kind, needs in OP_KINDS.items():
        count = 0 if kind == "input" else graph.op_params(Op(kind, (0,), (8, 1, 1)))
        assert (count > 0) == (needs.parameters != "none"), kind


def test_slot_name_of_op_without_slot_is_an_error():
    with pytest.raises(ValueError, match="'add' has no slot"):
        _ = Op("add", (0, 0), (1, 2, 2)).slot_name


def test_overhangs_says_whether_last_windows_cross_the_border():
    def pool(count):
        return Op("max_pool", (0,), (1, count, count), kernel=3, stride=2)

    assert [pool(4).overhangs(9, 9), pool(4).overhangs(8, 8)] == [False, True]
    assert not pool(3).overhangs(8, 8)
    with pytest.raises(ValueError, match=r"cannot turn a map of 8x8 pixels into \(1, 5, 5\)"):
        pool(5).overhangs(8, 8)


@pytest.mark.slow
def test_every_reader_refuses_an_activation_that_it_does_not_have():
    """A reader that ignored an activation would compute another network without a word."""
    command = [sys.executable, "-m", "tests.new_activation"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) >= 9
    assert {reader: error for reader, error in errors.items() if "leaky_relu" not in error} == {}
