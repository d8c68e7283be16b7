"""`RecordedTimer`: the timer of a device that is reached by a kit. Its timings are in a file."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel
from nas.latency import differences, timing
from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB
from nas.latency.record import Record
from nas.latency.rounds import fastest_us
from nas.latency.runtime import KernelTimer, Schedule
from nas.latency.table import LatencyTable
from nas.latency.timing import Attempt, Timing
from nas.runtimes.tvm.dispatch_benchmarks import launch_costs, launch_networks
from nas.runtimes.tvm.kernel_timer import half_cold_us, tvm_kernels
from nas.runtimes.tvm.kit.manifest import Item
from nas.runtimes.tvm.kit.results import Results


class RecordedTimer(KernelTimer):
    """Returns the timings of a kit that a table lacks, each of them once.

    Args:
        results: results of the kit.
        table: table of the device.
    """

    is_recorded = True

    def __init__(self, results: Results, table: LatencyTable) -> None:
        self._results = results
        self.full_us = results.overheated_us
        self._kernels = results.items("kernel")
        self._dispatch = {name: own[0] for name, own in results.items("dispatch").items()}
        # Timings that the table lacks, by number of the item.
        self._left = {
            item.id: self._unseen(item, table.record(kernel))
            for kernel in self.kernels
            for item in self._kernels[kernel.text]
        }
        self._curve = self._unseen_curve({each.name: each for each in table.records("dispatch")})

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels that the kit times."""
        return [Kernel.parse(text) for text in self._kernels]

    def is_timed(self, kernel: Kernel) -> bool:
        """Return whether a kernel of the kit was timed."""
        return bool(self._timed(kernel))

    def is_broken(self, kernel: Kernel) -> bool:
        """Return whether no candidate of a kernel of the kit can be timed."""
        return all(item.id in self._results.errors for item in self._kernels[kernel.text])

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Return the schedule that the program chose, and its first timing.

        The program also times a kernel with many weights without Winograd's algorithm, so that the
        choice between the two is made here (`half_cold_us`).

        Raises:
            MeasurementError: no candidate can be timed.
        """
        timed = self._timed(kernel)
        if not timed:
            raise MeasurementError(self._results.errors[self._kernels[kernel.text][0].id])

        def cost_us(item: Item) -> float:
            latencies_us = [each.latency_us for each in self._results.timings(item)]
            return half_cold_us(kernel, item.schedule or {}, fastest_us(latencies_us))

        item = min(timed, key=cost_us)
        return item.schedule or {}, self._left[item.id].popleft()

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing | None:
        """Return the next timing of a kernel with a schedule; None after the last one."""
        for item in self._kernels[kernel.text]:
            if item.schedule == schedule and self._left[item.id]:
                return self._left[item.id].popleft()
        return None

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Return the costs of `TvmKernelTimer.time_dispatch`; none if there are too few rounds."""
        names = [name for name in self._dispatch if name not in WEIGHT_PARTS]
        seconds = [
            [_median_seconds(each) for each in self._results.attempts[self._dispatch[name].id]]
            for name in names
        ]
        rounds = [dict(zip(names, each, strict=True)) for each in zip(*seconds, strict=False)]
        if len(rounds) < differences.ROUNDS:
            return {}
        launched = {name: tvm_kernels(graph) for name, graph in launch_networks().items()}
        return differences.cost_timings(rounds, partial(launch_costs, launched))

    def time_miss_curve(self) -> Mapping[str, Timing]:
        """Return the timings of the next round; none after the last one."""
        return self._curve.popleft() if self._curve else {}

    @property
    def missing_parts(self) -> list[str]:
        """The parts of the miss curve that the device cannot time, for lack of memory."""
        return [
            part
            for part in WEIGHT_PARTS
            if (item := self._dispatch.get(part)) and item.id in self._results.errors
        ]

    def _timed(self, kernel: Kernel) -> list[Item]:
        return [item for item in self._kernels[kernel.text] if self._results.attempts[item.id]]

    def _unseen(self, item: Item, record: Record | None) -> deque[Timing]:
        """Return the timings of a candidate that the record of its kernel lacks."""
        has_own = record is not None and record.schedule == item.schedule
        return deque(_unseen(self._results.timings(item), record if has_own else None))

    def _unseen_curve(self, records: Mapping[str, Record]) -> deque[Mapping[str, Timing]]:
        """Return the rounds of the miss curve that the table lacks.

        A chain that does not fit into the memory of the device takes as long for a MiB as the next
        smaller one: no network of the device can have as many weights.
        """
        parts: dict[str, list[Timing]] = {}
        for mib, part in zip(WEIGHTS_MIB, WEIGHT_PARTS, strict=True):
            item = self._dispatch.get(part)
            if item is None:
                return deque()
            if item.id in self._results.errors and parts:
                parts[part] = [*parts.values()][-1]
                continue
            # The program times the whole chain.
            timings = [
                Timing.from_attempts([each._replace(seconds=each.seconds / mib) for each in own])
                for own in self._results.attempts[item.id]
            ]
            parts[part] = [*_unseen(timings, records.get(part))]
        return deque(
            dict(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=False)
        )


def _unseen(timings: Sequence[Timing], record: Record | None) -> Iterator[Timing]:
    """Yield the timings that are not in a record, which its first samples tell."""
    seen = Counter(record.first_us if record else ())
    for each in timings:
        first_us = each.typical_us
        if seen[first_us]:
            seen[first_us] -= 1
        else:
            yield each


def _median_seconds(attempts: Sequence[Attempt]) -> float:
    """Return what `timing.median_seconds` makes of attempts."""
    chosen = timing.chosen_attempts(attempts, timing.QUICK_SAMPLES)
    return statistics.median(each.seconds for each in chosen)
