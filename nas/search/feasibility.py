"""Constraints of a search: whether an architecture meets them all, and whether they exclude any."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nas.errors import InfeasibleError
from nas.search.evolution import MAX_REPAIR_GENERATIONS, repair
from nas.search.objectives import Infeasible, Objective, Score
from nas.space import Architecture, SearchSpace

SAMPLES_PER_SPACE = 400
"""Random architectures of each space that are checked before the evolution towards the limits."""

IDLE_SAMPLES_PER_SPACE = 50
"""Random architectures of each space that a limit must exclude none of to be called idle."""


class Constraints:
    """The limits of the cheap objectives, which can be checked for any architecture.

    Args:
        objectives: the objectives of the search; all but the cheap ones with a limit are ignored.

    Attributes:
        objectives: the cheap objectives with a limit.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = [o for o in objectives if o.cheap and o.limit is not None]

    def violations(self, architectures: Sequence[Architecture]) -> list[float]:
        """Return the constraint violation of each architecture.

        It is the sum over the limits of how far the value is beyond the limit, as a fraction of
        the limit: zero for an architecture that meets all limits, infinite for one without a value.
        """
        total = np.zeros(len(architectures))
        for objective in self.objectives:
            scores = objective.score(architectures)
            total += [_violation(objective, score) for score in scores]
        return [float(each) for each in total]


def _violation(objective: Objective, score: Score) -> float:
    if isinstance(score, Infeasible) or not math.isfinite(score):
        return math.inf
    assert objective.limit is not None
    excess = objective.sign * (score - objective.limit)
    return max(0.0, excess) / (abs(objective.limit) or 1.0)


def require_feasible(
    spaces: Sequence[SearchSpace],
    objectives: Sequence[Objective],
    seed: int,
    *,
    samples_per_space: int = SAMPLES_PER_SPACE,
    max_generations: int = MAX_REPAIR_GENERATIONS,
) -> None:
    """Check that an architecture meets the limits of all cheap objectives.

    A search within limits that nothing meets would reject every proposal; this check reports them
    at once. It looks at random architectures and at an evolution from them towards the limits, so
    it can be mistaken about limits that are met by almost nothing.

    Args:
        spaces: the spaces of the search.
        objectives: the objectives of the search.
        seed: of the random architectures.
        samples_per_space: number of random architectures of each space.
        max_generations: see `nas.search.evolution.repair`.

    Raises:
        InfeasibleError: no architecture meets a limit, or all limits together. The message names
            the architecture that comes nearest.
    """
    constraints = Constraints(objectives)
    extremes = [each for space in spaces for each in (space.smallest, space.largest)]
    if not constraints.objectives or not all(constraints.violations(extremes)):
        return
    rng = np.random.default_rng(seed)
    drawn = [
        space.sample(rng, uniform_over="choices")
        for space in spaces
        for _ in range(samples_per_space)
    ]
    ranked = repair(
        [*extremes, *drawn], constraints.violations, rng, max_generations=max_generations
    )
    if not constraints.violations(ranked[:1])[0]:
        return
    for objective in constraints.objectives:
        _require_limit_met(objective, ranked)
    raise InfeasibleError(
        f"Nothing meets all limits together: the nearest of {len(ranked)} architectures has "
        f"{_values_and_limits(constraints.objectives, ranked[0])} ({ranked[0].space.name}).",
        remedy="Raise a limit, or give a space with smaller networks.",
    )


def idle_limits(
    spaces: Sequence[SearchSpace], objectives: Sequence[Objective], seed: int
) -> list[str]:
    """Return a sentence without a full stop for each limit that excludes no architecture.

    The largest and the smallest architectures and random ones are looked at.

    Args:
        spaces: the spaces of the search.
        objectives: the objectives of the search; all but the cheap ones with a limit are ignored.
        seed: of the random architectures.
    """
    rng = np.random.default_rng(seed)
    architectures = [each for space in spaces for each in (space.smallest, space.largest)]
    architectures += [space.sample(rng) for space in spaces for _ in range(IDLE_SAMPLES_PER_SPACE)]
    sentences = []
    for objective in Constraints(objectives).objectives:
        scores = objective.score(architectures)
        if not any(_violation(objective, score) for score in scores):
            values = [score for score in scores if not isinstance(score, Infeasible)]
            is_maximised = objective.direction == "maximize"
            word, extreme = ("least", min(values)) if is_maximised else ("most", max(values))
            sentences.append(
                f"the limit {objective.limit_text} excludes nothing: the {word} that one of "
                f"{len(architectures)} architectures has is {objective.text(extreme)}"
            )
    return sentences


def _require_limit_met(objective: Objective, architectures: Sequence[Architecture]) -> None:
    """Raise InfeasibleError if no architecture meets the limit of one objective."""
    scores = list(zip(objective.score(architectures), architectures, strict=True))
    values = [(objective.sign * s, a) for s, a in scores if not isinstance(s, Infeasible)]
    if not values:
        reason = next(s.reason for s, _ in scores if isinstance(s, Infeasible))
        raise InfeasibleError(f"No architecture has a {objective.words}: {reason}.")
    best, nearest = min(values, key=lambda pair: pair[0])
    assert objective.limit is not None
    if best > objective.sign * objective.limit:
        raise InfeasibleError(
            f"Nothing meets the limit {objective.limit_text}: the nearest of {len(values)} "
            f"architectures has {objective.text(objective.sign * best)} ({nearest.space.name}).",
            remedy="Raise the limit, or give a space with smaller networks.",
        )


def _values_and_limits(objectives: Sequence[Objective], architecture: Architecture) -> str:
    texts = []
    for objective in objectives:
        (score,) = objective.score([architecture])
        value = "none" if isinstance(score, Infeasible) else objective.text(score)
        limit = objective.limit or 0.0
        texts.append(f"{objective.words} {value} (limit {objective.text(limit)})")
    return ", ".join(texts)
