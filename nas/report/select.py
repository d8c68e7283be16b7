"""Choosing one member of a run's front under limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import InfeasibleError, RequestError, RunFolderError


@dataclass(frozen=True)
class Limits:
    """What a member must meet; None is no limit. Latency in milliseconds, accuracy in [0, 1]."""

    max_latency_ms: float | None = None
    max_params: int | None = None
    min_accuracy: float | None = None

    def excess(self, member: dict[str, Any]) -> dict[str, float]:
        """By how much of the limit a member misses each limit that it misses."""
        found = {}
        if self.max_latency_ms is not None:
            found["latency"] = latency_us(member) / (1000 * self.max_latency_ms) - 1
        if self.max_params is not None:
            found["params"] = member["params"] / self.max_params - 1
        if self.min_accuracy is not None:
            found["accuracy"] = 1 - member["validation_accuracy"] / self.min_accuracy
        return {name: over for name, over in found.items() if over > 0}


def latency_us(member: dict[str, Any]) -> float:
    """Measured where there is a measurement, else predicted."""
    measured = member["measured_us"]
    return float(member["predicted_us"] if measured is None else measured)


def front_of(folder: Path) -> list[dict[str, Any]]:
    """The members in a run's `front.json`. Raises RunFolderError if there are none."""
    path = folder / "front.json"
    try:
        members: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["front"]
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(
            f"{folder} has no front: {path.name} cannot be read ({error}).",
            remedy="Run the job to its end first, or `nas report` to write it again.",
        ) from error
    if not members:
        raise RunFolderError(f"The front of {folder} is empty.", remedy="Raise its limits.")
    return members


def select(folder: Path, limits: Limits) -> dict[str, Any]:
    """The most accurate front member that meets the limits; among equals, the fastest.

    Raises:
        InfeasibleError: none does; the message names the nearest and what it misses.
        RequestError: a limit makes no sense.
    """
    for name, value in vars(limits).items():
        if value is not None and value <= 0:
            raise RequestError(f"{name} is {value}.", remedy="Give a number above zero.")
    if limits.min_accuracy is not None and limits.min_accuracy > 1:
        raise RequestError(
            f"min_accuracy is {limits.min_accuracy}.", remedy="Give a fraction, such as 0.95."
        )
    members = front_of(folder)
    fitting = [member for member in members if not limits.excess(member)]
    if not fitting:
        nearest = min(members, key=lambda m: (sum(limits.excess(m).values()), latency_us(m)))
        misses = ", ".join(f"{k} by {100 * v:.1f}%" for k, v in limits.excess(nearest).items())
        raise InfeasibleError(
            f"No front member meets the limits. The nearest is {nearest['id']} "
            f"({nearest['space']}): "
            f"{latency_us(nearest) / 1000:.4g} ms "
            f"{'predicted' if nearest['measured_us'] is None else 'measured'}, "
            f"{nearest['params']} parameters, accuracy {nearest['validation_accuracy']:.4f}; "
            f"it misses {misses}.",
            remedy="Relax the limits, or search smaller networks.",
        )
    return max(fitting, key=lambda m: (m["validation_accuracy"], -latency_us(m)))
