"""Evolutionary steps: the offspring of known architectures, and repair of infeasible ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nas.space import Architecture
from nas.space.variation import crossover, mutate

CROSSOVER_PROBABILITY = 0.3
"""Probability that the offspring has two parents."""

SECOND_MUTATION_PROBABILITY = 0.4
"""Probability that a mutation changes two choices instead of one."""

MAX_REPAIR_GENERATIONS = 100
"""Generations before a repair gives up: the limits then count as impossible to meet."""

REPAIR_PARENTS = 10
"""Parents of a generation of a repair, unless most of their offspring is known already."""

REPAIR_OFFSPRING = 40
"""Offspring of a generation of a repair."""


def generate_offspring(
    parents: Sequence[Architecture],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Architecture]:
    """Yield mutations of the parents in turn, some after a crossover within the same space.

    Offspring can equal each other and their parents.

    Args:
        parents: at least one architecture.
        count: number of architectures to yield.
        rng: the generator of all random choices.
    """
    by_space: dict[str, list[Architecture]] = {}
    for parent in parents:
        by_space.setdefault(parent.space.name, []).append(parent)
    for number in range(count):
        parent = parents[number % len(parents)]
        partners = by_space[parent.space.name]
        if len(partners) > 1 and rng.random() < CROSSOVER_PROBABILITY:
            partner = partners[rng.integers(len(partners))]
            parent = crossover(parent, partner, rng)
        changes = 1 + int(rng.random() < SECOND_MUTATION_PROBABILITY)
        yield mutate_if_possible(parent, rng, changes)


def mutate_if_possible(
    parent: Architecture, rng: np.random.Generator, changes: int
) -> Architecture:
    """Return a mutation with at most `changes` changes; the parent if the space has no other."""
    return mutate(parent, rng, changes=changes) if parent.space.size > 1 else parent


def repair(
    population: Sequence[Architecture],
    violations: Callable[[Sequence[Architecture]], list[float]],
    rng: np.random.Generator,
    *,
    max_generations: int = MAX_REPAIR_GENERATIONS,
) -> list[Architecture]:
    """Evolve a population towards feasible architectures.

    Every generation varies the architectures with the smallest constraint violation. The evolution
    ends with the first generation in which an architecture is feasible.

    Args:
        population: the architectures to start from.
        violations: returns the constraint violation of each architecture, zero if it is feasible.
        rng: the generator of all random choices.
        max_generations: generations after which the evolution ends without a feasible one.

    Returns:
        All architectures of all generations, sorted by their violation.
    """
    violation_of = dict(zip(population, violations(population), strict=True))
    num_parents = REPAIR_PARENTS
    for _ in range(max_generations):
        ranked = sorted(violation_of, key=lambda each: violation_of[each])
        if not violation_of[ranked[0]]:
            break
        offspring = generate_offspring(ranked[:num_parents], REPAIR_OFFSPRING, rng)
        new = [each for each in dict.fromkeys(offspring) if each not in violation_of]
        violation_of.update(zip(new, violations(new), strict=True))
        # When most neighbours of the parents are known, only more parents lead further.
        num_parents = REPAIR_PARENTS if len(new) > REPAIR_OFFSPRING // 2 else 2 * num_parents
    return sorted(violation_of, key=lambda each: violation_of[each])
