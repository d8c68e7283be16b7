"""Mutation and crossover in small spaces of every structure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import SpaceError
from nas.space import SearchSpace, Stage
from nas.space.variation import crossover, mutate
from tests.space.small_spaces import SMALL

SPACES = {name: make() for name, make in SMALL.items()}
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), seed=seeds, changes=st.integers(1, 4))
def test_mutation_and_crossover_stay_inside(name, seed, changes):
    space, rng = SPACES[name], np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng, uniform_over="choices")
    mutant = mutate(a, rng, changes=changes)
    child = crossover(a, b, rng)
    for architecture in (mutant, child):
        assert space.architecture(dict(architecture.choices)) == architecture
    assert mutant != a
    assert crossover(a, a, rng) == a
    first, second = dict(a.choices), dict(b.choices)
    for key, value in child.choices.items():
        # A canonical form may say the same with other values.
        if space._is_injective:
            assert value in (first.get(key), second.get(key))


def test_a_space_of_one_network_has_no_mutants():
    stages = (Stage("stem", "conv", 8, per_stage={"kernel": 3}), Stage("head", "linear_classifier"))
    space = SearchSpace("one", stages, image_size=8)
    with pytest.raises(SpaceError, match="no other network"):
        mutate(space.largest, np.random.default_rng(0))
