"""Steps of a search from architectures that it knows to new ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nas.space import Architecture
from nas.space.variation import crossover, mutate


def children(
    parents: Sequence[Architecture],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Architecture]:
    """Mutations of the parents in turn, a third of them after a crossover within the space."""
    by_space: dict[str, list[Architecture]] = {}
    for parent in parents:
        by_space.setdefault(parent.space.name, []).append(parent)
    for number in range(count):
        parent = parents[number % len(parents)]
        others = by_space[parent.space.name]
        if len(others) > 1 and rng.random() < 0.3:
            other = others[rng.integers(len(others))]
            parent = crossover(parent, other, rng)
        yield mutated(parent, rng, 1 + int(rng.random() < 0.4))


def mutated(parent: Architecture, rng: np.random.Generator, changes: int) -> Architecture:
    """A neighbour; the network itself where the space has no other."""
    return mutate(parent, rng, changes=changes) if parent.space.size > 1 else parent
