"""Which networks a training step trains, on what: the ways that were published, to compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from nas.graph import Graph
from nas.space import Architecture, SearchSpace
from nas.supernet.settings import TrainingSettings

Role = Literal["largest", "smallest", "random"]

Look = Callable[[Graph], float]
"""The loss of a network on a part of the step's batch, without training it."""

CANDIDATES = 3
"""Networks of similar size among which attention chooses one."""

_DRAWN = 8
"""Networks from which those of similar size are taken."""


class Lesson(NamedTuple):
    """A network that a step trains; `distilled` from the largest one's output, or on the labels."""

    role: Role
    graph: Graph
    distilled: bool


class Subnets(Protocol):
    """A function of the step alone, and of what `look` says."""

    def of(self, step: int, look: Look) -> Sequence[Lesson]:
        """The networks of a step in the order of training; the largest one first."""
        ...


def subnets_for(space: SearchSpace, settings: TrainingSettings, seed: int, steps: int) -> Subnets:
    """What `settings.subnets` names, for a training of so many steps."""
    if settings.subnets == "fair":
        return Fair(space, seed)
    if settings.subnets == "single":
        return Single(space, seed)
    return Sandwich(space, settings, seed, steps)


class Sandwich:
    """The largest, the smallest and some random networks (Yu and Huang 2019).

    All but the largest learn from its output in place, unless the settings say otherwise. With
    `best_up` or `worst_up` every random network is the one with the smallest or largest loss of
    `CANDIDATES` of similar size (Wang et al. 2021, "AttentiveNAS", with the loss on a part of the
    batch instead of a predictor). While `progressive` of the steps last, networks are mixed with
    the largest one, less and less (after Cai et al. 2020, "Once-for-All": progressive shrinking).
    """

    def __init__(
        self, space: SearchSpace, settings: TrainingSettings, seed: int, steps: int
    ) -> None:
        self._space, self._settings, self._seed = space, settings, seed
        self._shrinking = math.ceil(settings.progressive * steps)
        self._largest, self._smallest = space.largest, space.smallest

    def of(self, step: int, look: Look) -> Sequence[Lesson]:
        """See `Subnets.of`."""
        rng = np.random.default_rng([self._seed, 2, step])
        distilled = self._settings.distil
        smallest = self._mixed(self._smallest, step, rng)
        return [
            Lesson("largest", self._largest.graph, False),
            Lesson("smallest", smallest.graph, distilled),
            *(
                Lesson("random", self._random(step, rng, look), distilled)
                for _ in range(self._settings.random_subnets)
            ),
        ]

    def _random(self, step: int, rng: np.random.Generator, look: Look) -> Graph:
        if self._settings.subnets == "sandwich":
            return self._drawn(step, rng)
        drawn = [self._drawn(step, rng) for _ in range(_DRAWN)]
        aim = drawn[0].macs
        similar = sorted(drawn, key=lambda graph: abs(math.log(graph.macs / aim)))[:CANDIDATES]
        chosen = min if self._settings.subnets == "best_up" else max
        return chosen(similar, key=look)

    def _drawn(self, step: int, rng: np.random.Generator) -> Graph:
        return self._mixed(self._space.sample(rng, uniform_over="choices"), step, rng).graph

    def _mixed(
        self, architecture: Architecture, step: int, rng: np.random.Generator
    ) -> Architecture:
        """An architecture as it is trained now: early on with choices of the largest one."""
        if step >= self._shrinking:
            return architecture
        own, largest = dict(architecture.choices), dict(self._largest.choices)
        kept = 1 - step / self._shrinking
        choices = {
            key: largest[key]
            if key in largest and (key not in own or rng.random() < kept)
            else own.get(key, options[0])
            for key, options in self._space.parameters.items()
        }
        return self._space.architecture(choices)


class Single:
    """One random network a step, on the labels (Guo et al. 2020, "Single path one-shot")."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    def of(self, step: int, look: Look) -> Sequence[Lesson]:
        """See `Subnets.of`."""
        rng = np.random.default_rng([self._seed, 2, step])
        return [Lesson("random", self._space.sample(rng, uniform_over="choices").graph, False)]


class Fair:
    """Networks in which every option of every choice occurs equally often, on the labels.

    As many as the largest choice has options; smaller choices repeat theirs, in another order (Chu
    et al. 2021, "FairNAS": strict fairness, which knows choices of one size only).
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed
        self._count = max(len(options) for options in space.parameters.values())

    def of(self, step: int, look: Look) -> Sequence[Lesson]:
        """See `Subnets.of`."""
        rng = np.random.default_rng([self._seed, 2, step])
        columns = {}
        for key, options in self._space.parameters.items():
            rounds = math.ceil(self._count / len(options))
            order = np.concatenate([rng.permutation(len(options)) for _ in range(rounds)])
            columns[key] = [options[at] for at in order[: self._count]]
        return [
            Lesson("random", self._space.architecture(choices).graph, False)
            for choices in (
                {key: column[number] for key, column in columns.items()}
                for number in range(self._count)
            )
        ]
