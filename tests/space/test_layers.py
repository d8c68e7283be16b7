"""The layers of a network: their counts, their words, and where the peak memory is."""

import numpy as np

from nas.space import Stage, load_definition
from nas.space.layers import layer_table
from nas.space.published import published_graphs
from tests.space.small_spaces import space
from tests.spaces import OF_EVERY_STRUCTURE, WITH_EVERY_BLOCK


def test_layers_add_up_to_the_graph():
    for whole, row, graph in published_graphs([load_definition(name) for name in WITH_EVERY_BLOCK]):
        if row.name not in OF_EVERY_STRUCTURE:
            continue
        lines = layer_table(graph).layers
        assert sum(layer.macs for layer in lines) == graph.macs
        assert sum(layer.params for layer in lines) == graph.params
        assert [layer.index for layer in lines] == list(range(len(lines)))
        fused = [kind for layer in lines for kind in layer.fused if kind != "bias"]
        assert len(lines) + len(fused) == len(graph.ops)
        assert lines[0].output == graph.input_shape
        assert lines[-1].output == graph.output_shape
        stages = dict.fromkeys(layer.stage for layer in lines[1:])
        assert list(stages) == [stage.name for stage in whole.stages if stage.name in stages]
        assert all(
            layer.activation_bytes == 4 * np.prod(layer.output, dtype=int) for layer in lines
        )


def test_a_convolution_with_norm_and_activation_is_one_line():
    """The first block of MobileNetV2, table 2: 3x224x224 to 32x112x112, then 16x112x112."""
    graph = load_definition("mobilenet").published("mobilenet_v2_1.0").graph
    stem, depthwise, project = layer_table(graph).layers[1:4]
    assert (stem.name, stem.operation, stem.fused) == ("stem", "conv 3x3/2", ["norm", "relu6"])
    assert stem.output == (32, 112, 112)
    assert stem.macs == 27 * 32 * 112**2
    assert stem.params == 27 * 32 + 2 * 32
    assert (depthwise.operation, depthwise.groups) == ("depthwise 3x3", 32)
    assert depthwise.params == 9 * 32 + 2 * 32
    assert project.fused == ["norm"]


def test_peak_layer_is_where_the_largest_tensors_are_alive():
    """MobileNetV2 halves 96 channels of 112x112 in its second stage: both maps are alive."""
    graph = load_definition("mobilenet").published("mobilenet_v2_1.0").graph
    assert layer_table(graph).peak.name == "stage2.0.depthwise"
    assert graph.peak_memory_bytes == 4 * (96 * 112**2 + 96 * 56**2)


def test_peak_layer_counts_tensors_that_are_read_later():
    """A residual input stays alive next to the widest map of its block."""
    block = {"kernel": 3, "expand": 6}
    graph = space(Stage("body", "inverted_residual", 16, per_block=block)).largest.graph
    assert graph.peak_memory_bytes == 4 * (16 + 96 + 96) * 8**2
    assert layer_table(graph).peak.name == "body.depthwise"


def test_an_activation_of_a_shared_tensor_has_its_own_line():
    def gated(build, x, name, *, width):
        x = build.conv(x, f"{name}.conv", width, bias=True)
        return build.add(x, build.activate(x))

    lines = layer_table(space(Stage("body", gated, 4)).largest.graph).layers
    assert [layer.kind for layer in lines[2:5]] == ["conv", "relu", "add"]
    assert lines[2].fused == ["bias"]
    assert lines[3].name == "body.relu"
