"""Canonical forms and extremes, against every combination of choices written out."""

import pytest

from tests.space.small_spaces import SMALL, architectures_by_digest, raw_graphs

spaces = pytest.mark.parametrize("name", SMALL)


@spaces
def test_choices_that_make_one_graph_make_one_architecture(name):
    """Every graph has one canonical architecture, which makes exactly that graph."""
    space = SMALL[name]()
    by_digest = {}
    for choices, graph in raw_graphs(space):
        architecture = space.architecture(choices)
        assert architecture.digest == graph.digest
        assert by_digest.setdefault(graph.digest, architecture) == architecture
        assert space.architecture(dict(architecture.choices)) == architecture
    assert len(set(by_digest.values())) == space.size


@spaces
def test_the_canonical_form_has_blocks_left_out_last(name):
    space = SMALL[name]()
    for (architecture,) in architectures_by_digest(space).values():
        for stage in space.compiled_stages:
            operators = [
                value
                for key, value in architecture.choices.items()
                if key.startswith(f"{stage.stage.name}.") and key.endswith(".op")
            ]
            left_out = [operator in ("skip", "none") for operator in operators]
            assert left_out == sorted(left_out)


@spaces
@pytest.mark.parametrize("count", ["macs", "params", "peak_memory_bytes"])
def test_extremes_equal_those_of_brute_force(name, count):
    space = SMALL[name]()
    values = [getattr(graph, count) for _, graph in raw_graphs(space)]
    for end, best in (("smallest", min), ("largest", max)):
        graph = space.extreme(count, end).graph
        assert getattr(graph, count) == best(values)


def test_canonical_choices_refuses_ops_of_no_network():
    with pytest.raises(ValueError, match="no network"):
        SMALL["plain"]().automaton.canonical_choices((10**9,))
