import json
import math

import numpy as np
import pytest

from nas.describe import spaces
from nas.describe.figures import draw_space
from nas.latency import runtime_names, space_kernels
from nas.space import IDENTITY, SearchSpace, Stage, load_definition, load_space, space_names
from nas.space.choice import MAX_SIZE

COUNTS = ("macs", "params", "peak_memory_bytes")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "shufflenet_v1", "squeezenet"])
def test_a_distribution_lies_within_the_exact_range(name):
    space = load_space(name, image_size=32)
    counts = spaces.sample_counts(space)
    assert counts == spaces.sample_counts(space)
    for count in COUNTS:
        description = spaces.distribution(space, count, counts)
        values = [description["smallest"], *description["deciles"], description["largest"]]
        assert values == sorted(values)
        assert len(counts[count]) == spaces.MAX_SAMPLES
        assert set(description["deciles"]) <= set(counts[count])
        below = sum(value <= description["median"] for value in counts[count])
        assert below >= spaces.MAX_SAMPLES / 2
        assert description["median"] == description["deciles"][4]


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny"])
def test_a_small_space_is_described_by_all_its_networks(name):
    space = load_definition(name)
    graphs = [architecture.graph for architecture in space.enumerate()]
    counts = spaces.sample_counts(space)
    for count in COUNTS:
        every = sorted(getattr(graph, count) for graph in graphs)
        assert sorted(counts[count]) == every
        description = spaces.distribution(space, count, counts)
        assert (description["smallest"], description["largest"]) == (every[0], every[-1])
        assert description["deciles"] == [
            every[math.ceil(tenth * len(every) / 10) - 1] for tenth in range(1, 10)
        ]


def test_counts_beyond_64_bits_are_described_and_plotted(tmp_path):
    space = load_space("mobilenet_tiny", image_size=MAX_SIZE, channels=MAX_SIZE)
    counts = spaces.sample_counts(space)
    description = spaces.describe_space(space, counts, {})
    assert description["macs"]["largest"] == max(counts["macs"]) > 2**64
    assert sum(description["macs_histogram"]["counts"]) == space.size
    draw_space(description, counts, tmp_path / "space.png")


def test_the_brief_description_is_exact():
    space = load_space("mobilenet", image_size=32, classes=7)
    description = json.loads(json.dumps(spaces.describe_briefly(space)))
    assert description["size"] == space.size
    assert description["image_size"] == 32
    assert description["kernels"] == {
        each: len(space_kernels(space, each)) for each in runtime_names()
    }
    assert description["macs"]["largest"] == space.largest.macs
    assert description["params"]["smallest"] == space.extreme("params", "smallest").params
    assert [each["name"] for each in description["references"]] == [
        r.name for r in space.references
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize("image_size", [32, 224])
def test_stages_have_every_output_size_that_occurs(name, image_size):
    space = load_space(name, image_size=image_size)
    description = {row["name"]: row["output_sizes"] for row in spaces.describe_stages(space)}
    assert list(description) == [stage.name for stage in space.stages]
    assert description["head"] == [[1, 1]]
    rng = np.random.default_rng(0)
    for _ in range(50):
        graph = space.sample(rng).graph
        for stage, shape in {n.split(".")[0]: block.shape for block, n in graph.blocks}.items():
            assert list(shape[1:]) in description[stage]


def test_a_stage_without_ops_passes_its_input_on():
    """SqueezeNet 1.1 pools behind fire3, version 1.0 does not."""
    rows = {row["name"]: row for row in spaces.describe_stages(load_definition("squeezenet"))}
    assert rows["stem"]["output_sizes"] == [[111, 111], [109, 109]]
    assert [27, 27] in rows["pool3"]["output_sizes"]
    assert [55, 55] in rows["pool3"]["output_sizes"]
    assert rows["pool3"]["table_stride"] == rows["pool3"]["stride"] == {"1.0": 1, "1.1": 2}


def test_the_table_of_a_space_is_described_and_printed(capsys):
    ops = {"skip": IDENTITY, "e3k5": {"expand": 3, "kernel": 5}}
    space = SearchSpace(
        "mine",
        (
            Stage("stem", "conv", (8, 16), stride=2, per_stage={"kernel": 3}),
            Stage(
                "body",
                "inverted_residual",
                24,
                (2, 3),
                2,
                per_block={"op": ops},
                entry="linear_bottleneck",
            ),
            Stage("head", "linear_classifier"),
        ),
        image_size=8,
        channels=1,
        classes=3,
        resolutions=(0.75, 1.0),
    )
    description = json.loads(
        json.dumps(spaces.describe_space(space, spaces.sample_counts(space), {}))
    )
    stem, body, head = description["stages"]
    assert stem["width"] == [8, 16]
    assert (stem["table_stride"], stem["stride"]) == (2, 1)
    assert (body["block"], body["entry"]) == ("inverted_residual", "linear_bottleneck")
    assert body["per_block"] == {"op": {"skip": None, "e3k5": {"expand": 3, "kernel": 5}}}
    assert body["output_sizes"] == [[4, 4], [3, 3]]
    assert head["width"] == []
    assert description["network_choices"] == {"resolution": [6, 8]}
    assert description["sampled"] == description["size"] == space.size
    assert sum(description["macs_histogram"]["counts"]) == space.size

    spaces.show_space(description)
    shown = capsys.readouterr().out
    assert "linear_bottleneck, inverted_residual ..." in shown
    assert "2, here 1" in shown
    assert "each block: op skip, e3k5" in shown
    assert "op e3k5: expand 3, kernel 5" in shown
    assert "op skip: the block is left out" in shown
    assert "whole network: resolution 6, 8" in shown


def test_sizes_beyond_a_float_are_printed(capsys):
    description = spaces.describe_briefly(load_definition("mobilenet_tiny")) | {
        "size": 825 * 10**400
    }
    spaces.show_spaces([description])
    assert "8.25e402" in capsys.readouterr().out
