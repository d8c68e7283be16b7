"""`Limit` and `sample_within`: random architectures under limits on MACs, parameters or memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from nas.errors import InfeasibleError, RequestError
from nas.figures import COUNTS
from nas.files.documents import shortened
from nas.graph import Graph
from nas.space.architecture import Architecture, is_number
from nas.space.automaton import End
from nas.space.space import SearchSpace
from nas.space.variation import mutate


@dataclass(frozen=True)
class Limit:
    """Bounds on a count of a graph.

    Args:
        name: of the count, see `nas.figures.COUNTS`.
        smallest: lower bound, inclusive; None for none.
        largest: upper bound, inclusive; None for none.

    Raises RequestError for a limit without bounds, for bounds that exclude each other, and for
    bounds that are no finite numbers of 0 or more.

    Example:
        >>> limit = Limit("macs", largest=30e6)
        >>> limit.violation(45e6)
        0.5
    """

    name: str
    smallest: float | None = None
    largest: float | None = None

    def __post_init__(self) -> None:
        if self.name not in COUNTS:
            raise RequestError(
                f"There is no limit on {shortened(self.name)}.",
                remedy=f"Limit one of {', '.join(COUNTS)}.",
            )
        bounds = [each for each in (self.smallest, self.largest) if each is not None]
        are_valid = all(is_number(each) and each >= 0 for each in bounds)
        if not bounds or not are_valid or bounds[0] > bounds[-1]:
            raise RequestError(
                f"The limit on {self.name} is {shortened(self.smallest)} to "
                f"{shortened(self.largest)}.",
                remedy="Give a smallest value, a largest one that is not smaller, or both: finite "
                "numbers of 0 or more.",
            )

    @property
    def _bounds(self) -> tuple[float, float]:
        return self.smallest or 0, math.inf if self.largest is None else self.largest

    def value_of(self, graph: Graph) -> int:
        """Return the count of a graph."""
        count: int = getattr(graph, self.name)
        return count

    def violation(self, value: float) -> float:
        """Return how far outside the bounds a value is, relative to the bound; 0 inside."""
        low, high = self._bounds
        if value < low:
            return (low - value) / low
        return max(0.0, value - high) / (high or 1)

    def describe(self) -> str:
        """Return the limit in words."""
        bounds = [
            f"{word} {bound:.6g}"
            for word, bound in (("at least", self.smallest), ("at most", self.largest))
            if bound is not None
        ]
        return f"{self.name} of {' and '.join(bounds)}"


def sample_within(
    space: SearchSpace,
    rng: np.random.Generator,
    limits: Sequence[Limit],
    *,
    attempts: int = 2000,
) -> Architecture:
    """Draw a random architecture that meets all limits.

    Half of the attempts draw uniformly over the networks of the space. Where these meet the limits,
    all architectures that meet them are equally likely. The other attempts mutate the architecture
    that violates the limits least, which also finds rare architectures, but not equally likely.

    Args:
        space: to draw from.
        rng: source of randomness.
        limits: all are to be met.
        attempts: how many architectures are looked at.

    Raises:
        InfeasibleError: no architecture of the space meets one limit, or no attempt met all of
            them; the message says which, and describes the nearest architecture.

    Example:
        >>> from nas.space import load_space
        >>> space = load_space("mobilenet", image_size=32)
        >>> rng = np.random.default_rng(0)
        >>> sample_within(space, rng, [Limit("macs", largest=30e6)]).macs <= 30e6
        True
    """
    for limit in limits:
        _check_range(space, limit)
    nearest, least = space.smallest, math.inf
    for attempt in range(attempts):
        if attempt < attempts // 2:
            candidate = space.sample(rng)
        elif attempt == attempts // 2:
            candidate = _nearest_extreme(space, limits)
        else:
            candidate = mutate(nearest, rng, changes=1 + int(rng.integers(3)))
        violation = _total_violation(candidate, limits)
        if violation == 0:
            return candidate
        if violation <= least:
            nearest, least = candidate, violation
        if space.size == 1:
            break
    raise InfeasibleError(
        f"No architecture of space {space.name} was found with "
        f"{' and '.join(limit.describe() for limit in limits)} in {attempts} attempts. "
        + _describe_nearest(nearest, limits),
        remedy="Loosen the limits, or give more attempts.",
    )


def _check_range(space: SearchSpace, limit: Limit) -> None:
    """Raise InfeasibleError if no architecture of the space can meet a limit."""
    bounds: tuple[tuple[End, float | None], ...] = (
        ("smallest", limit.largest),
        ("largest", limit.smallest),
    )
    for end, bound in bounds:
        nearest = space.extreme(limit.name, end)
        value = limit.value_of(nearest.graph)
        if bound is not None and (value > bound if end == "smallest" else value < bound):
            raise InfeasibleError(
                f"No architecture of space {space.name} has {limit.describe()}. "
                + _describe_nearest(nearest, [limit]),
                remedy="Loosen the limit, or use another space.",
            )


def _nearest_extreme(space: SearchSpace, limits: Sequence[Limit]) -> Architecture:
    ends = [space.extreme(count, end) for count in COUNTS for end in get_args(End)]
    return min(ends, key=lambda each: _total_violation(each, limits))


def _total_violation(architecture: Architecture, limits: Sequence[Limit]) -> float:
    graph = architecture.graph
    return sum(limit.violation(limit.value_of(graph)) for limit in limits)


def _describe_nearest(nearest: Architecture, limits: Sequence[Limit]) -> str:
    graph = nearest.graph
    values = ", ".join(f"{limit.name} {limit.value_of(graph):.6g}" for limit in limits)
    return f"The nearest has {values}: {dict(nearest.choices)}."
