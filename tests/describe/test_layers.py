import numpy as np
import pytest

from nas.describe.architectures import find
from nas.describe.layers import layers, network, peak_layer, show_network
from nas.space import SearchSpace, Stage, load_definition, space_names

SPACES = {name: load_definition(name) for name in space_names()}


@pytest.mark.parametrize("name", space_names())
def test_layers_add_up_to_the_graph(name):
    space = SPACES[name].adapt(image_size=33, channels=3, classes=7)
    rng = np.random.default_rng(0)
    for architecture in (space.smallest, space.largest, *(space.sample(rng) for _ in range(8))):
        graph = architecture.graph
        found = layers(graph)
        assert sum(layer.macs for layer in found) == graph.macs
        assert sum(layer.params for layer in found) == graph.params
        assert [layer.index for layer in found] == list(range(len(found)))
        folded = [kind for layer in found for kind in layer.folded if kind != "bias"]
        assert len(found) + len(folded) == len(graph.ops)
        assert found[0].output == graph.input_shape
        assert found[-1].output == graph.output_shape
        stages = dict.fromkeys(layer.stage for layer in found[1:])
        assert list(stages) == [stage.name for stage in space.stages if stage.name in stages]
        assert all(
            layer.activation_bytes == 4 * np.prod(layer.output, dtype=int) for layer in found
        )


def test_a_convolution_with_norm_and_activation_is_one_line():
    """The first block of MobileNetV2, table 2: 3x224x224 to 32x112x112, then 16x112x112."""
    found = network(find("mobilenet_v2_1.0", {}))
    stem, depthwise, project = found["layers"][1:4]
    assert (stem["name"], stem["operation"], stem["folded"]) == (
        *("stem", "conv 3x3/2", ["norm", "relu6"]),
    )
    assert stem["output"] == (32, 112, 112)
    assert stem["macs"] == 27 * 32 * 112**2
    assert stem["params"] == 27 * 32 + 2 * 32
    assert (depthwise["operation"], depthwise["groups"]) == ("depthwise 3x3", 32)
    assert depthwise["params"] == 9 * 32 + 2 * 32
    assert project["folded"] == ["norm"]
    assert (found["macs"], found["params"]) == (300_774_272, 3_504_872)
    assert found["published"]["params"] == 3_504_872


def test_the_peak_is_where_the_largest_tensors_meet():
    """MobileNetV2 halves 96 channels of 112x112 in its second stage: both maps are alive."""
    graph = load_definition("mobilenet").published("mobilenet_v2_1.0").graph
    peak = layers(graph)[peak_layer(graph)]
    assert peak.name == "stage2.0.depthwise"
    assert graph.peak_memory_bytes == 4 * (96 * 112**2 + 96 * 56**2)


def test_the_peak_counts_what_is_read_again_later():
    """A residual input stays alive next to the widest map of its block."""
    block = {"kernel": 3, "expand": 6}
    space = SearchSpace(
        "residual",
        (
            Stage("stem", "conv", 8, per_stage={"kernel": 3}),
            Stage("body", "inverted_residual", 8, per_block=block),
            Stage("head", "linear_classifier"),
        ),
        image_size=16,
        channels=1,
        classes=3,
    )
    graph = space.largest.graph
    assert graph.peak_memory_bytes == 4 * (8 + 48 + 48) * 16**2
    assert layers(graph)[peak_layer(graph)].name == "body.depthwise"


def test_an_activation_of_a_tensor_that_others_read_has_a_line_of_its_own():
    def gated(build, x, name, *, width):
        x = build.conv(x, f"{name}.conv", width, bias=True)
        return build.add(x, build.activate(x))

    space = SearchSpace(
        "gated",
        (Stage("body", gated, 4), Stage("head", "linear_classifier")),
        image_size=8,
        channels=2,
        classes=3,
    )
    found = layers(space.largest.graph)
    assert [layer.kind for layer in found[1:4]] == ["conv", "relu", "add"]
    assert found[1].folded == ["bias"]
    assert found[2].name == "body.relu"


def test_what_a_person_reads(capsys):
    show_network(network(find("shufflenet_v1_g3", {"image_size": 64})))
    shown = capsys.readouterr().out
    assert "shufflenet_v1_g3 (shufflenet_v1) at 64 px" in shown
    assert "conv 1x1 in 3 groups, norm, relu" in shown
    assert "shuffle 3 groups" in shown
    assert "(published: 1,865,728, at 224 px and 1000 classes)" in shown
    assert "avg pool 3x3/2" in shown
