"""Subnets of a training step, against the sandwich rule."""

import math
from collections import Counter

import pytest

from nas.supernet.subnets import SubnetSampler
from tests.supernet.scrambled_supernet import space_on


@pytest.fixture
def space(digits):
    return space_on(digits, "mobilenet_tiny")


def test_step_has_the_largest_the_smallest_and_random_subnets(space):
    sampler = SubnetSampler(space, 3, seed=0)
    subnets = sampler.sample(4)
    assert len(subnets) == 5
    assert subnets[:2] == [space.largest.graph, space.smallest.graph]
    assert sampler.sample(4) == subnets
    assert sampler.sample(5) != subnets
    assert SubnetSampler(space, 3, seed=1).sample(4) != subnets


def test_alternatives_are_trained_equally_often(digits):
    """The largest network has three units of either type, and the smallest one."""
    space = space_on(digits, "shufflenet_tiny")
    sampler = SubnetSampler(space, 0, seed=0)
    steps = 400
    samples = [sampler.sample(step) for step in range(steps)]
    for position, units, end in ((0, 3, space.largest), (1, 1, space.smallest)):
        counts = Counter(sample[position].digest for sample in samples)
        assert len(counts) == 2**units, "every combination occurs"
        expected = steps / 2**units
        assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in counts.values())
        assert end.graph.digest in counts
