"""Selects one member of a run's front under limits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.errors import InfeasibleError, RequestError
from nas.records import FrontMember, read_front


@dataclass(frozen=True)
class Limits:
    """What a front member must meet; None is no limit.

    Args:
        max_latency_ms: highest latency in milliseconds.
        max_macs: highest number of multiply-accumulates.
        max_params: highest number of parameters.
        max_peak_memory_bytes: highest number of bytes of activations alive at once.
        min_accuracy: lowest accuracy, in (0, 1]; see `expected_accuracies`.

    Raises RequestError for a limit that is not a finite number above zero, or an accuracy above 1.
    """

    max_latency_ms: float | None = None
    max_macs: int | None = None
    max_params: int | None = None
    max_peak_memory_bytes: int | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise RequestError(f"{name} is {value}.", remedy="Give a finite number above zero.")
        if self.min_accuracy is not None and self.min_accuracy > 1:
            raise RequestError(
                f"min_accuracy is {self.min_accuracy}.", remedy="Give a fraction, such as 0.95."
            )

    def violations(self, member: FrontMember, accuracy: float) -> dict[str, float]:
        """Return by which share of the limit a member violates each limit that it violates.

        Args:
            member: a member of a front.
            accuracy: the accuracy that is expected of it.
        """
        values = {
            "latency": (member.latency_us / 1000, self.max_latency_ms),
            "macs": (member.macs, self.max_macs),
            "params": (member.params, self.max_params),
            "peak memory": (member.peak_memory_bytes, self.max_peak_memory_bytes),
        }
        excess = {
            name: value / limit - 1 for name, (value, limit) in values.items() if limit is not None
        }
        if self.min_accuracy is not None:
            excess["accuracy"] = 1 - accuracy / self.min_accuracy
        return {name: share for name, share in excess.items() if share > 0}


def expected_accuracies(members: Sequence[FrontMember]) -> list[float]:
    """Return the accuracy that is expected of each member of a front once it is trained.

    It is the accuracy of the trained network, where there is one. Otherwise it is the score of the
    search plus the median of what training gained the members that were trained.
    """
    gains = [
        each.trained_accuracy - each.score for each in members if each.trained_accuracy is not None
    ]
    gain = statistics.median(gains) if gains else 0.0
    return [
        min(1.0, each.score + gain) if each.trained_accuracy is None else each.trained_accuracy
        for each in members
    ]


def select(folder: Path, limits: Limits) -> FrontMember:
    """Return the most accurate front member that meets the limits; of several, the fastest.

    Members are compared by their `expected_accuracies`.

    Raises:
        InfeasibleError: no member meets the limits; the message names the nearest one and the
            limits that it violates.
        RunFolderError: the folder has no front, or a damaged one.
    """
    members = read_front(folder)
    rated = list(zip(members, expected_accuracies(members), strict=True))
    feasible = [
        (member, accuracy) for member, accuracy in rated if not limits.violations(member, accuracy)
    ]
    if not feasible:
        nearest, accuracy = min(
            rated, key=lambda pair: (sum(limits.violations(*pair).values()), pair[0].latency_us)
        )
        violations = ", ".join(
            f"{name} by {100 * share:.1f}%"
            for name, share in limits.violations(nearest, accuracy).items()
        )
        raise InfeasibleError(
            f"No front member meets the limits. The nearest is {nearest.summary}; it misses "
            f"{violations}.",
            remedy="Relax the limits, or search smaller networks.",
        )
    return max(feasible, key=lambda pair: (pair[1], -pair[0].latency_us))[0]
