"""How much each choice of a space matters for an objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
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
    networks, before, after = _draw_changes(space, groups)
    encoded = encoder.encode(networks)
    combinations = {
        group: prod(len(space.parameters[name]) for name in names)
        for group, names in groups.items()
    }

    def importance(values: Array) -> Importance:
        model = _Model(observed, values, encoder)
        try:
            explained, predicted = model.explained, model.predict(encoded)
        except ModelError:
            return Importance(0.0, {})
        if explained < MIN_EXPLAINED:
            return Importance(explained, {})
        squares = {
            group: float(((predicted[changed] - predicted[before]) ** 2).mean())
            for group, changed in after.items()
        }
        # A group that is drawn anew keeps its options in one of `combinations` cases.
        variances = {
            group: (1 - 1 / combinations[group]) * square for group, square in squares.items()
        }
        total = sum(variances.values()) or 1.0
        effects = {
            group: Effect(variances[group] / total, square**0.5)
            for group, square in squares.items()
        }
        return Importance(explained, effects)

    # On a busy machine, threads that wait for each other take ten times longer than one thread.
    with threadpool_limits(1, "blas"):
        return [importance(each) for each in objectives]


class _Model:
    """The model of one objective, and the share of the variance that it explains."""

    def __init__(
        self, observed: EncodedArchitectures, values: Array, encoder: ArchitectureEncoder
    ) -> None:
        self._observed, self._values, self._encoder = observed, values, encoder
        self._hyperparameters = fit_hyperparameters(observed, values, encoder)

    @property
    def explained(self) -> float:
        """The share of the variance that is explained, by cross-validation."""
        values = self._values
        fold = np.arange(len(values)) % _FOLDS
        predicted = np.empty_like(values)
        for each in range(_FOLDS):
            left_out = fold == each
            predicted[left_out] = self.predict(self._observed.rows(left_out), ~left_out)
        squares = float(((values - values.mean()) ** 2).sum())
        return 1 - float(((predicted - values) ** 2).sum()) / squares if squares > 0 else 0.0

    def predict(self, encoded: EncodedArchitectures, fitted: Mask | slice = slice(None)) -> Array:
        """Return predicted values, from all architectures or from some."""
        observed, values = self._observed.rows(fitted), self._values[fitted]
        process = GaussianProcess(observed, values, self._encoder, self._hyperparameters)
        return process.predict(encoded)[0]


def _draw_changes(
    space: SearchSpace, groups: Mapping[str, Sequence[str]]
) -> tuple[list[Architecture], list[int], dict[str, list[int]]]:
    """Draw random networks, each also with every group of choices changed by itself.

    Returns:
        All networks, each once; the positions of the random ones; and, for each group, those of
        their changed versions.
    """
    rng = np.random.default_rng(0)
    positions: dict[Architecture, int] = {}

    def position(choices: Mapping[str, Value]) -> int:
        return positions.setdefault(space.architecture(choices), len(positions))

    def drawn(names: Iterable[str]) -> dict[str, Value]:
        options = {name: space.parameters[name] for name in names}
        return {name: each[rng.integers(len(each))] for name, each in options.items()}

    before: list[int] = []
    after: dict[str, list[int]] = {name: [] for name in groups}
    for _ in range(DRAWS):
        choices = drawn(space.parameters)
        before.append(position(choices))
        for group, names in groups.items():
            changed = choices
            while changed == choices:
                changed = {**choices, **drawn(names)}
            after[group].append(position(changed))
    return list(positions), before, after
