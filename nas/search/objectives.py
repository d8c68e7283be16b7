"""The objectives of a search: named functions of architectures, with a direction and a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nas.errors import RequestError
from nas.figures import Figure
from nas.files.names import require_choice
from nas.space import Architecture


@dataclass(frozen=True)
class Infeasible:
    """The score of an architecture that has no value, or whose value is beyond a limit.

    Attributes:
        reason: why, as a text for the trial's record.
        value: the value that is beyond the limit; None if there is no value.
    """

    reason: str
    value: float | None = None


class Estimate(float):
    """A value with what is known about it beside the number.

    Attributes:
        variance: variance of the deviation of the value from the one that the search would like to
            know, such as that of a score on a part of the images from the score on all of them; 0
            for a value that is as precise as the values of an objective can be.
        recorded: further values by name, which a search stores with the trial. Nothing in the
            search reads them.
    """

    variance: float
    recorded: Mapping[str, float]

    def __new__(
        cls, value: float, *, variance: float = 0.0, recorded: Mapping[str, float] | None = None
    ) -> Estimate:
        """Return the value as a float that has these attributes."""
        self = super().__new__(cls, value)
        self.variance, self.recorded = variance, recorded or {}
        return self


Score = float | Infeasible

Direction = Literal["minimize", "maximize"]

IsHopeless = Callable[[float], bool]
"""Returns whether an architecture is dominated even if its objective has the given value."""


@dataclass(frozen=True)
class Objective:
    """A named value of every architecture, to minimise, to maximise or to limit.

    Attributes:
        name: the name, with the unit (`predicted_us`).
        score: a function from a batch of architectures to their values, or `Infeasible`, in the
            same order.
        direction: "minimize" or "maximize".
        cheap: whether the objective may be evaluated for any number of architectures. Cheap
            objectives are evaluated before the expensive ones, and no expensive one is evaluated
            for an architecture that a cheap one or a limit has ruled out.
        limit: architectures with a value beyond it (above; below if the objective is maximised)
            are infeasible.
        limit_only: whether the objective only limits the search. Its values are recorded, but are
            no dimension of the Pareto front.
        score_in_rounds: a function that a search calls with one architecture in place of `score`.
            It estimates the value in several rounds, ever more precisely. After each round it may
            give the best value that is still plausible to its second argument; if that returns
            true, the estimate so far is good enough, and its variance says how precise it is.
        figure: how messages name the objective and its values; None for its name and plain numbers.

    Raises RequestError for a direction that is spelt otherwise, and a limit that is not finite.
    """

    name: str
    score: Callable[[Sequence[Architecture]], Sequence[Score]]
    direction: Direction = "minimize"
    cheap: bool = False
    limit: float | None = None
    limit_only: bool = False
    score_in_rounds: Callable[[Architecture, IsHopeless], Score] | None = None
    figure: Figure | None = None

    def __post_init__(self) -> None:
        require_choice(self.direction, get_args(Direction), f"The direction of {self.name}")
        if self.limit is not None and not math.isfinite(self.limit):
            raise RequestError(
                f"The limit of {self.name} is {self.limit}.", remedy="Give a finite number."
            )

    @classmethod
    def of_each(
        cls, name: str, score: Callable[[Architecture], Score], **options: Any
    ) -> Objective:
        """Return an objective of a function of one architecture.

        Args:
            name, options: see `Objective`.
            score: the function.
        """
        return cls(name, lambda batch: [score(each) for each in batch], **options)

    @property
    def sign(self) -> float:
        """The factor that turns values into ones that are minimised: 1 or -1."""
        return 1.0 if self.direction == "minimize" else -1.0

    @property
    def words(self) -> str:
        """What messages call it."""
        return self.figure.words if self.figure else self.name

    @property
    def limit_text(self) -> str:
        """Its name and its limit for a message."""
        return f"{self.words} {self.text(self.limit or 0.0)}"

    def text(self, value: float) -> str:
        """Return a value for a message, with a unit if its figure has one."""
        if self.figure is None:
            return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.6g}"
        return f"{self.figure.scale * value:,.6g} {self.figure.unit}".rstrip()

    def evaluate(self, architectures: Sequence[Architecture]) -> list[Score]:
        """Return the value of each architecture, or `Infeasible`.

        A value beyond the limit, and one that is infinite or not a number, is infeasible.
        """
        return [self.check(score) for score in self.score(architectures)]

    def evaluate_in_rounds(self, architecture: Architecture, is_hopeless: IsHopeless) -> Score:
        """Return the value of an architecture as `evaluate` does, less precise if it is hopeless.

        Args:
            architecture: the architecture.
            is_hopeless: returns whether the architecture is dominated even with the given value.
        """
        if self.score_in_rounds is None:
            (score,) = self.evaluate([architecture])
            return score
        return self.check(self.score_in_rounds(architecture, is_hopeless))

    def check(self, score: Score) -> Score:
        """Return a score, or `Infeasible` if it is beyond the limit or no finite number."""
        if isinstance(score, Infeasible):
            return score
        if not isinstance(score, Estimate):
            score = float(score)
        if not math.isfinite(score):
            return Infeasible(f"{self.words} is {score}")
        if self.limit is not None and self.sign * score > self.sign * self.limit:
            reason = f"{self.words} {self.text(score)} is beyond the limit {self.text(self.limit)}"
            return Infeasible(reason, score)
        return score


def refuse_to_score(architectures: Sequence[Architecture]) -> Sequence[Score]:
    """Raise NotImplementedError: the `score` of an objective that only describes known values."""
    raise NotImplementedError("only the values of trials that have ended are known")


ObjectivesLike = Mapping[str, Callable[[Architecture], float]] | Sequence[Objective]
"""Objectives, or functions from an architecture to a value that is minimised, by name."""


def prepare_objectives(objectives: ObjectivesLike) -> list[Objective]:
    """Check objectives and return them, the cheap ones first.

    Args:
        objectives: `Objective`s, or a mapping of names to functions `Architecture -> float`, which
            become expensive objectives that are minimised.

    Raises:
        RequestError: there are no objectives, two have the same name, all are limits only, or one
            that is a limit only has no limit.
    """
    if isinstance(objectives, Mapping):
        objectives = [Objective.of_each(name, score) for name, score in objectives.items()]
    names = [objective.name for objective in objectives]
    if not names or len(set(names)) != len(names):
        raise RequestError(f"A search needs objectives with different names, not {names}.")
    if all(objective.limit_only for objective in objectives):
        raise RequestError(
            f"All objectives ({', '.join(names)}) are limits only.",
            remedy="Add an objective to minimise or maximise within them.",
        )
    for objective in objectives:
        if objective.limit_only and objective.limit is None:
            raise RequestError(f"The objective {objective.name} is a limit only and has no limit.")
    return sorted(objectives, key=lambda objective: not objective.cheap)
