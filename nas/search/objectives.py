"""What a search minimises, and what it must not exceed: named functions of architectures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nas.errors import RequestError
from nas.space import Architecture


@dataclass(frozen=True)
class Infeasible:
    """An architecture is ruled out: why, in words that stand in the trial's row.

    `value` is what was found, where a limit rules it out.
    """

    reason: str
    value: float | None = None


Score = float | Infeasible


@dataclass(frozen=True)
class Objective:
    """A named number for each architecture.

    Args:
        name: carries its unit (`predicted_us`).
        score: a batch of architectures to values in the same order, or `Infeasible`.
        direction: what is better.
        cheap: asked before the expensive ones, which are never spent on an architecture that a
            cheap one or a limit has ruled out. Samplers may ask it of any number of architectures
            to find one that is worth a trial.
        limit: values beyond it (above, or below if maximised) are infeasible.
        limit_only: the value is kept and its limit honoured, and no front is made of it.
    """

    name: str
    score: Callable[[Sequence[Architecture]], Sequence[Score]]
    direction: Literal["minimize", "maximize"] = "minimize"
    cheap: bool = False
    limit: float | None = None
    limit_only: bool = False

    @property
    def sign(self) -> float:
        """What a value is multiplied with so that smaller is better."""
        return 1.0 if self.direction == "minimize" else -1.0

    def ask(self, architectures: Sequence[Architecture]) -> list[Score]:
        """Values within the limit, or `Infeasible`; a value that is no number is infeasible."""
        return [self._judged(score) for score in self.score(architectures)]

    def _judged(self, score: Score) -> Score:
        if isinstance(score, Infeasible):
            return score
        if not math.isfinite(score):
            return Infeasible(f"{self.name} is {score}")
        if self.limit is not None and self.sign * score > self.sign * self.limit:
            reason = f"{self.name} {score:.6g} is beyond the limit {self.limit:.6g}"
            return Infeasible(reason, float(score))
        return float(score)


Objectives = Mapping[str, Callable[[Architecture], float]] | Sequence[Objective]


def ready(objectives: Objectives) -> list[Objective]:
    """Objectives as such, cheap ones first; plain callables `Architecture -> float` are minimised.

    Raises RequestError if there are none, two have one name, or all are limits only.
    """
    if isinstance(objectives, Mapping):
        objectives = [
            Objective(name, lambda batch, score=score: [score(a) for a in batch])  # type: ignore[misc]
            for name, score in objectives.items()
        ]
    names = [objective.name for objective in objectives]
    if not names or len(set(names)) != len(names):
        raise RequestError(f"A search needs objectives with different names, not {names}.")
    if all(objective.limit_only for objective in objectives):
        raise RequestError(
            f"Of {', '.join(names)} there are only limits.",
            remedy="Give something to minimise or maximise within them.",
        )
    for objective in objectives:
        if objective.limit_only and objective.limit is None:
            raise RequestError(f"{objective.name} is only a limit, and has none.")
    return sorted(objectives, key=lambda objective: not objective.cheap)
