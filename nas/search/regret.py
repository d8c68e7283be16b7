"""Hypervolume regret: the quality of a sampler on spaces whose true Pareto front is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nas.errors import RequestError
from nas.search.objectives import Infeasible, Objective, Score
from nas.search.pareto import Array, hypervolume, non_dominated
from nas.search.study import run_search
from nas.space import Architecture, SearchSpace


@dataclass(frozen=True)
class TabularBenchmark:
    """Search spaces with a table of the objectives of every architecture (as in NAS-Bench-101).

    Args:
        spaces: one or several.
        values: the `m` objectives of each of the `n` networks, by `Graph.digest`; all are
            minimised.
        names: of the objectives.
        cheap: names of the objectives that samplers may evaluate for any architecture.

    Raises:
        RequestError: an objective has the same value for all architectures.
    """

    spaces: Sequence[SearchSpace]
    values: Mapping[str, Sequence[float]]
    names: Sequence[str] = ("validation_error", "predicted_us")
    cheap: Sequence[str] = ()

    def __post_init__(self) -> None:
        if (self.best == self.reference).any():
            raise RequestError("An objective has the same value for all architectures.")

    @cached_property
    def points(self) -> Array:
        """The values of all networks, `n x m`."""
        return np.array(list(self.values.values()), dtype=float)

    @cached_property
    def best(self) -> Array:
        """The smallest value of each objective, `m`; it is normalised to 0."""
        return self.points.min(axis=0)

    @cached_property
    def reference(self) -> Array:
        """The largest value of each objective, `m`: the reference point, normalised to 1."""
        return self.points.max(axis=0)

    @cached_property
    def front(self) -> Array:
        """The true Pareto front, `f x m`."""
        return self.points[non_dominated(self.points)]

    def hypervolume(self, points: Array) -> float:
        """Return the normalised hypervolume of some networks' values, `k x m`."""
        front = points[non_dominated(points)]
        normalised = (front - self.best) / (self.reference - self.best)
        return hypervolume(normalised, [1.0] * len(self.names))

    def regret(self, points: Array) -> float:
        """Return the share of the true front's hypervolume that some networks' values miss."""
        return 1.0 - self.hypervolume(points) / self._true_hypervolume

    @cached_property
    def _true_hypervolume(self) -> float:
        return self.hypervolume(self.points)

    def objectives(self) -> list[Objective]:
        """Return objectives that look values up; a network without a row is infeasible."""

        def look_up(column: int, architecture: Architecture) -> Score:
            row = self.values.get(architecture.digest)
            return Infeasible("not in the table") if row is None else float(row[column])

        return [
            Objective(
                name,
                lambda batch, column=column: [look_up(column, each) for each in batch],  # type: ignore[misc]
                cheap=name in self.cheap,
            )
            for column, name in enumerate(self.names)
        ]


def hypervolume_regret(
    benchmark: TabularBenchmark,
    sampler: str,
    *,
    evaluations: Sequence[int] = (50, 100, 200, 500),
    seed: int = 0,
) -> list[float]:
    """Run one search and return its regret after given numbers of distinct architectures.

    Args:
        benchmark: what is searched. A published table of results can be one, with a space that
            describes its choices.
        sampler: one of `nas.search.SAMPLERS`.
        evaluations: ascending numbers of completed trials.
        seed: of the search.

    Returns:
        A fraction of the true front's hypervolume for each number of evaluations.
    """
    result = run_search(
        benchmark.spaces,
        benchmark.objectives(),
        trials=max(evaluations),
        seed=seed,
        sampler=sampler,
    )
    completed = [trial for trial in result.trials if trial.state == "complete"]
    points = np.array([[trial.values[name] for name in benchmark.names] for trial in completed])
    return [benchmark.regret(points[:count]) for count in evaluations]
