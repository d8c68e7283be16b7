"""Counting, sampling and listing networks, against every combination of choices written out."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from nas.space import block_graph, load_space
from tests.space.small_spaces import SMALL, architectures_by_digest, raw_graphs

spaces = pytest.mark.parametrize("name", SMALL)


@spaces
def test_the_size_is_the_number_of_different_graphs(name):
    space = SMALL[name]()
    assert space.size == len({graph.digest for _, graph in raw_graphs(space)})


@spaces
def test_enumeration_lists_every_network_once(name):
    space = SMALL[name]()
    listed = list(space.enumerate())
    assert len(listed) == len(set(listed)) == space.size
    assert {a.digest for a in listed} == set(architectures_by_digest(space))


@spaces
def test_earlier_requests_change_neither_order_nor_samples(name):
    fresh, used = SMALL[name](), SMALL[name]()
    # Visits all blocks in another order than counting does.
    list(used.automaton.all_transitions())
    assert list(used.enumerate()) == list(fresh.enumerate())
    draws = [[s.sample(np.random.default_rng(i)) for i in range(20)] for s in (fresh, used)]
    assert draws[0] == draws[1]


def test_order_does_not_depend_on_other_spaces_in_the_process(monkeypatch):
    """Ops have numbers in the order in which they are met."""
    listed = []
    for others in (["squeezenet_tiny", "shufflenet_tiny"], []):
        monkeypatch.setattr(block_graph, "_op_ids", {})
        monkeypatch.setattr(block_graph, "_ops_by_id", [])
        for name in (*others, "mobilenet_tiny"):
            space = replace(load_space(name, image_size=8, channels=1))
            listed.append(list(space.enumerate()))
    assert listed[2] == listed[3]


@spaces
def test_sampling_over_networks_is_uniform(name):
    """Pearson's chi-square over all networks; a right sampler fails once in ten thousand seeds."""
    space = SMALL[name]()
    rng = np.random.default_rng(11)
    position = {architecture: i for i, architecture in enumerate(space.enumerate())}
    draws = max(2000, 20 * space.size)
    counts = np.bincount([position[space.sample(rng)] for _ in range(draws)], minlength=space.size)
    assert chisquare(counts).pvalue > 1e-4


def test_sampling_over_choices_is_not_uniform_over_networks():
    """Shallow networks are too frequent, which the chi-square test detects."""
    space = SMALL["plain"]()
    rng = np.random.default_rng(11)
    position = {architecture: i for i, architecture in enumerate(space.enumerate())}
    drawn = [position[space.sample(rng, uniform_over="choices")] for _ in range(20 * space.size)]
    assert chisquare(np.bincount(drawn, minlength=space.size)).pvalue < 1e-6


def test_size_with_left_out_blocks_equals_the_closed_form():
    """Runs of n blocks with two real options each are sum(2^k, k = 0..n) networks."""
    assert SMALL["rows"]().size == (2**4 - 1) * 2 * (2**3 - 1)
    assert SMALL["skipping"]().size == 2**5 - 1


def test_a_large_space_is_counted_exactly():
    """Depths 2 to 4 of blocks with 4 units, and so on: products and sums of powers."""
    space = load_space("shufflenet", image_size=32)
    count = 1
    for stage in space.compiled_stages:
        blocks = [np.prod([len(choice.options) for choice in own]) for own in stage.block_choices]
        shared = int(np.prod([len(choice.options) for choice in stage.stage_choices]))
        count *= shared * sum(int(np.prod(blocks[:depth])) for depth in stage.depths)
    assert space.size == count > 10**12
