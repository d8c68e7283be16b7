"""How much each choice of a space matters for an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from nas.search.encoding import ArchitectureEncoder, EncodedArchitectures
from nas.search.pareto import Array
from nas.search.surrogate import GaussianProcess, ModelError, fit_hyperparameters
from nas.space import Architecture, SearchSpace
from nas.space.architecture import Value

MIN_EXPLAINED = 0.3
"""Share of the variance that a model must explain before its shares mean anything."""

DRAWS = 128
"""Random networks in which each choice is changed: the shares are then sure to about a tenth."""

_FOLDS = 5

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Effect:
    """How much a group of choices matters for an objective.

    Attributes:
        share: its share in the sum of the effects of all groups.
        change: root mean squared change of the predicted value if the group alone is changed, in
            the unit of the objective.
    """

    share: float
    change: float


class Importance(NamedTuple):
    """How much groups of choices matter for one objective.

    Attributes:
        explained: share of the variance of the values that the model explains for architectures
            that it was not fitted to; below zero if it predicts worse than their mean.
        effects: effect of each group by its name; empty if the model explains less than
            `MIN_EXPLAINED`.
    """

    explained: float
    effects: dict[str, Effect]


def choice_importance(
    space: SearchSpace,
    groups: Mapping[str, Sequence[str]],
    architectures: Sequence[Architecture],
    objectives: Sequence[Array],
) -> list[Importance]:
    """Return how much groups of choices matter for several objectives.

    A `GaussianProcess`, the model of the search, is fitted to scored architectures. In random
    networks of the space, one group of choices at a time is changed to other options, and the
    model predicts by how much the objective changes. The mean square of the changes estimates the
    total effect of the group, the variance that remains if all other choices are known (Jansen
    1999). A choice of a block that a network does not have changes nothing, so it counts as often
    as networks have it. The networks are drawn with equal probability for every option, so the
    result does not depend on where the search looked most; but the model knows little about
    regions that it looked at little.

    Args:
        space: space of the architectures.
        groups: names of choices by the name of their group.
        architectures: `n`, in random order; the time grows with their cube.
        objectives: the values of each objective, `n` each.
    """
    encoder = ArchitectureEncoder([space])
    observed = encoder.encode(architectures)
    draws = _Draws(space, groups)
    encoded = encoder.encode(draws.architectures)
    # On a busy machine, threads that wait for each other take ten times longer than one thread.
    with threadpool_limits(1, "blas"):
        return [draws.importance(_Model(observed, each, encoder), encoded) for each in objectives]


class _Model:
    """The model of one objective, and the share of the variance that it explains."""

    def __init__(
        self, observed: EncodedArchitectures, values: Array, encoder: ArchitectureEncoder
    ) -> None:
        self.values = values
        self._hyperparameters = fit_hyperparameters(observed, values, encoder)
        self._observed, self._encoder = observed, encoder

    @property
    def explained(self) -> float:
        """The share of the variance that is explained, by cross-validation."""
        fold = np.arange(len(self.values)) % _FOLDS
        squared_errors = 0.0
        for each in range(_FOLDS):
            left_out = fold == each
            predicted = self.predict(self._observed.rows(left_out), ~left_out)
            squared_errors += float(((predicted - self.values[left_out]) ** 2).sum())
        squares = float(((self.values - self.values.mean()) ** 2).sum())
        return 1 - squared_errors / squares if squares > 0 else 0.0

    def predict(self, encoded: EncodedArchitectures, fitted: Mask | None = None) -> Array:
        """Return predicted values, from all architectures or from some."""
        chosen = np.full(len(self.values), True) if fitted is None else fitted
        observed = self._observed.rows(chosen)
        process = GaussianProcess(
            observed, self.values[chosen], self._encoder, self._hyperparameters
        )
        return process.predict(encoded)[0]


class _Draws:
    """Random networks, each also with every group of choices changed by itself.

    Attributes:
        architectures: all networks, each once.
    """

    def __init__(self, space: SearchSpace, groups: Mapping[str, Sequence[str]]) -> None:
        rng = np.random.default_rng(0)
        numbers: dict[Architecture, int] = {}

        def number(choices: Mapping[str, Value]) -> int:
            return numbers.setdefault(space.architecture(choices), len(numbers))

        def drawn(names: Sequence[str]) -> dict[str, Value]:
            options = {name: space.parameters[name] for name in names}
            return {name: each[rng.integers(len(each))] for name, each in options.items()}

        self._before: list[int] = []
        self._after: dict[str, list[int]] = {name: [] for name in groups}
        for _ in range(DRAWS):
            choices = drawn(list(space.parameters))
            self._before.append(number(choices))
            for group, names in groups.items():
                changed = choices
                while changed == choices:
                    changed = {**choices, **drawn(names)}
                self._after[group].append(number(changed))
        self._combinations = {
            group: float(np.prod([len(space.parameters[name]) for name in names]))
            for group, names in groups.items()
        }
        self.architectures = list(numbers)

    def importance(self, model: _Model, encoded: EncodedArchitectures) -> Importance:
        """Return the importance of the groups by a model of the objective."""
        try:
            explained = model.explained
            predicted = model.predict(encoded)
        except ModelError:
            return Importance(0.0, {})
        if explained < MIN_EXPLAINED:
            return Importance(explained, {})
        before = predicted[self._before]
        squares = {
            group: float(((predicted[after] - before) ** 2).mean())
            for group, after in self._after.items()
        }
        # A group that is drawn anew keeps its options in one of `combinations` cases.
        variances = {
            group: (1 - 1 / self._combinations[group]) * square for group, square in squares.items()
        }
        total = sum(variances.values()) or 1.0
        return Importance(
            explained,
            {
                group: Effect(variances[group] / total, square**0.5)
                for group, square in squares.items()
            },
        )
