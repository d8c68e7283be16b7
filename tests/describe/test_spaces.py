import json
import math

import numpy as np
import pytest

from nas.describe import spaces, stages
from nas.describe.figures import draw_space
from nas.describe.layers import stage_outputs
from nas.latency import runtime_names, space_kernels
from nas.space import IDENTITY, SearchSpace, Stage, load_definition, load_space, space_names
from nas.space.choice import MAX_SIZE

MEASURES = ("macs", "params", "peak_memory_bytes")


@pytest.mark.parametrize("name", ["mobilenet", "shufflenet_v1", "squeezenet"])
def test_a_distribution_lies_within_the_exact_range(name):
    space = load_space(name, image_size=32)
    counts = spaces.draw(space)
    assert counts == spaces.draw(space)
    for measure in MEASURES:
        found = spaces.distribution(space, measure, counts)
        row = [found["smallest"], *found["deciles"], found["largest"]]
        assert row == sorted(row)
        assert len(counts[measure]) == spaces.DRAWN
        assert set(found["deciles"]) <= set(counts[measure])
        below = sum(count <= found["median"] for count in counts[measure])
        assert below >= spaces.DRAWN / 2
        assert found["median"] == found["deciles"][4]


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny"])
def test_a_small_space_is_described_by_all_its_networks(name):
    space = load_definition(name)
    graphs = [architecture.graph for architecture in space.enumerate()]
    counts = spaces.draw(space)
    for measure in MEASURES:
        every = sorted(getattr(graph, measure) for graph in graphs)
        assert sorted(counts[measure]) == every
        found = spaces.distribution(space, measure, counts)
        assert (found["smallest"], found["largest"]) == (every[0], every[-1])
        assert found["deciles"] == [
            every[math.ceil(tenth * len(every) / 10) - 1] for tenth in range(1, 10)
        ]


def test_counts_beyond_64_bits_are_described_and_drawn(tmp_path):
    space = load_space("mobilenet_tiny", image_size=MAX_SIZE, channels=MAX_SIZE)
    counts = spaces.draw(space)
    found = spaces.space(space, counts, {})
    assert found["macs"]["largest"] == max(counts["macs"]) > 2**64
    assert sum(found["macs_histogram"]["counts"]) == space.size
    draw_space(found, counts, tmp_path / "space.png")


def test_an_overview_is_exact():
    space = load_space("mobilenet", image_size=32, classes=7)
    found = json.loads(json.dumps(spaces.overview(space)))
    assert found["size"] == space.size
    assert found["image_size"] == 32
    assert found["kernels"] == {each: len(space_kernels(space, each)) for each in runtime_names()}
    assert found["macs"]["largest"] == space.largest.macs
    assert found["params"]["smallest"] == space.extreme("params", "smallest").params
    assert [each["name"] for each in found["references"]] == [r.name for r in space.references]


@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize("image_size", [32, 224])
def test_stages_say_what_sizes_leave_them(name, image_size):
    space = load_space(name, image_size=image_size)
    found = {row["name"]: row["output_sizes"] for row in stages.stages(space)}
    assert list(found) == [stage.name for stage in space.stages]
    assert found["head"] == [[1, 1]]
    rng = np.random.default_rng(0)
    for _ in range(50):
        for stage, shape in stage_outputs(space.sample(rng).graph).items():
            assert list(shape[1:]) in found[stage]


def test_a_stage_without_ops_passes_its_input_on():
    """SqueezeNet 1.1 pools behind fire3, version 1.0 does not."""
    rows = {row["name"]: row for row in stages.stages(load_definition("squeezenet"))}
    assert rows["stem"]["output_sizes"] == [[111, 111], [109, 109]]
    assert [27, 27] in rows["pool3"]["output_sizes"]
    assert [55, 55] in rows["pool3"]["output_sizes"]
    assert rows["pool3"]["stride"] == rows["pool3"]["stride_here"] == {"1.0": 1, "1.1": 2}


def test_the_table_of_a_space(capsys):
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
    found = json.loads(json.dumps(spaces.space(space, spaces.draw(space), {})))
    stem, body, head = found["stages"]
    assert stem["width"] == [8, 16]
    assert (stem["stride"], stem["stride_here"]) == (2, 1)
    assert (body["block"], body["entry"]) == ("inverted_residual", "linear_bottleneck")
    assert body["per_block"] == {"op": {"skip": None, "e3k5": {"expand": 3, "kernel": 5}}}
    assert body["output_sizes"] == [[4, 4], [3, 3]]
    assert head["width"] == []
    assert found["network"] == {"resolution": [6, 8]}
    assert found["drawn"] == found["size"] == space.size
    assert sum(found["macs_histogram"]["counts"]) == space.size

    spaces.show_space(found)
    shown = capsys.readouterr().out
    assert "linear_bottleneck, inverted_residual ..." in shown
    assert "2, here 1" in shown
    assert "each block: op skip, e3k5" in shown
    assert "op e3k5: expand 3, kernel 5" in shown
    assert "op skip: the block is left out" in shown
    assert "whole network: resolution 6, 8" in shown


def test_sizes_beyond_a_float_are_shown(capsys):
    found = spaces.overview(load_definition("mobilenet_tiny")) | {"size": 825 * 10**400}
    spaces.show_spaces([found])
    assert "8.25e402" in capsys.readouterr().out
