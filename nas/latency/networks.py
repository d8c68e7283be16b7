"""Timing whole networks, each at several moments until its timings agree.

The timings of one network are apart, with all other networks in between. Its latency is that at
the quiet speed of the processor, see `nas.latency.timing.latency_at_quiet_speed`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from nas.errors import MeasurementError
from nas.graph import Graph
from nas.latency import timing
from nas.latency.processor_speed import is_too_fast
from nas.latency.runtime import CompiledNetwork, Runtime, Schedules
from nas.latency.timing import Timing, latency_at_quiet_speed

SAMPLE_SECONDS = 0.002
"""Shortest duration of a sample."""

MIN_TIMINGS = timing.MOMENTS
"""Timings of each network."""

MAX_TIMINGS = timing.MAX_MOMENTS_FACTOR * MIN_TIMINGS
"""Largest number of timings of one network."""

ProgressCallback = Callable[[int, int], None]
"""Function of (steps done, steps in all); in one step one network is compiled or timed."""


@dataclass(frozen=True)
class NetworkTimings:
    """The timings of one network at several moments, or the error for which it has none."""

    timings: tuple[Timing, ...]
    error: str | None = None

    @property
    def measured_us(self) -> float:
        """The latency in microseconds, see `nas.latency.timing.latency_at_quiet_speed`.

        Raises:
            MeasurementError: the network could not be timed.
        """
        if not self.timings:
            raise MeasurementError(f"The network could not be timed: {self.error}.")
        return latency_at_quiet_speed(self.timings)


def retiming_spread(timings: Collection[Sequence[Timing]]) -> float:
    """Return the median difference of two latencies of each network, as a fraction.

    They are those of `nas.latency.timing.compared_us`.

    Args:
        timings: timings of each network.

    Raises:
        ValueError: all networks were timed only once.
    """
    pairs = [timing.compared_us(own) for own in timings]
    return statistics.median(pair[1] / pair[0] - 1 for pair in pairs if pair is not None)


def measure_networks(
    graphs: Sequence[Graph],
    runtime: Runtime,
    schedules: Schedules,
    *,
    batch: int = 1,
    progress: ProgressCallback | None = None,
    quiet_us: float = math.inf,
    at_each_moment: Callable[[], None] = lambda: None,
) -> list[NetworkTimings]:
    """Compile networks with random weights, and time each until its timings agree.

    Each network is compiled once and timed at `MIN_TIMINGS` moments; once if its latency is always
    the same (`Runtime.has_constant_networks`). If its timings disagree
    (`nas.latency.timing.timings_agree`), or too few of them have a known slowdown, it is timed
    again, at most `MAX_TIMINGS` times in all. A network that cannot be compiled or timed has an
    error instead.

    Args:
        graphs: the networks.
        runtime: an opened runtime.
        schedules: schedules of all their kernels, from `LatencyTable.schedules`.
        batch: number of images of one inference.
        progress: function to call after each step.
        quiet_us: duration of the reference workload at the quiet speed of the table, see
            `nas.latency.timing.latency_at_quiet_speed`. Timings at a faster speed do not count,
            unless there are no others.
        at_each_moment: function to call after the networks were timed at a moment.
    """
    fewest, most = (1, 1) if runtime.has_constant_networks else (MIN_TIMINGS, MAX_TIMINGS)
    timer = _NetworkTimer(runtime, len(graphs) * (1 + fewest), progress)
    timer.compile(graphs, schedules, batch)
    timings: list[list[Timing]] = [[] for _ in graphs]
    waiting = list(range(len(graphs)))
    moments = timing.Moments()
    for done in range(1, most + 1):
        moments.wait()
        for index, new in timer.time(waiting).items():
            timings[index].append(new)
        timings = timing.with_slowdowns(timings, quiet_us)
        at_each_moment()
        waiting = [
            index
            for index, own in enumerate(timings)
            if index not in timer.errors
            and (
                done < fewest
                or not timing.timings_agree(_counted(own, quiet_us))
                or not timing.has_enough_undisturbed(own, quiet_us, fewest)
            )
        ]
        if not waiting or done == most:
            break
        timer.expect(len(waiting) * max(1, fewest - done))
    return [
        NetworkTimings(tuple(_counted(own, quiet_us)), timer.errors.get(index))
        for index, own in enumerate(timings)
    ]


def _counted(timings: Sequence[Timing], quiet_us: float) -> Sequence[Timing]:
    """Return the timings that are not too fast to be compared; all of them if there are none."""
    counted = [
        each
        for each in timings
        if each.slowdown is not None or not is_too_fast(each.reference_us, quiet_us)
    ]
    return counted or timings


class _NetworkTimer:
    """Compiles and times several networks, which are identified by their index.

    Args:
        runtime: an opened runtime.
        steps: expected number of steps, for the progress.
        progress: function to call after each step.

    Attributes:
        errors: error of each network that could not be compiled or timed.
    """

    def __init__(self, runtime: Runtime, steps: int, progress: ProgressCallback | None) -> None:
        self.errors: dict[int, str] = {}
        self._steps = steps
        self._done = 0
        self._runtime = runtime
        self._progress = progress
        self._compiled: dict[int, CompiledNetwork] = {}

    def compile(self, graphs: Sequence[Graph], schedules: Schedules, batch: int) -> None:
        """Compile all networks."""
        for index, graph in enumerate(graphs):
            self._step(index, partial(self._compile, index, graph, schedules, batch))

    def time(self, indices: Iterable[int]) -> dict[int, Timing]:
        """Return a timing of each of these networks, without those that have an error."""
        timings: dict[int, Timing] = {}
        with timing.pinned(self._runtime.fingerprint.threads):
            for index in indices:
                self._step(index, partial(self._time, index, timings))
        return timings

    def expect(self, timings: int) -> None:
        """Set the number of timings that are still to be taken."""
        self._steps = self._done + timings

    def _compile(self, index: int, graph: Graph, schedules: Schedules, batch: int) -> None:
        self._compiled[index] = self._runtime.compile(graph, schedules, batch=batch)

    def _time(self, index: int, timings: dict[int, Timing]) -> None:
        evaluate = self._compiled[index].evaluate
        is_local = self._runtime.is_local
        timings[index] = timing.measure(evaluate, SAMPLE_SECONDS, is_local=is_local)

    def _step(self, index: int, action: Callable[[], None]) -> None:
        """Compile or time a network, unless it has an error."""
        if index not in self.errors:
            try:
                action()
            # A compiler may raise anything; whatever it is, it is the result of this network.
            except Exception as error:
                self.errors[index] = f"{type(error).__name__}: {str(error).strip()[:500]}"
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._steps)
