"""What a search minimises: named functions of architectures, cheap ones asked first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nas.errors import RequestError
from nas.space import Architecture


@dataclass(frozen=True)
class Infeasible:
    """An architecture has no value: why, in words that stand in the trial's row."""

    reason: str


Score = float | Infeasible


@dataclass(frozen=True)
class Objective:
    """A named number for each architecture.

    Args:
        name: carries its unit (`predicted_us`).
        score: a batch of architectures to values in the same order, or `Infeasible`.
        direction: what is better.
        cheap: asked before the expensive ones, which are never spent on an architecture that a
            cheap one or a limit has ruled out.
        limit: values beyond it (above, or below if maximised) are infeasible.
    """

    name: str
    score: Callable[[Sequence[Architecture]], Sequence[Score]]
    direction: Literal["minimize", "maximize"] = "minimize"
    cheap: bool = False
    limit: float | None = None

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
            return Infeasible(f"{self.name} {score:.6g} is beyond the limit {self.limit:.6g}")
        return float(score)


Objectives = Mapping[str, Callable[[Architecture], float]] | Sequence[Objective]


def ready(objectives: Objectives) -> list[Objective]:
    """Objectives as such; plain callables `Architecture -> float` are wrapped and minimised.

    Raises RequestError if there are none or two have one name.
    """
    if isinstance(objectives, Mapping):
        objectives = [
            Objective(name, lambda batch, score=score: [score(a) for a in batch])  # type: ignore[misc]
            for name, score in objectives.items()
        ]
    names = [objective.name for objective in objectives]
    if not names or len(set(names)) != len(names):
        raise RequestError(f"A search needs objectives with different names, not {names}.")
    return list(objectives)
