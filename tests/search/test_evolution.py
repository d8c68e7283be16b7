import numpy as np

from nas.search.evolution import generate_offspring, repair
from tests.search.test_study import SPACES


def sample(count, seed=0):
    rng = np.random.default_rng(seed)
    return [space.sample(rng, uniform_over="choices") for space in SPACES for _ in range(count)]


def test_offspring_stay_in_the_space_of_their_parents_in_turn():
    parents = sample(2)
    offspring = list(generate_offspring(parents, 30, np.random.default_rng(0)))
    assert [each.space.name for each in offspring] == [parent.space.name for parent in parents] * 5
    assert len(set(offspring) - set(parents)) > 20


def test_offspring_of_a_single_parent_are_at_most_two_changes_away():
    space = SPACES[0]
    parent = space.smallest
    rng = np.random.default_rng(0)
    for each in generate_offspring([parent], 40, rng):
        # The smallest network has the fewest blocks, so a child has all of its choices.
        changed = [name for name in parent.choices if each.choices[name] != parent.choices[name]]
        assert 1 <= len(changed) <= 2


def excess_macs(limit):
    """Return a violation function for a limit on MACs."""

    def violations(architectures):
        macs = [each.macs for each in architectures]
        return [max(0.0, each - limit) / limit for each in macs]

    return violations


def test_repair_reaches_a_limit_that_only_the_smallest_networks_meet():
    space = SPACES[0]
    violations = excess_macs(1.05 * space.smallest.macs)
    population = [space.largest]
    ranked = repair(population, violations, np.random.default_rng(0))
    values = violations(ranked)
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] > 0
    assert len(set(ranked)) == len(ranked)
