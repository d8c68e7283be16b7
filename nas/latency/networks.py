"""Times whole networks: each at several moments, until the two fastest timings agree.

On a shared machine other programs come and go, within milliseconds and for minutes. The samples of
one timing follow each other, so that they meet the same company; the timings of one network lie
apart, with all other networks in between; and of these the fastest counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from nas.errors import MeasurementError
from nas.graph import Graph
from nas.latency import timing
from nas.latency.runtime import CompiledNetwork, Runtime, Schedules
from nas.latency.timing import Timing

SAMPLE_SECONDS = 0.002

AGREEMENT = 0.03
"""How far apart, as a fraction, two timings of a network may lie to be believed."""

FEWEST_TIMINGS = 8
MOST_TIMINGS = 16
"""Timings of one network. Where neighbours are busy half of the time, one of eight moments is
quiet."""

SECONDS_APART = 2.0
"""From the start of one timing to the start of the next, at least: another moment."""

Step = Callable[[int, int], None]
"""Called with (steps done, steps in all); a step compiles or times one network."""


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


@dataclass(frozen=True)
class RepeatedTiming:
    """One whole network, timed at several moments, or the error that kept it from that."""

    timings: tuple[Timing, ...]
    error: str | None = None


def agree(latencies_us: Collection[float]) -> bool:
    """Whether a network's timings agree within `AGREEMENT`; see `nas.latency.timing.agree`."""
    return timing.agree(latencies_us, AGREEMENT)


def retiming_spread(timings: Collection[Sequence[Timing]]) -> float:
    """Median, over networks, of how far the two fastest timings of each are apart, as a fraction.

    That is how well the fastest, the one that counts, is known. Raises ValueError where a network
    was timed once.
    """
    pairs = [sorted(each.latency_us for each in own)[:2] for own in timings]
    return statistics.median(slow / fast - 1 for fast, slow in pairs)


def measure_networks(
    graphs: Sequence[Graph],
    runtime: Runtime,
    schedules: Schedules,
    *,
    batch: int = 1,
    progress: Step | None = None,
) -> list[NetworkTiming]:
    """Times whole networks, each once.

    Args:
        graphs: what to compile, with random weights.
        schedules: of all their kernels; `LatencyTable.schedules()`.
        batch: number of images of one inference.
        progress: see `Step`.

    A network that cannot be compiled or timed has its error instead of a timing.
    """
    together = _Together(runtime, 2 * len(graphs), progress)
    together.compile(graphs, schedules, batch)
    found = together.time(range(len(graphs)))
    return [NetworkTiming(found.get(i), together.errors.get(i)) for i in range(len(graphs))]


def measure_until_they_agree(
    graphs: Sequence[Graph],
    runtime: Runtime,
    schedules: Schedules,
    *,
    batch: int = 1,
    progress: Step | None = None,
) -> list[RepeatedTiming]:
    """As `measure_networks`, but every network `FEWEST_TIMINGS` times, `SECONDS_APART`.

    A network whose two fastest timings do not `agree` is timed again, at most `MOST_TIMINGS` times
    in all. Networks are compiled once, for batches of `batch` images.
    """
    together = _Together(runtime, len(graphs) * (1 + FEWEST_TIMINGS), progress)
    together.compile(graphs, schedules, batch)
    timings: list[list[Timing]] = [[] for _ in graphs]
    waiting = list(range(len(graphs)))
    for number in range(MOST_TIMINGS):
        start = time.monotonic()
        for index, found in together.time(waiting).items():
            timings[index].append(found)
        waiting = [
            index
            for index, own in enumerate(timings)
            if index not in together.errors
            and (number + 1 < FEWEST_TIMINGS or not agree([each.latency_us for each in own]))
        ]
        if not waiting or number + 1 == MOST_TIMINGS:
            break
        together.expect(len(waiting) * max(1, FEWEST_TIMINGS - number - 1))
        time.sleep(max(0.0, SECONDS_APART - (time.monotonic() - start)))
    return [RepeatedTiming(tuple(own), together.errors.get(i)) for i, own in enumerate(timings)]


class _Together:
    """Networks that are compiled and timed together, by their place in the list of graphs.

    Args:
        runtime: what compiles and times.
        steps: how many there will be, for the progress.
        progress: see `Step`.
    """

    def __init__(self, runtime: Runtime, steps: int, progress: Step | None) -> None:
        self.errors: dict[int, str] = {}
        self._steps = steps
        self._done = 0
        self._runtime = runtime
        self._progress = progress
        self._compiled: dict[int, CompiledNetwork] = {}

    def compile(self, graphs: Sequence[Graph], schedules: Schedules, batch: int) -> None:
        """Compiles all of them; one that cannot be compiled has an error."""
        for index, graph in enumerate(graphs):
            self._step(index, partial(self._compile, index, graph, schedules, batch))

    def time(self, indices: Iterable[int]) -> dict[int, Timing]:
        """One timing of each of these; none of those with an error, then or now."""
        found: dict[int, Timing] = {}
        with timing.pinned(self._runtime.fingerprint.threads):
            for index in indices:
                self._step(index, partial(self._time, index, found))
        return found

    def expect(self, timings: int) -> None:
        """Says that so many more timings are going to be taken."""
        self._steps = self._done + timings

    def _compile(self, index: int, graph: Graph, schedules: Schedules, batch: int) -> None:
        self._compiled[index] = self._runtime.compile(graph, schedules, batch=batch)

    def _time(self, index: int, found: dict[int, Timing]) -> None:
        evaluate = self._compiled[index].evaluate
        calls = timing.calls_in(evaluate, SAMPLE_SECONDS)
        found[index] = Timing.of_seconds(timing.undisturbed(evaluate, calls, timing.SAMPLES))

    def _step(self, index: int, action: Callable[[], None]) -> None:
        if index not in self.errors:
            try:
                action()
            # A compiler may raise anything; whatever it is, it is this network's result.
            except Exception as error:
                self.errors[index] = f"{type(error).__name__}: {str(error).strip()[:500]}"
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._steps)
