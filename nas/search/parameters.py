"""The choices of search spaces as Optuna's parameters: their names and distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from nas.errors import SearchError
from nas.space import Architecture, SearchSpace

SPACE = "space"
"""Name of the parameter that says which of several spaces an architecture is of."""


class Parameters:
    """Optuna's names and distributions for all choices of the spaces of a study.

    A choice is called `SPACE.CHOICE`. Both parts can hold dots, so choices of two spaces can get
    one name: `b.width` of the space `a` and `width` of the space `a.b`. The space with the shorter
    name keeps it, and the choice of the other one is called `SPACE:CHOICE`, which no other choice
    can be called. Names are looked up and never taken apart.

    Args:
        spaces: the spaces of the study. If there are several, the space is a parameter too.
    """

    def __init__(self, spaces: Sequence[SearchSpace]) -> None:
        self.distributions: dict[str, CategoricalDistribution] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._several = len(spaces) > 1
        if self._several:
            names = [space.name for space in spaces]
            self.distributions[SPACE] = CategoricalDistribution(names)
        for space in sorted(spaces, key=lambda each: len(each.name)):
            own = self._names[space.name] = {}
            for key, options in space.parameters.items():
                name = f"{space.name}.{key}"
                own[key] = f"{space.name}:{key}" if name in self.distributions else name
                self.distributions[own[key]] = CategoricalDistribution(options)

    def names(self, space: str) -> Mapping[str, str]:
        """The parameter of each choice of a space."""
        return self._names[space]

    def of(self, architecture: Architecture) -> dict[str, Any]:
        """The parameters of an architecture, without those that it does not use."""
        own = self._names[architecture.space.name]
        values: dict[str, Any] = {SPACE: architecture.space.name} if self._several else {}
        return values | {own[key]: value for key, value in architecture.choices}

    def choices(self, space: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The choices of a space among the parameters of a trial."""
        return {key: values[name] for key, name in self._names[space].items() if name in values}

    def distributions_of(self, values: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """The distributions of the parameters of a trial.

        Raises SearchError for a parameter that no choice of the spaces has.
        """
        unknown = [name for name in values if name not in self.distributions]
        if unknown:
            raise SearchError(
                f"A trial has the parameter {unknown[0]!r}, which is no choice of the spaces "
                f"{', '.join(self._names)}.",
                remedy="Continue a search with the spaces that it was started with.",
            )
        return {name: self.distributions[name] for name in values}
