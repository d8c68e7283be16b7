from dataclasses import replace

import pytest

from nas.cli.networks import print_comparisons
from nas.space import load_definition, space_names
from nas.space.published import compare_references
from tests.pretrained.small_network import SPACE


@pytest.mark.slow
def test_all_published_networks_agree():
    spaces = [load_definition(name) for name in space_names()]
    rows = compare_references(spaces)
    assert [row.name for row in rows] == [r.name for s in spaces for r in s.references]
    assert all(row.agrees and row.is_in_space for row in rows)
    assert sum(row.published_params is not None for row in rows) > 20
    assert sum(row.published_macs is not None for row in rows) > 20
    assert len({row.digest for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("changes", "is_in_space"),
    [
        ({"params": 1}, True),
        ({"macs": 1.02}, True),
        ({"macs": 1.005, "tolerance": 0.002}, True),
        ({"choices": {"stem.width": 17}}, False),
        ({"choices": {"stage9.width": 16}}, False),
    ],
)
def test_a_network_that_differs_from_its_figures_is_marked(changes, is_in_space, capsys):
    unknown = SPACE.references[0]
    graph = SPACE.published(unknown.name).graph
    good = replace(unknown, name="good", params=graph.params, macs=graph.macs)
    counts = {key: changes[key] * getattr(graph, key) for key in {"macs"} & changes.keys()}
    bad = replace(good, name="bad", **{**changes, **counts})
    rows = compare_references([replace(SPACE, references=(unknown, good, bad))])
    assert [row.agrees for row in rows] == [True, True, False]
    assert (rows[0].published_params, rows[0].published_macs) == (None, None)
    assert rows[2].is_in_space == is_in_space
    assert bool(rows[2].error) == (not is_in_space)
    print_comparisons(rows)
    shown = capsys.readouterr().out
    assert shown.count("DISAGREES") == 1
    assert rows[2].error in shown
