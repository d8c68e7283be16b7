"""A space as a whole: distributions of counts, and the rows of its table."""

import math
from dataclasses import fields

import numpy as np
import pytest

from nas.figures import COUNTS
from nas.space import load_definition, load_space, summary
from nas.space.elastic import MAX_SIZE
from nas.space.records import CountedNetwork
from tests.spaces import WITH_EVERY_BLOCK


@pytest.mark.slow
def test_a_distribution_lies_within_the_exact_range():
    space = load_space("shufflenet_v1", image_size=32)
    sample = summary.sample_graphs(space)
    assert len(set(sample)) == summary.MAX_SAMPLES
    assert sample == summary.sample_graphs(space)
    for count in COUNTS:
        counts = [getattr(graph, count) for graph in sample]
        distribution = summary.distribution(space, count, sample)
        values = [distribution.smallest, *distribution.deciles, distribution.largest]
        assert values == sorted(values)
        assert set(distribution.deciles) <= set(counts)
        assert sum(value <= distribution.median for value in counts) >= len(counts) / 2
        assert distribution.median == distribution.deciles[4]


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny"])
def test_a_small_space_is_described_by_all_its_networks(name):
    space = load_definition(name)
    graphs = [architecture.graph for architecture in space.enumerate()]
    sample = summary.sample_graphs(space)
    assert set(sample) == set(graphs)
    assert len(sample) == space.size
    for count in COUNTS:
        every = sorted(getattr(graph, count) for graph in graphs)
        distribution = summary.distribution(space, count, sample)
        assert (distribution.smallest, distribution.largest) == (every[0], every[-1])
        assert distribution.deciles == [
            every[math.ceil(tenth * len(every) / 10) - 1] for tenth in range(1, 10)
        ]


def test_counts_beyond_64_bits_are_exact():
    space = load_space("mobilenet_tiny", image_size=MAX_SIZE, channels=MAX_SIZE)
    macs = [graph.macs for graph in summary.sample_graphs(space)]
    assert summary.count_range(space, "macs").largest == max(macs) > 2**64


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_stages_have_every_output_size_that_occurs(name):
    space = load_space(name, image_size=32)
    sizes = {row.name: row.output_sizes for row in summary.summarise_stages(space)}
    assert list(sizes) == [stage.name for stage in space.stages]
    assert sizes["head"] == [(1, 1)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        graph = space.sample(rng).graph
        for stage, shape in {n.split(".")[0]: block.shape for block, n in graph.blocks}.items():
            assert shape[1:] in sizes[stage]


def test_a_stage_without_ops_passes_its_input_on():
    """SqueezeNet 1.1 pools behind fire3, version 1.0 does not."""
    rows = {row.name: row for row in summary.summarise_stages(load_definition("squeezenet"))}
    assert rows["stem"].output_sizes == [(111, 111), (109, 109)]
    assert {(27, 27), (55, 55)} <= set(rows["pool3"].output_sizes)
    assert rows["pool3"].table_stride == rows["pool3"].stride == {"1.0": 1, "1.1": 2}


def test_records_have_a_field_for_every_count():
    in_tables = {field.name for field in fields(summary.ReferenceCounts)}
    assert set(COUNTS) <= in_tables & set(CountedNetwork.model_fields)
