"""Which networks a step trains, against the rules that were published."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from nas.errors import RequestError
from nas.supernet import TrainingSettings
from nas.supernet.subnets import CANDIDATES, Fair, Sandwich, Single, subnets_for
from tests.supernet.scrambled_supernet import space_on

SETTINGS = TrainingSettings(device="cpu")


def never(graph):
    raise AssertionError("no network is looked at")


@pytest.fixture
def space(digits):
    return space_on(digits, "mobilenet_tiny")


def test_a_sandwich_has_both_ends_and_random_networks(space):
    made = subnets_for(space, replace(SETTINGS, random_subnets=3), seed=0, steps=10)
    lessons = made.of(4, never)
    assert [each.role for each in lessons] == ["largest", "smallest", *["random"] * 3]
    assert [each.distilled for each in lessons] == [False, *[True] * 4]
    ends = [space.lower(space.largest), space.lower(space.smallest)]
    assert [each.graph for each in lessons[:2]] == ends
    assert made.of(4, never) == lessons
    assert made.of(5, never) != lessons
    assert subnets_for(space, SETTINGS, seed=1, steps=10).of(4, never) != lessons
    plain = Sandwich(space, replace(SETTINGS, distil=False), 0, 10).of(4, never)
    assert not any(each.distilled for each in plain)


def test_a_single_path_is_one_random_network_on_the_labels(space):
    made = subnets_for(space, replace(SETTINGS, subnets="single"), seed=0, steps=10)
    assert isinstance(made, Single)
    drawn = [made.of(step, never) for step in range(30)]
    assert all(len(each) == 1 and not each[0].distilled for each in drawn)
    assert len({each[0].graph.digest for each in drawn}) > 20


def test_fair_steps_use_every_option_equally_often(space):
    made = subnets_for(space, replace(SETTINGS, subnets="fair"), seed=0, steps=10)
    assert isinstance(made, Fair)
    count = max(map(len, space.parameters.values()))
    seen = []
    real = type(space).architecture

    class Spy:
        parameters = space.parameters

        def architecture(self, choices):
            seen.append(choices)
            return real(space, choices)

        def lower(self, architecture):
            return space.lower(architecture)

    found = Fair(Spy(), 0).of(0, never)
    assert found == made.of(0, never)
    assert len(found) == len(seen) == count
    for key, options in space.parameters.items():
        counts = Counter(choices[key] for choices in seen)
        assert max(counts.values()) - min(counts[each] for each in options) <= 1
        if count % len(options) == 0:
            assert set(counts.values()) == {count // len(options)}


@pytest.mark.parametrize(("name", "best"), [("best_up", min), ("worst_up", max)])
def test_attention_chooses_among_networks_of_similar_size(space, name, best):
    looked = []

    def look(graph):
        looked.append(graph)
        return math.sin(graph.params)

    settings = replace(SETTINGS, subnets=name, random_subnets=1)
    *_, chosen = subnets_for(space, settings, seed=3, steps=10).of(2, look)
    assert len(looked) == CANDIDATES
    assert chosen.graph == best(looked, key=lambda graph: math.sin(graph.params))
    assert chosen.distilled
    spread = [
        max(g.macs for g in group) / min(g.macs for g in group)
        for group in (looked, [e.graph for e in subnets_for(space, SETTINGS, 3, 10).of(2, never)])
    ]
    assert spread[0] < spread[1]


def test_networks_shrink_from_the_largest_one(space):
    settings = replace(SETTINGS, progressive=0.5, random_subnets=8)
    made = subnets_for(space, settings, seed=0, steps=100)
    largest = space.lower(space.largest)
    assert {each.graph for each in made.of(0, never)} == {largest}
    means = [
        sum(each.graph.macs for each in made.of(step, never)[2:]) / 8 for step in (5, 25, 45, 75)
    ]
    assert largest.macs > means[0] > means[1] > means[2]
    plain = subnets_for(space, replace(settings, progressive=0.0), seed=0, steps=100)
    assert made.of(50, never) == plain.of(50, never), "at the end nothing is left of it"
    smallest = [made.of(step, never)[1].graph.macs for step in (0, 25, 50)]
    assert smallest[0] == largest.macs > smallest[1] > smallest[2]
    assert smallest[2] == space.lower(space.smallest).macs


def test_an_unknown_way_is_refused():
    with pytest.raises(RequestError, match="subnets cannot be 'clever'"):
        TrainingSettings(subnets="clever")
