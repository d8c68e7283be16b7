"""Subnet sampling: which subnets a training step trains."""

from __future__ import annotations

import numpy as np

from nas.graph import Graph
from nas.space import Architecture, SearchSpace
from nas.space.exits import trained_graph


class SubnetSampler:
    """The largest, the smallest and some random subnets of each step (the sandwich rule).

    Yu and Huang 2019, "Universally slimmable networks and improved training techniques".

    The rule assumes that the largest subnet contains all others. Alternatives, such as two types of
    unit, are no part of each other. So the largest and the smallest subnet of a step have random
    ones. If they always had the same, these would be trained much more often than the others, and
    overrated.

    Args:
        space: space of the subnets.
        random_subnets: number of random subnets of a step.
        seed: seed of the random subnets.
    """

    def __init__(self, space: SearchSpace, random_subnets: int, seed: int) -> None:
        self._space, self._random_subnets, self._seed = space, random_subnets, seed
        self._alternatives = {
            key: options
            for key, options in space.parameters.items()
            if len(options) > 1 and not all(_is_number(option) for option in options)
        }

    def sample(self, step: int) -> list[Graph]:
        """Return the subnets of a step: the largest one, the smallest one, and the random ones.

        They have the exit of the space. The result depends on the seed and the step alone.
        """
        rng = np.random.default_rng([self._seed, 2, step])
        largest = self._with_random_alternatives(self._space.largest, rng)
        smallest = self._with_random_alternatives(self._space.smallest, rng)
        random = [
            self._space.sample(rng, uniform_over="choices") for _ in range(self._random_subnets)
        ]
        return [trained_graph(each) for each in (largest, smallest, *random)]

    def _with_random_alternatives(
        self, architecture: Architecture, rng: np.random.Generator
    ) -> Architecture:
        """Replace the choices among alternatives by random ones."""
        choices = dict(architecture.choices)
        present = [key for key in self._alternatives if key in choices]
        if not present:
            return architecture
        for key in present:
            options = self._alternatives[key]
            choices[key] = options[rng.integers(len(options))]
        return self._space.architecture(choices)


def _is_number(option: object) -> bool:
    """Return whether an option is a size; others are alternatives."""
    return isinstance(option, int | float) and not isinstance(option, bool)
