"""The choices of search spaces as Optuna's parameters: their names and distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution

from nas.space import Architecture, SearchSpace

SPACE = "space"
"""Name of the parameter that selects the space if a study has several."""


class Parameters:
    """Optuna's names and distributions for all choices of the spaces of a study.

    The parameter of a choice is called `SPACE.CHOICE`. Both parts may contain dots, so choices of
    two spaces could get the same name: `b.width` of the space `a` and `width` of the space `a.b`.
    In that case the space with the shorter name keeps `SPACE.CHOICE`, and the choice of the other
    space is called `SPACE:CHOICE`, which no other choice can have. Names are looked up and never
    split.

    Args:
        spaces: spaces of the study. If there are several, the space is a parameter too.

    Attributes:
        distributions: distribution of each parameter by name.
    """

    def __init__(self, spaces: Sequence[SearchSpace]) -> None:
        self.distributions: dict[str, CategoricalDistribution] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._has_several_spaces = len(spaces) > 1
        if self._has_several_spaces:
            names = [space.name for space in spaces]
            self.distributions[SPACE] = CategoricalDistribution(names)
        for space in sorted(spaces, key=lambda each: len(each.name)):
            own = self._names[space.name] = {}
            for key, options in space.parameters.items():
                name = f"{space.name}.{key}"
                own[key] = f"{space.name}:{key}" if name in self.distributions else name
                self.distributions[own[key]] = CategoricalDistribution(options)

    def names(self, space: str) -> Mapping[str, str]:
        """Return the parameter name of each choice of a space, by the name of the choice."""
        return self._names[space]

    def from_architecture(self, architecture: Architecture) -> dict[str, Any]:
        """Return the parameters that an architecture uses, with their values."""
        own = self._names[architecture.space.name]
        values: dict[str, Any] = (
            {SPACE: architecture.space.name} if self._has_several_spaces else {}
        )
        return values | {own[key]: value for key, value in architecture.choices.items()}

    def choices(self, space: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choices of a space that are among the parameters of a trial.

        Args:
            space: name of the space.
            values: values of the trial's parameters by name.
        """
        return {key: values[name] for key, name in self._names[space].items() if name in values}
