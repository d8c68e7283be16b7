"""Subnets of a training step, against the published rules."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from nas.errors import RequestError
from nas.supernet import TrainingSettings
from nas.supernet.schedule import Schedule
from nas.supernet.subnets import (
    CANDIDATES_PER_CHOICE,
    FairSampler,
    SandwichSampler,
    SinglePathSampler,
    make_subnet_sampler,
)
from tests.supernet.scrambled_supernet import space_on

SETTINGS = TrainingSettings(device="cpu")


def no_probe(graph):
    raise AssertionError("the loss was probed")


@pytest.fixture
def space(digits):
    return space_on(digits, "mobilenet_tiny")


def test_sandwich_has_the_largest_the_smallest_and_random_subnets(space):
    sampler = make_subnet_sampler(
        space, replace(SETTINGS, random_subnets=3), seed=0, schedule=Schedule(10)
    )
    tasks = sampler.sample(4, no_probe)
    assert [task.role for task in tasks] == ["largest", "smallest", *["random"] * 3]
    assert [task.distil for task in tasks] == [False, *[True] * 4]
    ends = [space.largest.graph, space.smallest.graph]
    assert [task.graph for task in tasks[:2]] == ends
    assert sampler.sample(4, no_probe) == tasks
    assert sampler.sample(5, no_probe) != tasks
    assert (
        make_subnet_sampler(space, SETTINGS, seed=1, schedule=Schedule(10)).sample(4, no_probe)
        != tasks
    )
    plain = SandwichSampler(space, replace(SETTINGS, distil=False), 0, Schedule(10)).sample(
        4, no_probe
    )
    assert not any(task.distil for task in plain)


def test_sandwich_trains_alternatives_equally_often(digits):
    """The largest network has three units of either type, and the smallest one."""
    space = space_on(digits, "shufflenet_tiny")
    sampler = SandwichSampler(space, SETTINGS, 0, Schedule(1000))
    steps = 400
    counts = {"largest": Counter(), "smallest": Counter()}
    for step in range(steps):
        for task in sampler.sample(step, no_probe)[:2]:
            counts[task.role].update([task.graph.digest])
    for role, units in (("largest", 3), ("smallest", 1)):
        assert len(counts[role]) == 2**units, "every combination occurs"
        expected = steps / 2**units
        assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in counts[role].values())
    assert space.largest.graph.digest in counts["largest"]
    assert space.smallest.graph.digest in counts["smallest"]


def test_single_path_is_one_random_subnet_trained_on_the_labels(space):
    sampler = make_subnet_sampler(
        space, replace(SETTINGS, subnets="single"), seed=0, schedule=Schedule(10)
    )
    assert isinstance(sampler, SinglePathSampler)
    steps = [sampler.sample(step, no_probe) for step in range(30)]
    assert all(len(tasks) == 1 and not tasks[0].distil for tasks in steps)
    assert len({tasks[0].graph.digest for tasks in steps}) > 20


def test_fair_uses_every_option_equally_often(space):
    sampler = make_subnet_sampler(
        space, replace(SETTINGS, subnets="fair"), seed=0, schedule=Schedule(10)
    )
    assert isinstance(sampler, FairSampler)
    count = max(map(len, space.parameters.values()))
    seen = []
    real = type(space).architecture

    class Spy:
        parameters = space.parameters

        def architecture(self, choices):
            seen.append(choices)
            return real(space, choices)

    tasks = FairSampler(Spy(), 0).sample(0, no_probe)
    assert tasks == sampler.sample(0, no_probe)
    assert len(tasks) == len(seen) == count
    for key, options in space.parameters.items():
        counts = Counter(choices[key] for choices in seen)
        assert max(counts.values()) - min(counts[each] for each in options) <= 1
        if count % len(options) == 0:
            assert set(counts.values()) == {count // len(options)}


@pytest.mark.parametrize(("name", "best"), [("best_up", min), ("worst_up", max)])
def test_best_up_and_worst_up_choose_among_subnets_of_similar_size(space, name, best):
    probed = []

    def probe_loss(graph):
        probed.append(graph)
        return math.sin(graph.params)

    settings = replace(SETTINGS, subnets=name, random_subnets=1)
    *_, chosen = make_subnet_sampler(space, settings, seed=3, schedule=Schedule(10)).sample(
        2, probe_loss
    )
    assert len(probed) == CANDIDATES_PER_CHOICE
    assert chosen.graph == best(probed, key=lambda graph: math.sin(graph.params))
    assert chosen.distil
    plain = make_subnet_sampler(space, SETTINGS, 3, Schedule(10))
    spread = [
        max(g.macs for g in group) / min(g.macs for g in group)
        for group in (
            probed,
            [task.graph for task in plain.sample(2, no_probe)],
        )
    ]
    assert spread[0] < spread[1]


def test_progressive_shrinking_starts_from_the_largest_subnet(space):
    settings = replace(SETTINGS, progressive=0.5, random_subnets=8)
    sampler = make_subnet_sampler(space, settings, seed=0, schedule=Schedule(100))
    largest = space.largest.graph
    assert {task.graph for task in sampler.sample(0, no_probe)} == {largest}
    means = [
        sum(task.graph.macs for task in sampler.sample(step, no_probe)[2:]) / 8
        for step in (5, 25, 45, 75)
    ]
    assert largest.macs > means[0] > means[1] > means[2]
    plain = make_subnet_sampler(
        space, replace(settings, progressive=0.0), seed=0, schedule=Schedule(100)
    )
    assert sampler.sample(50, no_probe) == plain.sample(50, no_probe), (
        "shrinking ends after half of the steps"
    )
    smallest = [sampler.sample(step, no_probe)[1].graph.macs for step in (0, 25, 50)]
    assert smallest[0] == largest.macs > smallest[1] > smallest[2]
    assert smallest[2] == space.smallest.macs


def test_unknown_method_is_refused():
    with pytest.raises(RequestError, match="subnets cannot be 'clever'"):
        TrainingSettings(subnets="clever")
