"""The objectives and limits of a run's search, each a figure in its role."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nas.figures import ACCURACY, COUNTS, LATENCY, SEARCH_LIMITS, Figure, predicted_latency
from nas.run.settings import SearchSettings

DEVICE_LATENCY = "predicted_us "
"""Beginning of the columns with the latencies on further devices, before the device's name."""


class RunObjective(NamedTuple):
    """An objective or a limit of a search.

    Attributes:
        figure: its figure.
        limit: largest value, or the smallest one of a figure that is maximised; None for no limit.
        is_optimised: whether it is an objective; otherwise it is a limit only.
    """

    figure: Figure
    limit: float | None = None
    is_optimised: bool = True


def searched_figures(search: SearchSettings, declared: Iterable[Figure]) -> dict[str, Figure]:
    """Return the counts, and the figures that a search optimises or limits, by their columns.

    Args:
        search: objectives and limits of a job.
        declared: the figures of its runtime. One that is not declared has its name as label.
    """
    known = {figure.name: figure for figure in declared}
    names = (*search.also_minimize, *search.also_maximize, *search.limits)
    return COUNTS | {
        name: known.get(name) or Figure(name, name, is_maximised=name in search.also_maximize)
        for name in names
        if name not in COUNTS
    }


def device_figures(search: SearchSettings) -> list[Figure]:
    """Return the latencies on the further devices of a search, in microseconds."""
    return [
        predicted_latency(f"{DEVICE_LATENCY}{name}", f"predicted latency on {name}")
        for name in (device.name for device in search.device)
    ]


def run_objectives(search: SearchSettings, declared: Iterable[Figure]) -> list[RunObjective]:
    """Return the objectives and limits of a job: latency, then accuracy, then all others.

    Args:
        search, declared: see `searched_figures`.
    """
    limits = search.limits | {
        figure.name: limit
        for figure in SEARCH_LIMITS
        if (limit := getattr(search, figure.limit_name)) is not None
    }
    objectives = [RunObjective(LATENCY, limits.get(LATENCY.name)), RunObjective(ACCURACY)]
    for figure, device in zip(device_figures(search), search.device, strict=True):
        limit_us = device.max_latency_ms and 1000 * device.max_latency_ms
        objectives.append(RunObjective(figure, limit_us))
    optimised = (*search.also_minimize, *search.also_maximize)
    objectives += [
        RunObjective(figure, limits.get(name), name in optimised)
        for name, figure in searched_figures(search, declared).items()
        if name in optimised or name in limits
    ]
    return objectives
