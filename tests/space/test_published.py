from dataclasses import replace

import pytest

from nas.cli.networks import print_comparisons
from nas.space import load_definition, space_names
from nas.space.published import compare_references


@pytest.mark.slow
def test_all_published_networks_agree():
    spaces = [load_definition(name) for name in space_names()]
    rows = compare_references(spaces)
    assert [row.name for row in rows] == [r.name for s in spaces for r in s.references]
    assert all(row.agrees and row.is_in_space for row in rows)
    assert sum(row.published_params is not None for row in rows) > 20
    assert sum(row.published_macs is not None for row in rows) > 20
    assert len({row.digest for row in rows}) == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "is_in_space"),
    [
        ({"params": 3_504_873}, True),
        ({"macs": 304e6}, True),
        ({"macs": 300e6, "tolerance": 0.002}, True),
        ({"choices": {"stage1.width": 17}}, False),
        ({"choices": {"stage9.width": 16}}, False),
    ],
)
def test_a_network_that_differs_from_its_figures_is_marked(changes, is_in_space, capsys):
    space = load_definition("mobilenet")
    good = next(r for r in space.references if r.name == "mobilenet_v2_1.0")
    bad = replace(good, name="bad", **changes)
    rows = compare_references([replace(space, references=(good, bad))])
    assert [row.agrees for row in rows] == [True, False]
    assert rows[1].is_in_space == is_in_space
    assert bool(rows[1].error) == (not is_in_space)
    print_comparisons(rows)
    shown = capsys.readouterr().out
    assert shown.count("DISAGREES") == 1
    assert rows[1].error in shown


def test_missing_published_figures_are_not_compared():
    space = load_definition("mobilenet")
    unknown = replace(space.references[0], params=None, macs=None)
    (row,) = compare_references([replace(space, references=(unknown,))])
    assert row.agrees
    assert (row.published_params, row.published_macs) == (None, None)
