"""Options of blocks: which give them weights of their own, and which are refused."""

import pytest

from nas.errors import SpaceError

CONV = {"width": 8, "stride": 2, "kernel": 3}
BOTTLENECK = {"width": 8, "stride": 1, "kernel": 3, "expand": 3, "activation": "relu"}
FIRE = {"width": 16, "squeeze": 0.5, "share3x3": 0.5}
UNIT = {"kernel": 3, "unit": "basic"}
ENTRY = {"stride": 2, "groups": 3, "base": 24, "kernel": 3, "multiple": 2}


@pytest.mark.parametrize(
    ("block", "choices", "variants"),
    [
        ("conv", CONV, [{}, {"activation": "relu"}, {"activation": "hard_swish"}]),
        (
            "linear_bottleneck_v3",
            BOTTLENECK,
            [{"se": se, "activation": kind} for se in ("none", "se") for kind in ("relu", "relu6")],
        ),
        ("fire", FIRE, [{"bypass": kind} for kind in ("none", "simple", "complex")]),
        (
            "shuffle_v1_unit",
            {"kernel": 3},
            [{"groups": 1, "base": 8}, {"groups": 2, "base": 8}, {"groups": 2, "base": 4}],
        ),
        ("shuffle_v1_head", {}, [{"groups": 1, "base": 8}, {"groups": 2, "base": 8}]),
    ],
)
def test_variants_have_weights_of_their_own(place, block, choices, variants):
    graphs = [place(block, (8, 6, 6), **choices | variant) for variant in variants]
    slots = [{op.slot.name for op in graph.ops if op.slot} for graph in graphs]
    assert len(set().union(*slots)) == sum(map(len, slots))


@pytest.mark.parametrize(
    ("block", "choices", "words"),
    [
        ("linear_bottleneck_v3", {**BOTTLENECK, "se": "yes"}, "se is 'yes'. Use one of none, se"),
        ("shuffle_unit", {**UNIT, "unit": "ghost"}, "unit is 'ghost'. Use one of basic, xception"),
        ("fire", {**FIRE, "bypass": "all"}, "bypass is 'all'. Use one of none, simple, complex"),
        ("conv", {**CONV, "padding": "half"}, 'padding is \'half\'. Use "same" or "valid"'),
        ("shuffle_v1_entry", {**ENTRY, "first": "no"}, "first is 'no'. Use one of dense, grouped"),
    ],
)
def test_an_unknown_option_is_refused_by_name(place, block, choices, words):
    with pytest.raises(SpaceError, match=words):
        place(block, (8, 6, 6), **choices)
