"""Whether anything meets the limits, found out before anything is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nas.errors import InfeasibleError
from nas.search.evolution import children
from nas.search.objectives import Infeasible, Objective
from nas.space import Architecture, SearchSpace

PROBES = 400
"""Architectures of a space that are drawn before a limit is called impossible to meet."""

ROUNDS = 100
"""Times that the nearest ones are varied after that."""

NEAREST = 10
"""Architectures that a round varies at least."""

VARIED = 40
"""Architectures that a round adds."""


class Limits:
    """The limits that can be asked of any architecture, and how far one is beyond them.

    Args:
        objectives: of the search; only cheap objectives with a limit are asked.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.asked = [o for o in objectives if o.cheap and o.limit is not None]

    def beyond(self, architectures: Sequence[Architecture]) -> list[float]:
        """Of each the shares of the limits that it is beyond them, added up.

        Zero for one that meets them all, infinite for one that has no value.
        """
        found = np.zeros(len(architectures))
        for objective in self.asked:
            scores = objective.score(architectures)
            found += [_excess(objective, score) for score in scores]
        return [float(each) for each in found]

    def approached(
        self, start: Sequence[Architecture], rng: np.random.Generator, rounds: int
    ) -> list[Architecture]:
        """What an evolution from `start` towards the limits looks at, the nearest first.

        It ends with the first generation in which one meets them all.
        """
        found = dict(zip(start, self.beyond(start), strict=True))
        parents = NEAREST
        for _ in range(rounds):
            nearest = sorted(found, key=lambda each: found[each])
            if not found[nearest[0]]:
                break
            varied = dict.fromkeys(children(nearest[:parents], VARIED, rng))
            new = [each for each in varied if each not in found]
            found.update(zip(new, self.beyond(new), strict=True))
            # Where all around the nearest ones is known, their circle must be wider.
            parents = NEAREST if len(new) > VARIED // 2 else 2 * parents
        return sorted(found, key=lambda each: found[each])


def _excess(objective: Objective, score: float | Infeasible) -> float:
    if isinstance(score, Infeasible) or not math.isfinite(score):
        return math.inf
    assert objective.limit is not None
    beyond = objective.sign * (score - objective.limit)
    return max(0.0, beyond) / (abs(objective.limit) or 1.0)


def require_feasible(
    spaces: Sequence[SearchSpace], objectives: Sequence[Objective], seed: int
) -> None:
    """Says at once that limits cannot be met, instead of failing at them all night.

    Raises InfeasibleError where no architecture meets the limits of the cheap objectives, each by
    itself or all together, naming the nearest: none of some hundred drawn ones, and none that an
    evolution from these finds.
    """
    limits = Limits(objectives)
    ends = [end for space in spaces for end in (space.smallest, space.largest)]
    if not limits.asked or not all(limits.beyond(ends)):
        return
    rng = np.random.default_rng(seed)
    drawn = [space.sample(rng, uniform_over="choices") for space in spaces for _ in range(PROBES)]
    tried = limits.approached([*ends, *drawn], rng, ROUNDS)
    if not limits.beyond(tried[:1])[0]:
        return
    for objective in limits.asked:
        _require_one(objective, tried)
    raise InfeasibleError(
        f"Nothing meets all limits together: the nearest of {len(tried)} architectures has "
        f"{_values(limits.asked, tried[0])} ({tried[0].space.name}).",
        remedy="Raise a limit, or give a space with smaller networks.",
    )


def _require_one(objective: Objective, tried: Sequence[Architecture]) -> None:
    """Raises InfeasibleError if none has a value of an objective that meets its limit."""
    scores = list(zip(objective.score(tried), tried, strict=True))
    known = [(objective.sign * s, a) for s, a in scores if not isinstance(s, Infeasible)]
    if not known:
        reason = next(s.reason for s, _ in scores if isinstance(s, Infeasible))
        raise InfeasibleError(f"No architecture has a {objective.name}: {reason}.")
    best, nearest = min(known, key=lambda pair: pair[0])
    assert objective.limit is not None
    if best > objective.sign * objective.limit:
        raise InfeasibleError(
            f"Nothing meets the limit {objective.name} {objective.limit:.6g}: the nearest of "
            f"{len(known)} architectures has {objective.sign * best:.6g} ({nearest.space.name}).",
            remedy="Raise the limit, or give a space with smaller networks.",
        )


def _values(asked: Sequence[Objective], architecture: Architecture) -> str:
    found = []
    for objective in asked:
        (score,) = objective.score([architecture])
        value = "none" if isinstance(score, Infeasible) else f"{score:.6g}"
        found.append(f"{objective.name} {value} (limit {objective.limit:.6g})")
    return ", ".join(found)
