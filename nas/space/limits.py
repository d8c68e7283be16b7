"""Drawing architectures under limits: on MACs, parameters, predicted latency, or anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np

from nas.documents import shortened
from nas.errors import InfeasibleError, NasError, RequestError
from nas.graph import Graph
from nas.space.architecture import Architecture, is_number
from nas.space.space import Measure, SearchSpace
from nas.space.variation import mutate


@dataclass(frozen=True)
class Limit:
    """A number of a graph that is to lie between `smallest` and `largest`.

    Args:
        name: with its unit; `macs`, `params` and `peak_memory_bytes` need no `value`.
        smallest, largest: inclusive; None for no bound.
        value: works the number out. Where it raises a `NasError`, such as a kernel that the latency
            table lacks, the limit is not met.

    Raises RequestError for a limit without bounds, or with bounds that exclude each other or are no
    finite numbers, and for a negative bound of a count.
    """

    name: str
    smallest: float | None = None
    largest: float | None = None
    value: Callable[[Graph], float] | None = None

    def __post_init__(self) -> None:
        for word, bound in (("at least", self.smallest), ("at most", self.largest)):
            if bound is None:
                continue
            if not is_number(bound) or (self.is_count and bound < 0):
                raise RequestError(
                    f"The limit on {self.name} is {word} {shortened(bound)}.",
                    remedy="Give a finite number"
                    + (" of 0 or more." if self.is_count else ", or None for no bound."),
                )
        low, high = self._bounds
        if (low, high) == (-math.inf, math.inf) or low > high:
            raise RequestError(
                f"The limit on {self.name} is {self.smallest} to {self.largest}.",
                remedy="Give a smallest value, a largest one that is not smaller, or both.",
            )
        if self.value is None and not self.is_count:
            raise RequestError(
                f"A limit on {self.name} needs to know how it is worked out.",
                remedy=f"Give `value`, or limit one of {', '.join(get_args(Measure))}.",
            )

    @property
    def is_count(self) -> bool:
        """Whether the number is a count of the graph, whose range over a space is known exactly."""
        return self.value is None and self.name in get_args(Measure)

    @property
    def _bounds(self) -> tuple[float, float]:
        low = -math.inf if self.smallest is None else self.smallest
        return low, math.inf if self.largest is None else self.largest

    def of(self, graph: Graph) -> float:
        """The number; infinite where it cannot be worked out."""
        if self.value is None:
            return float(getattr(graph, self.name))
        try:
            number = self.value(graph)
        except NasError:
            return math.inf
        return math.inf if math.isnan(number) else number

    def excess(self, number: float) -> float:
        """How far outside a number lies, as a share of the bound; 0 inside."""
        low, high = self._bounds
        outside = low - number if number < low else max(0.0, number - high)
        bound = low if number < low else high
        return outside if outside in (0, math.inf) else outside / (abs(bound) or 1)

    def text(self) -> str:
        """The limit in words."""
        words = [
            f"{word} {bound:.6g}"
            for word, bound in (("at least", self.smallest), ("at most", self.largest))
            if bound is not None
        ]
        return f"{self.name} of {' and '.join(words)}"


def sample_within(
    space: SearchSpace,
    rng: np.random.Generator,
    limits: Sequence[Limit],
    *,
    attempts: int = 2000,
) -> Architecture:
    """An architecture that meets all limits.

    Half of the attempts draw uniformly, so where limits are met now and then, all architectures
    that meet them are equally likely. After that the nearest one drawn is changed step by step
    while it comes no further away, which finds rare ones, not equally likely any more.

    Raises:
        InfeasibleError: a count of the space never meets its limit, or no attempt met them all; the
            message says which, and names the nearest architecture.
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
        excess = _excess(candidate, limits)
        if excess == 0:
            return candidate
        if excess <= least:
            nearest, least = candidate, excess
        if space.size == 1:
            break
    raise InfeasibleError(
        f"No architecture of space {space.name} was found with "
        f"{' and '.join(limit.text() for limit in limits)} in {attempts} attempts. "
        + _described(nearest, limits),
        remedy="Loosen the limits, or give more attempts.",
    )


def _check_range(space: SearchSpace, limit: Limit) -> None:
    if not limit.is_count:
        return
    measure = cast(Measure, limit.name)
    for end, missed in (("smallest", limit.largest), ("largest", limit.smallest)):
        nearest = space.extreme(measure, end)  # type: ignore[arg-type]
        number = limit.of(nearest.graph)
        beyond = missed is not None and (number > missed if end == "smallest" else number < missed)
        if beyond:
            raise InfeasibleError(
                f"No architecture of space {space.name} has {limit.text()}. "
                + _described(nearest, [limit]),
                remedy="Loosen the limit, or use another space.",
            )


def _nearest_extreme(space: SearchSpace, limits: Sequence[Limit]) -> Architecture:
    ends = [space.extreme(m, end) for m in get_args(Measure) for end in ("smallest", "largest")]
    return min(ends, key=lambda each: _excess(each, limits))


def _excess(architecture: Architecture, limits: Sequence[Limit]) -> float:
    graph = architecture.graph
    return sum(limit.excess(limit.of(graph)) for limit in limits)


def _described(nearest: Architecture, limits: Sequence[Limit]) -> str:
    graph = nearest.graph
    numbers = ", ".join(f"{limit.name} {limit.of(graph):.6g}" for limit in limits)
    return f"The nearest has {numbers}: {dict(nearest.choices)}."
