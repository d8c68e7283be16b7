"""Holds a table against reality: whole networks, compiled and timed, beside their predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.errors import MeasurementError, RequestError
from nas.graph import Graph
from nas.latency import timing
from nas.latency.runtimes import CompiledNetwork, Runtime, Schedules
from nas.latency.table import LatencyTable
from nas.latency.timing import Timing

if TYPE_CHECKING:
    from nas.space import Architecture, SearchSpace

ROUNDS = 5
"""Rounds over all networks; a drift of the machine then shows in every network's samples."""

SAMPLES_A_ROUND = 2
SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class NetworkTiming:
    """One whole network: its timing, or the error that kept it from one."""

    timing: Timing | None
    error: str | None = None

    @property
    def measured_us(self) -> float:
        """The median. Raises MeasurementError for a network that could not be timed."""
        if self.timing is None:
            raise MeasurementError(f"The network could not be timed: {self.error}.")
        return self.timing.latency_us


def measure_networks(
    graphs: Sequence[Graph],
    runtime: Runtime,
    schedules: Schedules,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[NetworkTiming]:
    """Times whole networks in interleaved rounds: every network once a round.

    Args:
        graphs: what to compile, with random weights.
        schedules: of all their kernels; `LatencyTable.schedules()`.
        progress: called with (steps done, steps in all); a step compiles or times one network.

    A network that cannot be compiled or timed has its error instead of a timing.
    """
    errors: dict[int, str] = {}
    compiled: dict[int, CompiledNetwork] = {}
    seconds: dict[int, list[float]] = {}
    steps = itertools.count(1)
    total = len(graphs) * (1 + ROUNDS)

    def step(index: int, action: Callable[[], None]) -> None:
        if index not in errors:
            try:
                action()
            # A compiler may raise anything; whatever it is, it is this network's result.
            except Exception as error:
                errors[index] = f"{type(error).__name__}: {str(error).strip()[:500]}"
        done = next(steps)
        if progress is not None:
            progress(done, total)

    def compile_network(index: int) -> None:
        compiled[index] = runtime.compile(graphs[index], schedules)

    def time_round(index: int) -> None:
        evaluate = compiled[index].evaluate
        calls = timing.calls_in(evaluate, SAMPLE_SECONDS)
        found = timing.undisturbed(evaluate, calls, SAMPLES_A_ROUND)
        seconds.setdefault(index, []).extend(found)

    for index in range(len(graphs)):
        step(index, partial(compile_network, index))
    with timing.pinned(runtime.fingerprint.threads):
        for _ in range(ROUNDS):
            for index in range(len(graphs)):
                step(index, partial(time_round, index))
    return [
        NetworkTiming(None, errors[i])
        if i in errors
        else NetworkTiming(Timing.of_seconds(seconds[i]))
        for i in range(len(graphs))
    ]


@dataclass(frozen=True)
class CheckedNetwork:
    """One held-out network."""

    architecture: Mapping[str, Any]
    predicted_us: float
    timing: Timing

    @property
    def measured_us(self) -> float:
        """The median of the timing."""
        return self.timing.latency_us

    @property
    def relative_error(self) -> float:
        """Predicted over measured, less one: negative where the prediction is low."""
        return self.predicted_us / self.measured_us - 1


@dataclass(frozen=True)
class Check:
    """Predictions of a table against whole networks."""

    rows: tuple[CheckedNetwork, ...]

    @property
    def mape(self) -> float:
        """Mean absolute error as a fraction of the measured latency."""
        return float(np.mean([abs(row.relative_error) for row in self.rows]))

    @property
    def bias(self) -> float:
        """Mean signed error as a fraction."""
        return float(np.mean([row.relative_error for row in self.rows]))

    def within(self, fraction: float) -> float:
        """The share of networks whose prediction is off by at most `fraction`."""
        return float(np.mean([abs(row.relative_error) <= fraction for row in self.rows]))

    @property
    def kendall_tau(self) -> float | None:
        """Kendall's tau-b of predicted against measured; None where it is not defined."""
        return kendall_tau(
            [row.predicted_us for row in self.rows], [row.measured_us for row in self.rows]
        )

    def to_json(self) -> dict[str, Any]:
        """What `nas table check --json` prints."""
        return {
            "nets": len(self.rows),
            "mape": self.mape,
            "within_5_percent": self.within(0.05),
            "within_10_percent": self.within(0.10),
            "kendall_tau": self.kendall_tau,
            "rows": [
                {
                    "architecture": dict(row.architecture),
                    "predicted_us": timing.four_digits(row.predicted_us),
                    "measured_us": row.measured_us,
                    "samples_us": list(row.timing.samples_us),
                }
                for row in self.rows
            ],
        }

    def summary(self) -> str:
        """A few lines for a person."""
        worst = max(self.rows, key=lambda row: abs(row.relative_error))
        tau = self.kendall_tau
        return (
            f"{len(self.rows)} networks, none of which the table has seen whole:\n"
            f"  mean error {self.mape:.1%} (signed {self.bias:+.1%}), "
            f"{self.within(0.05):.0%} within 5%, {self.within(0.10):.0%} within 10%\n"
            f"  Kendall tau {'undefined' if tau is None else format(tau, '.3f')}\n"
            f"  worst: predicted {worst.predicted_us:.0f} us, measured {worst.measured_us:.0f} us "
            f"({worst.relative_error:+.1%})"
        )

    def plot(self, path: Path | str) -> None:
        """Writes a scatter plot, measured over predicted, with lines 10% off."""
        from matplotlib.figure import Figure

        predicted = np.array([row.predicted_us for row in self.rows])
        measured = np.array([row.measured_us for row in self.rows])
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        ends = np.array([0.9 * min(*predicted, *measured), 1.1 * max(*predicted, *measured)])
        axes.plot(ends, ends, color="0.4", linewidth=1, label="predicted = measured")
        axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="0.9", label="within 10%")
        spaces = [str(row.architecture.get("space", "")) for row in self.rows]
        for space in dict.fromkeys(spaces):
            chosen = np.array([each == space for each in spaces])
            axes.scatter(predicted[chosen], measured[chosen], s=18, label=space or None)
        axes.set(xscale="log", yscale="log", xlabel="predicted_us", ylabel="measured_us")
        axes.legend()
        figure.savefig(path, dpi=150)


def check_table(
    table: LatencyTable,
    spaces: Sequence[SearchSpace],
    runtime: Runtime,
    *,
    nets: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Draws networks from the spaces in turn, times each whole, and compares.

    Raises MissingKernelError for a space that the table does not cover, TableDeviceError for
    another device's table, MeasurementError for a network that cannot be timed.
    """
    if nets < 1 or not spaces:
        raise RequestError("A check needs at least one network and one space.")
    table.device.require(runtime.fingerprint, str(table.path))
    drawn: list[tuple[Architecture, Graph]] = []
    for index in range(nets):
        space = spaces[index % len(spaces)]
        architecture = space.sample_choices(rng)
        drawn.append((architecture, space.lower(architecture)))
    predictions = [table.predict(graph).latency_us for _, graph in drawn]
    graphs = [graph for _, graph in drawn]
    timings = measure_networks(graphs, runtime, table.schedules(), progress=progress)
    rows = []
    for (architecture, _), predicted, found in zip(drawn, predictions, timings, strict=True):
        if found.timing is None:
            raise MeasurementError(f"A network could not be timed: {found.error}.")
        rows.append(CheckedNetwork(architecture.to_json(), predicted, found.timing))
    return Check(tuple(rows))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b (1945), ties corrected for; None if all values of one are equal."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    upper = np.triu_indices(len(a), k=1)
    signs_a = np.sign(a[:, None] - a[None, :])[upper]
    signs_b = np.sign(b[:, None] - b[None, :])[upper]
    untied = np.count_nonzero(signs_a) * np.count_nonzero(signs_b)
    if untied == 0:
        return None
    return float(np.sum(signs_a * signs_b) / np.sqrt(untied))
