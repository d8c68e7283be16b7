"""Distances and neighbours against a search through all architectures of small spaces."""

from collections import deque
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import SpaceError
from nas.space import SearchSpace, Stage, load_definition, space_names
from nas.space.variation import crossover, distance, mutate, neighbours
from tests.space.small_spaces import SMALL

SPACES = {name: load_definition(name) for name in space_names()}
seeds = st.integers(0, 2**32 - 1)


def steps(space, architecture):
    """Ways to write networks one step away: choices, and what deeper stages newly need."""
    choices = dict(architecture)
    for key in choices:
        for option in space.parameters[key]:
            if option != choices[key]:
                yield from completed(space, {**choices, key: option})


def completed(space, choices):
    needed = [c.name for c in space.network_choices if c.has_alternatives]
    needed += [
        name for stage in space.compiled_stages for name, _ in stage.active_parameters(choices)
    ]
    missing = [name for name in needed if name not in choices]
    if not missing:
        yield tuple((name, choices[name]) for name in space.parameters if name in needed)
        return
    for option in space.parameters[missing[0]]:
        yield from completed(space, {**choices, missing[0]: option})


def by_search(space, start):
    """Distances from an architecture to all ways to write a network, breadth first."""
    distances = {tuple(start.choices.items()): 0}
    waiting = deque(distances)
    while waiting:
        at = waiting.popleft()
        for after in steps(space, at):
            if after not in distances:
                distances[after] = distances[at] + 1
                waiting.append(after)
    return distances


@pytest.mark.parametrize("name", ["plain", "rounded", "skipping", "skipping_deep", "wide_choices"])
def test_the_distance_is_the_shortest_way(name):
    space = SMALL[name]()
    everything = list(space.enumerate())
    rng = np.random.default_rng(0)
    for start in rng.choice(len(everything), 3, replace=False):
        distances = by_search(space, everything[start])
        for other in everything:
            assert distance(everything[start], other) == distances[tuple(other.choices.items())]


@pytest.mark.parametrize("name", SMALL)
def test_neighbours_are_all_at_distance_one(name):
    space = SMALL[name]()
    everything = list(space.enumerate())
    rng = np.random.default_rng(1)
    for start in rng.choice(len(everything), min(4, len(everything)), replace=False):
        adjacent = list(neighbours(everything[start]))
        assert len(adjacent) == len(set(adjacent))
        at_one = {a for a in everything if distance(everything[start], a) == 1}
        assert set(adjacent) == at_one


@pytest.mark.parametrize("name", SMALL)
def test_the_distance_is_a_metric(name):
    space = SMALL[name]()
    rng = np.random.default_rng(2)
    drawn = [space.sample(rng) for _ in range(9)]
    for a, b in combinations(drawn, 2):
        assert distance(a, b) == distance(b, a)
        assert (distance(a, b) == 0) == (a == b)
        for c in drawn:
            assert distance(a, b) <= distance(a, c) + distance(c, b)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), seed=seeds, changes=st.integers(1, 4))
def test_mutation_and_crossover_stay_inside(name, seed, changes):
    space, rng = SPACES[name], np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng, uniform_over="choices")
    mutant = mutate(a, rng, changes=changes)
    child = crossover(a, b, rng)
    for architecture in (mutant, child):
        assert space.architecture(dict(architecture.choices)) == architecture
    assert mutant != a
    assert distance(a, mutant) >= 1
    assert crossover(a, a, rng) == a
    first, second = dict(a.choices), dict(b.choices)
    for key, value in child.choices.items():
        # A canonical form may say the same with other values.
        if space._is_injective:
            assert value in (first.get(key), second.get(key))


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), seed=seeds)
def test_a_single_change_makes_a_neighbour_where_choices_are_injective(name, seed):
    space, rng = SPACES[name], np.random.default_rng(seed)
    a = space.sample(rng)
    if space._is_injective:
        assert distance(a, mutate(a, rng)) == 1


def test_a_space_of_one_network_has_no_mutants():
    stages = (Stage("stem", "conv", 8, per_stage={"kernel": 3}), Stage("head", "linear_classifier"))
    space = SearchSpace("one", stages, image_size=8)
    with pytest.raises(SpaceError, match="no other network"):
        mutate(space.largest, np.random.default_rng(0))
    assert list(neighbours(space.largest)) == []
