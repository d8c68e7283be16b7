"""Published networks against the tables of their papers, written out here by hand."""

import math
from functools import cache

import pytest

from nas.space import load_definition, space_names
from nas.space.published import published_graphs


@cache
def graphs():
    """Return the graphs of all published networks by name."""
    spaces = [load_definition(name) for name in space_names()]
    return {row.name: graph for _, row, graph in published_graphs(spaces)}


def stages(graph):
    """Each stage's name, its ops, and the shape that leaves it.

    Layers without weights have no name. Max pooling ends the stage before it, as in the papers'
    tables; average pooling begins the next.
    """
    rows = []
    for op in graph.ops:
        name = op.slot.name.split(".")[0] if op.slot else None
        if name and (not rows or rows[-1][0] != name):
            rows.append((name, []))
        if rows and op.kind not in ("avg_pool", "global_pool"):
            rows[-1][1].append(op)
    return {name: (ops, ops[-1].shape) for name, ops in rows}


def test_every_published_network_ships():
    multipliers = [f"mobilenet_v1_{m}" for m in (0.25, 0.5, 0.75, 1.0)]
    multipliers += [f"mobilenet_v2_{m}" for m in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)]
    multipliers += [f"shufflenet_v1_g{g}" for g in (1, 2, 3, 4, 8)]
    multipliers += [f"shufflenet_v2_{m}" for m in (0.5, 1.0, 1.5, 2.0)]
    large_and_small = ["mobilenet_v3_large", "mobilenet_v3_small"]
    squeezenets = ["1.0", "1.1", "1.0_simple_bypass", "1.0_complex_bypass"]
    lites = [f"efficientnet_lite{number}" for number in range(5)]
    expected = multipliers + large_and_small + [f"squeezenet_{end}" for end in squeezenets] + lites
    assert set(expected) <= set(graphs())


# Channels and pixels a side that leave each stage. The papers give them for a multiplier of 1.0.
STAGES = {
    # Howard et al. 2017, table 1
    "mobilenet_v1_1.0": [(32, 112), (64, 112), (128, 56), (256, 28), (512, 14), (1024, 7)],
    # Sandler et al. 2018, table 2
    "mobilenet_v2_1.0": [
        *[(32, 112), (16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7), (320, 7)]
    ],
    # Howard et al. 2019, tables 1 and 2
    "mobilenet_v3_large": [
        *[(16, 112), (16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (160, 7)]
    ],
    "mobilenet_v3_small": [(16, 112), (16, 56), (24, 28), (40, 14), (48, 14), (96, 7)],
    # Tan and Le 2019, table 1: EfficientNet-B0
    "efficientnet_lite0": [
        *[(32, 112), (16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (192, 7), (320, 7)]
    ],
    # Zhang et al. 2018, table 1
    "shufflenet_v1_g1": [(24, 56), (144, 28), (288, 14), (576, 7)],
    "shufflenet_v1_g2": [(24, 56), (200, 28), (400, 14), (800, 7)],
    "shufflenet_v1_g3": [(24, 56), (240, 28), (480, 14), (960, 7)],
    "shufflenet_v1_g4": [(24, 56), (272, 28), (544, 14), (1088, 7)],
    "shufflenet_v1_g8": [(24, 56), (384, 28), (768, 14), (1536, 7)],
    # Ma et al. 2018, table 5
    "shufflenet_v2_0.5": [(24, 56), (48, 28), (96, 14), (192, 7)],
    "shufflenet_v2_1.0": [(24, 56), (116, 28), (232, 14), (464, 7)],
    "shufflenet_v2_1.5": [(24, 56), (176, 28), (352, 14), (704, 7)],
    "shufflenet_v2_2.0": [(24, 56), (244, 28), (488, 14), (976, 7)],
    # Iandola et al. 2016, table 1: conv1, fire2-3, fire4, fire5, fire6-7, fire8, fire9
    "squeezenet_1.0": [
        *[(96, 55), (128, 55), (256, 27), (256, 27), (384, 27), (512, 13), (512, 13)]
    ],
    # SqueezeNet_v1.1/README.md: pools behind conv1, fire3 and fire5
    "squeezenet_1.1": [
        *[(64, 55), (128, 27), (256, 27), (256, 13), (384, 13), (512, 13), (512, 13)]
    ],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_those_of_the_paper(name):
    by_stage = stages(graphs()[name])
    assert list(by_stage)[-1] == "head"
    shapes = [shape for stage, (_, shape) in by_stage.items() if stage != "head"]
    assert shapes == [(c, size, size) for c, size in STAGES[name]]


@pytest.mark.parametrize("number", range(5))
def test_efficientnet_lite_is_scaled_like_efficientnet(number):
    """Tan and Le 2019, section 3.3, with the authors' rounding; the stem and the head are fixed."""
    width, depth = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)][number]
    expected = []
    base = {1: (16, 1), 2: (24, 2), 3: (40, 2), 4: (80, 3), 5: (112, 3), 6: (192, 4), 7: (320, 1)}
    for stage, (channels, blocks) in base.items():
        scaled = channels * width
        rounded = int(scaled + 4) // 8 * 8
        rounded += 8 * (rounded < 0.9 * scaled)
        expected.append((rounded, blocks if stage in (1, 7) else math.ceil(blocks * depth)))
    counted = []
    for name, (ops, shape) in stages(graphs()[f"efficientnet_lite{number}"]).items():
        if name.startswith("stage"):
            counted.append(
                (shape[0], sum(op.slot_name.endswith(".depthwise") for op in ops if op.slot))
            )
    assert counted == expected


@pytest.mark.parametrize(
    ("groups", "base", "macs"),
    [(1, 144, 143), (2, 200, 140), (3, 240, 137), (4, 272, 133), (8, 384, 137)],
)
def test_shufflenet_v1_has_the_convolutions_of_the_paper(groups, base, macs):
    """Table 2's complexity is that of the convolutions: without the linear layer to the digit."""
    graph = graphs()[f"shufflenet_v1_g{groups}"]
    convolutions = sum(graph.op_macs(op) for op in graph.ops if op.kind == "conv")
    assert round(convolutions / 1e6) == macs

    params = 3 * 24 * 9 + 2 * 24 + 4 * base * 1000 + 1000
    before = 24
    for multiple, units in [(1, 4), (2, 8), (4, 4)]:
        for unit in range(units):
            width = base * multiple
            hidden, out = width // 4, width - before if unit == 0 else width
            first = 1 if before == 24 else groups
            params += before * hidden // first + hidden * 9 + hidden * out // groups
            params += 2 * (hidden + hidden + out)
            before = width
    assert graph.params == params


def test_squeezenet_1_0_has_the_macs_of_its_authors_but_for_a_padded_1x1():
    """The published conv10 pads a 1x1 convolution of 13x13 by a pixel: 15x15 outputs.

    With that rim it is the README's 1.72 GFLOPs (two a MAC).
    """
    macs = graphs()["squeezenet_1.0"].macs + 512 * 1000 * (15**2 - 13**2)
    assert round(2 * macs / 1e9, 2) == 1.72
