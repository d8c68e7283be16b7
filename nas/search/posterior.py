"""What is believed of architectures that were not tried: each objective, exactly or by a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from nas.search.acquisition import expected_hypervolume_improvement
from nas.search.encoding import Array, Encoding
from nas.search.objectives import Infeasible, Objective
from nas.search.pareto import non_dominated
from nas.search.surrogate import Posterior, Shape, Surrogate, shape_for
from nas.search.trial import Trial
from nas.space import Architecture

MODELLED = 400
"""Observations that a model is made from at most: the best layers, and the last ones."""

WORKS = Shape(additive=0.5, length=0.3, noise=0.01)
"""Of the model that says whether an architecture has a value at all."""

DOUBTFUL = 0.1
"""Below this chance to have any values an architecture comes after all others."""

BEYOND = 1.1
"""Where hypervolume ends: so many times the way from each objective's best value to its worst."""


class Cheap:
    """Asks the cheap objectives, and remembers."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = [o for o in objectives if o.cheap]
        self._asked: dict[Architecture, dict[str, float] | None] = {}

    def values(self, architecture: Architecture) -> dict[str, float] | None:
        """By name, smaller is better; None where one rules the architecture out."""
        if architecture not in self._asked:
            self._asked[architecture] = self._found(architecture)
        return self._asked[architecture]

    def _found(self, architecture: Architecture) -> dict[str, float] | None:
        found: dict[str, float] = {}
        for objective in self._objectives:
            (score,) = objective.ask([architecture])
            if isinstance(score, Infeasible):
                return None
            found[objective.name] = objective.sign * score
        return found


@dataclass(frozen=True)
class Observed:
    """Completed trials, and all that have some values, as models take them.

    Args:
        objectives: of the search.
        completed: those that make the front.
        trials: these, and those that a limit ruled out.
    """

    objectives: Sequence[Objective]
    completed: Sequence[Trial]
    trials: Sequence[Trial]

    @property
    def optimised(self) -> list[Objective]:
        """The objectives that are no mere limits."""
        return [o for o in self.objectives if not o.limit_only]

    @property
    def modelled(self) -> list[Objective]:
        """The objectives that cannot be asked of any number of architectures."""
        return [o for o in self.objectives if not o.cheap]

    @property
    def cheap(self) -> list[Objective]:
        """The others."""
        return [o for o in self.objectives if o.cheap]

    def scale(self) -> tuple[Array, Array]:
        """The best of each optimised objective, and the way from it to the worst."""
        values = self.values()
        best, worst = values.min(axis=0), values.max(axis=0)
        return best, np.where(worst > best, worst - best, 1.0)

    def values(self) -> Array:
        """Of the completed trials, `n x m`, smaller is better."""
        used = self.optimised
        return np.array([[o.sign * t.values[o.name] for o in used] for t in self.completed])

    def known(self, objective: Objective) -> tuple[list[Architecture], Array]:
        """The architectures of which a modelled objective is known, and its values."""
        found = [t for t in self.trials if objective.name in t.values]
        return (
            [t.architecture for t in found],
            np.array([objective.sign * t.values[objective.name] for t in found]),
        )

    def worked(self) -> tuple[list[Architecture], Array] | None:
        """The architectures, and 1 where objectives had values, 0 where not; None if all had."""
        values = np.array([float(self._worked(trial)) for trial in self.trials])
        return None if values.all() else ([t.architecture for t in self.trials], values)

    def _worked(self, trial: Trial) -> bool:
        beyond = any(
            o.limit is not None and o.sign * trial.values[o.name] > o.sign * o.limit
            for o in self.objectives
            if o.name in trial.values
        )
        return trial.state == "complete" or beyond

    def first(self, completed: int, trials: int) -> Observed:
        """What was observed earlier."""
        return Observed(self.objectives, self.completed[:completed], self.trials[:trials])


class Beliefs:
    """A Gaussian process an expensive objective, the front, and what would add to it.

    Args:
        observed: what the models are made from.
        encoding: of the architectures.
        cheap: asked instead of modelled.
        shapes: of the models' kernels, in the order of `observed.modelled`.
    """

    def __init__(
        self, observed: Observed, encoding: Encoding, cheap: Cheap, shapes: Sequence[Shape]
    ) -> None:
        self._observed, self._encoding, self._cheap = observed, encoding, cheap
        self._best, self._span = observed.scale()
        values = (observed.values() - self._best) / self._span
        self.front = values[non_dominated(values)]
        self._models = [
            self._model(objective, shape)
            for objective, shape in zip(observed.modelled, shapes, strict=True)
        ]
        worked = observed.worked()
        self._works: Surrogate | None = None
        if worked is not None:
            tried, values = worked
            known = encoding(tried[-MODELLED:])
            self._works = Surrogate(known, values[-MODELLED:], encoding, WORKS)

    def _model(self, objective: Objective, shape: Shape) -> Surrogate:
        architectures, values = self._observed.known(objective)
        if len(values) > MODELLED:
            kept = _most_telling(self._observed, architectures)
            architectures, values = [architectures[at] for at in kept], values[kept]
        return Surrogate(self._encoding(architectures), values, self._encoding, shape)

    def about(self, architectures: Sequence[Architecture]) -> Prospects:
        """What is believed of some architectures, none of which a cheap objective rules out."""
        encoded = self._encoding(architectures)
        chance = np.ones(len(architectures))
        if self._works is not None:
            mean, deviation = self._works.predict(encoded)
            chance = ndtr((mean - 0.5) / np.maximum(deviation, 0.1))
        posteriors = [model.posterior(encoded) for model in self._models]
        values = [self._cheap.values(each) or {} for each in architectures]
        asked = {o.name: np.array([v[o.name] for v in values]) for o in self._observed.cheap}
        return Prospects(self, asked, posteriors, chance)

    def assembled(
        self, asked: Mapping[str, Array], beliefs: Sequence[Posterior], count: int
    ) -> tuple[Array, Array, Array]:
        """Means and deviations, `n x m`, and the chance to meet the limits, `n`."""
        means = np.empty((count, len(self._best)))
        deviations = np.zeros_like(means)
        chance = np.ones(count)
        modelled = iter(beliefs)
        column = 0
        for objective in self._observed.objectives:
            if objective.cheap:
                mean = asked[objective.name]
                deviation = np.zeros(count)
            else:
                mean, deviation = next(modelled).marginals()
                if objective.limit is not None:
                    chance *= ndtr((objective.sign * objective.limit - mean) / deviation)
            if not objective.limit_only:
                means[:, column] = (mean - self._best[column]) / self._span[column]
                deviations[:, column] = deviation / self._span[column]
                column += 1
        return means, deviations, chance


class Prospects:
    """What some architectures would add to the front; observations can be supposed."""

    def __init__(
        self,
        beliefs: Beliefs,
        asked: Mapping[str, Array],
        posteriors: Sequence[Posterior],
        works: Array,
    ) -> None:
        self._beliefs, self._asked = beliefs, asked
        self._posteriors, self._works = posteriors, works
        self._front = beliefs.front

    def promise(self) -> Array:
        """The hypervolume that each is expected to add, times its chance to be feasible.

        Negative, in the same order, where it is doubtful that there would be any values: by the
        product alone, the space that always fails would be tried whenever the others add little.
        """
        means, deviations, chance = self._assembled()
        reference = [BEYOND] * means.shape[1]
        added = expected_hypervolume_improvement(means, deviations, self._front, reference)
        found = added * chance * self._works
        return np.where(self._works < DOUBTFUL, -1 / (1 + found), found)

    def suppose(self, position: int) -> None:
        """Goes on as if one had been observed as it is expected to be."""
        means, _, _ = self._assembled()
        self._front = np.vstack([self._front, means[position]])
        for posterior in self._posteriors:
            posterior.suppose(position)

    def _assembled(self) -> tuple[Array, Array, Array]:
        return self._beliefs.assembled(self._asked, self._posteriors, len(self._works))


def shapes_for(observed: Observed, encoding: Encoding) -> list[Shape]:
    """The kernels' shapes that suit what was observed, in the order of `observed.modelled`."""
    found = []
    for objective in observed.modelled:
        architectures, values = observed.known(objective)
        found.append(shape_for(encoding(architectures), values, encoding))
    return found


def _most_telling(observed: Observed, architectures: Sequence[Architecture]) -> list[int]:
    """Positions of the architectures in the best layers, and of the last ones."""
    count = len(architectures)
    chosen = set(range(count - MODELLED // 4, count))
    at = {architecture: position for position, architecture in enumerate(architectures)}
    values = observed.values()
    left = np.arange(len(values))
    while len(chosen) < MODELLED and len(left):
        layer = left[non_dominated(values[left])]
        where = [at[observed.completed[each].architecture] for each in layer]
        chosen.update(where[: MODELLED - len(chosen)])
        left = np.setdiff1d(left, layer)
    return sorted(chosen)
