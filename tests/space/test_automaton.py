"""Counting, drawing and listing networks, against every combination of choices written out."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from scipy.stats import chisquare

from nas.graph import Graph
from nas.space import SearchSpace, load_space
from tests.space.small_spaces import SMALL, written

spaces = pytest.mark.parametrize("name", SMALL)


def raw(space: SearchSpace):
    """The graph of every combination of options, without canonical forms."""
    for options in product(*space.parameters.values()):
        choices = dict(zip(space.parameters, options, strict=True))
        input_block, blocks = space._lowering.walk(choices)
        ops = list(input_block.graph.ops)
        for block, name in blocks:
            ops += block.ops_at(len(ops) - 1, name)
        yield choices, Graph(tuple(ops))


@spaces
def test_the_size_is_the_number_of_different_graphs(name):
    space = SMALL[name]()
    assert space.size == len({graph.digest for _, graph in raw(space)})


@spaces
def test_equal_networks_are_equal_records(name):
    """One canonical architecture a graph, which makes exactly that graph."""
    space = SMALL[name]()
    by_digest = {}
    for choices, graph in raw(space):
        architecture = space.architecture(choices)
        assert architecture.digest == graph.digest
        assert by_digest.setdefault(graph.digest, architecture) == architecture
        assert space.architecture(dict(architecture.choices)) == architecture
    assert len(set(by_digest.values())) == space.size


@spaces
def test_the_canonical_form_has_blocks_left_out_last(name):
    space = SMALL[name]()
    for (architecture,) in written(space).values():
        for stage in space.compiled_stages:
            operators = [
                value
                for key, value in architecture.choices
                if key.startswith(f"{stage.stage.name}.") and key.endswith(".op")
            ]
            left_out = [operator in ("skip", "none") for operator in operators]
            assert left_out == sorted(left_out)


@spaces
def test_enumeration_lists_every_network_once(name):
    space = SMALL[name]()
    listed = list(space.enumerate())
    assert len(listed) == len(set(listed)) == space.size
    assert {a.digest for a in listed} == set(written(space))


@spaces
def test_what_was_asked_before_changes_neither_order_nor_draws(name):
    fresh, used = SMALL[name](), SMALL[name]()
    # Meets all blocks in another order than counting does.
    list(used.automaton.all_transitions())
    assert list(used.enumerate()) == list(fresh.enumerate())
    draws = [[s.sample(np.random.default_rng(i)) for i in range(20)] for s in (fresh, used)]
    assert draws[0] == draws[1]


def test_other_spaces_in_the_process_change_no_order():
    code = (
        "from nas.space import load_space; import sys, hashlib; "
        "spaces = [load_space(n, image_size=8, channels=1) for n in sys.argv[1:]]; "
        "listed = [str(list(s.enumerate())) for s in spaces]; "
        "print(hashlib.sha256(listed[-1].encode()).hexdigest())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True
        ).stdout
        for names in (["mobilenet_tiny"], ["squeezenet_tiny", "shufflenet_tiny", "mobilenet_tiny"])
    ]
    assert found[0] == found[1]


@spaces
def test_every_network_is_drawn_equally_often(name):
    """Pearson's chi-square over all networks; a right sampler fails once in ten thousand seeds."""
    space = SMALL[name]()
    rng = np.random.default_rng(11)
    position = {architecture: i for i, architecture in enumerate(space.enumerate())}
    draws = max(2000, 20 * space.size)
    counts = np.bincount([position[space.sample(rng)] for _ in range(draws)], minlength=space.size)
    assert chisquare(counts).pvalue > 1e-4


def test_drawing_every_choice_uniformly_is_another_distribution():
    """The chi-square test sees it: shallow networks come too often."""
    space = SMALL["plain"]()
    rng = np.random.default_rng(11)
    position = {architecture: i for i, architecture in enumerate(space.enumerate())}
    drawn = [position[space.sample(rng, uniform_over="choices")] for _ in range(20 * space.size)]
    assert chisquare(np.bincount(drawn, minlength=space.size)).pvalue < 1e-6


@spaces
@pytest.mark.parametrize("measure", ["macs", "params", "peak_memory_bytes"])
def test_extremes_are_those_of_brute_force(name, measure):
    space = SMALL[name]()
    values = [getattr(graph, measure) for _, graph in raw(space)]
    for end, best in (("smallest", min), ("largest", max)):
        found = space.extreme(measure, end).graph
        assert getattr(found, measure) == best(values)


def test_rows_of_left_out_blocks_in_closed_form():
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


def test_a_word_of_no_network_is_refused():
    with pytest.raises(ValueError, match="no network"):
        SMALL["plain"]().automaton.canonical_choices((10**9,))


@spaces
def test_counts_of_parts_add_up(name):
    """What a graph knows from its parts equals what its ops give."""
    space = SMALL[name]()
    rng = np.random.default_rng(3)
    for _ in range(30):
        graph = space.sample(rng).graph
        whole = Graph(graph.ops)
        assert graph == whole
        for key in ("digest", "macs", "params", "peak_memory_bytes", "input_shape", "text"):
            assert getattr(graph, key) == getattr(whole, key), key
