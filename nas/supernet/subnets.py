"""Subnet sampling: which subnets a training step trains, and on which targets.

Published methods to choose subnets, so that they can be compared. `TrainingSettings.subnets` names
one of them; `make_subnet_sampler` returns it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

from nas.graph import Graph
from nas.space import Architecture, SearchSpace
from nas.supernet.schedule import Schedule
from nas.supernet.settings import TrainingSettings

Role = Literal["largest", "smallest", "random"]
"""Why a subnet is in a step; accuracies are logged by role."""

ROLES: tuple[Role, ...] = ("largest", "smallest", "random")
"""All roles."""

ProbeLoss = Callable[[Graph], float]
"""Returns the loss of a subnet on a part of the step's batch, without training it."""

CANDIDATES_PER_CHOICE = 3
"""Subnets of similar size of which "best_up" and "worst_up" train one."""

_DRAWS_PER_CHOICE = 8
"""Random subnets of which those with the most similar sizes are the candidates."""


class SubnetTask(NamedTuple):
    """A subnet that a step trains.

    Attributes:
        role: why the subnet is in the step.
        graph: the subnet.
        distil: whether the target is the output of the largest subnet, instead of the labels.
    """

    role: Role
    graph: Graph
    distil: bool


class SubnetSampler(Protocol):
    """Chooses the subnets of each training step."""

    def sample(self, step: int, probe_loss: ProbeLoss) -> Sequence[SubnetTask]:
        """Return the subnets of a step in the order of training, the largest one first.

        The result depends on the step and on `probe_loss` alone.
        """
        ...


def make_subnet_sampler(
    space: SearchSpace, settings: TrainingSettings, seed: int, schedule: Schedule
) -> SubnetSampler:
    """Return the sampler that `settings.subnets` names.

    Args:
        space: space of the subnets.
        settings: training settings.
        seed: seed of the random subnets.
        schedule: schedule of the training, for progressive shrinking.
    """
    if settings.subnets == "fair":
        return FairSampler(space, seed)
    if settings.subnets == "single":
        return SinglePathSampler(space, seed)
    return SandwichSampler(space, settings, seed, schedule)


class SandwichSampler:
    """The largest, the smallest and some random subnets (the sandwich rule).

    All but the largest subnet learn from its output, unless the settings say otherwise (Yu and
    Huang 2019, "Universally slimmable networks": the sandwich rule and in-place distillation).

    The rule assumes that the largest subnet contains all others. Alternatives, such as two types of
    unit, are no part of each other. So the largest and the smallest subnet of a step have random
    ones. If they always had the same, these would be trained far more often than the others, and
    overrated.

    With "best_up" or "worst_up" each random subnet is the one with the smallest or the largest
    probe loss among `CANDIDATES_PER_CHOICE` of similar size (Wang et al. 2021, "AttentiveNAS", with
    the loss on a part of the batch in place of an accuracy predictor).

    With progressive shrinking, subnets have many choices of the largest one at first, and ever
    fewer (after Cai et al. 2020, "Once-for-All").
    """

    def __init__(
        self, space: SearchSpace, settings: TrainingSettings, seed: int, schedule: Schedule
    ) -> None:
        self._space, self._settings, self._seed = space, settings, seed
        self._schedule = schedule
        self._shrinking_end = math.ceil(settings.progressive * schedule.end)
        self._largest, self._smallest = space.largest, space.smallest
        self._alternatives = {
            key: options
            for key, options in space.parameters.items()
            if len(options) > 1 and not all(_is_number(option) for option in options)
        }

    def sample(self, step: int, probe_loss: ProbeLoss) -> Sequence[SubnetTask]:
        """See `SubnetSampler.sample`."""
        rng = np.random.default_rng([self._seed, 2, step])
        distil = self._settings.distil
        largest = self._with_random_alternatives(self._largest, rng)
        smallest = self._with_random_alternatives(self._smallest, rng)
        smallest = self._enlarge(smallest, largest, step, rng)
        return [
            SubnetTask("largest", largest.graph, False),
            SubnetTask("smallest", smallest.graph, distil),
            *(
                SubnetTask("random", self._sample_random(largest, step, rng, probe_loss), distil)
                for _ in range(self._settings.random_subnets)
            ),
        ]

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

    def _sample_random(
        self, largest: Architecture, step: int, rng: np.random.Generator, probe_loss: ProbeLoss
    ) -> Graph:
        if self._settings.subnets == "sandwich":
            return self._draw(largest, step, rng)
        graphs = [self._draw(largest, step, rng) for _ in range(_DRAWS_PER_CHOICE)]
        target_macs = graphs[0].macs
        graphs.sort(key=lambda graph: abs(math.log(graph.macs / target_macs)))
        select = min if self._settings.subnets == "best_up" else max
        return select(graphs[:CANDIDATES_PER_CHOICE], key=probe_loss)

    def _draw(self, largest: Architecture, step: int, rng: np.random.Generator) -> Graph:
        architecture = self._space.sample(rng, uniform_over="choices")
        return self._enlarge(architecture, largest, step, rng).graph

    def _enlarge(
        self, architecture: Architecture, largest: Architecture, step: int, rng: np.random.Generator
    ) -> Architecture:
        """Replace random choices by those of the largest one, ever fewer while shrinking."""
        position = self._schedule.position(step)
        if position >= self._shrinking_end:
            return architecture
        own, replacements = dict(architecture.choices), dict(largest.choices)
        replaced_share = 1 - position / self._shrinking_end
        choices = {
            key: replacements[key]
            if key in replacements and (key not in own or rng.random() < replaced_share)
            else own.get(key, options[0])
            for key, options in self._space.parameters.items()
        }
        return self._space.architecture(choices)


def _is_number(option: object) -> bool:
    """Return whether an option is a size; others are alternatives."""
    return isinstance(option, int | float) and not isinstance(option, bool)


class SinglePathSampler:
    """One random subnet a step, trained on the labels (Guo et al. 2020, "Single path one-shot")."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    def sample(self, step: int, probe_loss: ProbeLoss) -> Sequence[SubnetTask]:
        """See `SubnetSampler.sample`."""
        rng = np.random.default_rng([self._seed, 2, step])
        return [SubnetTask("random", self._space.sample(rng, uniform_over="choices").graph, False)]


class FairSampler:
    """Subnets in which every option of every choice is used equally often, trained on the labels.

    A step has as many subnets as the choice with the most options has options. Choices with fewer
    options repeat theirs in a new order. This extends the strict fairness of Chu et al. 2021,
    "FairNAS", which assumes that all choices have equally many options.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed
        self._subnets_per_step = max(len(options) for options in space.parameters.values())

    def sample(self, step: int, probe_loss: ProbeLoss) -> Sequence[SubnetTask]:
        """See `SubnetSampler.sample`."""
        rng = np.random.default_rng([self._seed, 2, step])
        columns = {}
        for key, options in self._space.parameters.items():
            repeats = math.ceil(self._subnets_per_step / len(options))
            order = np.concatenate([rng.permutation(len(options)) for _ in range(repeats)])
            columns[key] = [options[index] for index in order[: self._subnets_per_step]]
        tasks = []
        for number in range(self._subnets_per_step):
            choices = {key: column[number] for key, column in columns.items()}
            graph = self._space.architecture(choices).graph
            tasks.append(SubnetTask("random", graph, False))
        return tasks
