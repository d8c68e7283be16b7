"""Choosing one member of a run's front under limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nas.errors import InfeasibleError, RequestError, RunFolderError
from nas.records import FRONT, Member


@dataclass(frozen=True)
class Limits:
    """What a member must meet; None is no limit. Latency in milliseconds, accuracy in [0, 1].

    Raises RequestError for a limit that is not a finite number above zero, or an accuracy above 1.
    """

    max_latency_ms: float | None = None
    max_params: int | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise RequestError(f"{name} is {value}.", remedy="Give a finite number above zero.")
        if self.min_accuracy is not None and self.min_accuracy > 1:
            raise RequestError(
                f"min_accuracy is {self.min_accuracy}.", remedy="Give a fraction, such as 0.95."
            )

    def excess(self, member: Member) -> dict[str, float]:
        """Return by how much of the limit a member misses each limit that it misses."""
        excess = {}
        if self.max_latency_ms is not None:
            excess["latency"] = member.latency_us / (1000 * self.max_latency_ms) - 1
        if self.max_params is not None:
            excess["params"] = member.params / self.max_params - 1
        if self.min_accuracy is not None:
            excess["accuracy"] = 1 - member.validation_accuracy / self.min_accuracy
        return {name: over for name, over in excess.items() if over > 0}


def front_of(folder: Path) -> tuple[Member, ...]:
    """Return the members in a run's `front.json`. Raises RunFolderError if there are none."""
    path = folder / "front.json"
    if not path.exists():
        raise RunFolderError(
            f"{folder} has no front: there is no {path.name} in it.",
            remedy="Run the job to its end first, or `nas report` to write it again.",
        )
    members = FRONT.read(path).front
    if not members:
        raise RunFolderError(f"The front of {folder} is empty.", remedy="Raise its limits.")
    return members


def select(folder: Path, limits: Limits) -> Member:
    """Return the most accurate front member that meets the limits; among equals, the fastest.

    Raises:
        InfeasibleError: none does; the message names the nearest and what it misses.
        RunFolderError: the folder has no front, or a damaged one.
    """
    members = front_of(folder)
    fitting = [member for member in members if not limits.excess(member)]
    if not fitting:
        nearest = min(members, key=lambda m: (sum(limits.excess(m).values()), m.latency_us))
        misses = ", ".join(f"{k} by {100 * v:.1f}%" for k, v in limits.excess(nearest).items())
        raise InfeasibleError(
            f"No front member meets the limits. The nearest is {nearest.id} ({nearest.space}): "
            f"{nearest.latency_us / 1000:.4g} ms {nearest.latency_basis}, {nearest.params} "
            f"parameters, accuracy {nearest.validation_accuracy:.4f}; it misses {misses}.",
            remedy="Relax the limits, or search smaller networks.",
        )
    return max(fitting, key=lambda m: (m.validation_accuracy, -m.latency_us))
