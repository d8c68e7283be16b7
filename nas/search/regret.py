"""How good a sampler is where the true front is known: hypervolume regret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.errors import RequestError
from nas.search.objectives import Infeasible, Objective, Score
from nas.search.pareto import hypervolume, non_dominated
from nas.search.study import search
from nas.space import Architecture, SearchSpace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """Spaces of which every architecture has been evaluated.

    Args:
        spaces: one or several.
        values: of each network, by `Graph.digest`: the objectives in their order, all minimised.
        names: of the objectives.
        cheap: names of those that samplers may ask of any architecture.

    Raises RequestError where an objective is the same for all.
    """

    spaces: Sequence[SearchSpace]
    values: Mapping[str, Sequence[float]]
    names: Sequence[str] = ("validation_error", "predicted_us")
    cheap: Sequence[str] = ()

    def __post_init__(self) -> None:
        if (self.best == self.reference).any():
            raise RequestError("An objective has one value for all architectures.")

    @cached_property
    def points(self) -> Array:
        """Of all networks, `n x m`."""
        return np.array(list(self.values.values()), dtype=float)

    @cached_property
    def best(self) -> Array:
        """The smallest value of each objective: 0 in normalised terms."""
        return self.points.min(axis=0)

    @cached_property
    def reference(self) -> Array:
        """The largest value of each objective: 1 in normalised terms, where volume ends."""
        return self.points.max(axis=0)

    @cached_property
    def front(self) -> Array:
        """The true front, `f x m`."""
        return self.points[non_dominated(self.points)]

    def hypervolume(self, points: Array) -> float:
        """Normalised, of some networks' values."""
        kept = points[non_dominated(points)]
        scaled = (kept - self.best) / (self.reference - self.best)
        return hypervolume(scaled, [1.0] * len(self.names))

    def regret(self, points: Array) -> float:
        """The share of the true front's hypervolume that some networks miss."""
        return 1.0 - self.hypervolume(points) / self._all

    @cached_property
    def _all(self) -> float:
        return self.hypervolume(self.points)

    def objectives(self) -> list[Objective]:
        """The values as a search asks for them; an unknown network is infeasible."""

        def of(column: int, architecture: Architecture) -> Score:
            digest = architecture.digest
            found = self.values.get(digest)
            return Infeasible("not in the table") if found is None else float(found[column])

        return [
            Objective(
                name,
                lambda batch, column=column: [of(column, each) for each in batch],  # type: ignore[misc]
                cheap=name in self.cheap,
            )
            for column, name in enumerate(self.names)
        ]


def hypervolume_regret(
    known: Known, sampler: str, *, evaluations: Sequence[int] = (50, 100, 200, 500), seed: int = 0
) -> list[float]:
    """The regret of one search after so many distinct architectures, as fractions.

    Args:
        known: what is searched; published tables of results will do, with a space that says what
            the choices are.
        sampler: one of `nas.search.SAMPLERS`.
        evaluations: ascending.
        seed: of the search.
    """
    found = search(
        known.spaces, known.objectives(), trials=max(evaluations), seed=seed, sampler=sampler
    )
    done = [trial for trial in found.trials if trial.state == "complete"]
    points = np.array([[trial.values[name] for name in known.names] for trial in done])
    return [known.regret(points[:count]) for count in evaluations]
