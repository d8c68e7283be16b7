"""The dispatch costs of a table: what networks take beside their kernels.

The costs of launching kernels are timed once, at many moments in a row. The miss curves
(`nas.latency.cache_model`) depend on how much of a shared cache other programs leave, which differs
from one second to the next: in a minute beside busy neighbours, a MiB in a chain of four took 16 to
44 us. So they are timed at moments that are spread over the whole
build, and the rule that chooses the latency of a kernel or a network among its timings chooses
theirs. The fastest moments would say that large networks find their weights in the cache, which at
most moments they do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from nas.errors import MeasurementError
from nas.latency.record import Record, timing_sensitivity
from nas.latency.runtime import KernelTimer
from nas.latency.table import LatencyTable
from nas.latency.timer_pool import TimerPool
from nas.latency.timing import Moments, Timing, latency_at_quiet_speed, with_slowdowns

CURVE_MOMENTS = 18
"""Moments at which the miss curves are timed, at least."""

FIRST_CURVE_MOMENTS = 4
"""Moments at which a build times the miss curves before the first kernel."""

MAX_CURVE_MOMENTS = 60
"""Moments after which a table needs no others; their timings are in the rows of the table."""

SECONDS_BETWEEN_CURVES = 10.0
"""Time after which a build times the miss curves again. One timing takes 0.3 s."""

MAX_CURVE_DIFFERENCE = 0.1
"""Largest difference of the latencies by two halves of the timings of a stable miss curve, as a
fraction."""

MAX_ATTEMPTS = 3
"""Attempts to time dispatch costs. They are differences of timings, and another process that wakes
up at the wrong moment makes one of them negative."""


class DispatchTimer:
    """Times the dispatch costs that a table lacks, and appends their records.

    Args:
        table: table of the device, locked for writing.
        timers: timers of the device.
        again: whether costs that the table has are timed again. Of two costs of launching kernels,
            the lower one counts; of the miss curves, all timings count.
    """

    def __init__(self, table: LatencyTable, timers: TimerPool, *, again: bool = False) -> None:
        self._table, self._timers = table, timers
        self._curves = {
            record.name: record for record in table.records("dispatch") if record.medians_us
        }
        self._lacks_launches = again or table.lacks_dispatch()
        self._wanted = CURVE_MOMENTS + (self._moments if again else 0)
        is_settled = all(each.settled for each in self._curves.values())
        self._is_active = self._lacks_launches or not is_settled
        self._timed_s = -math.inf
        self._pauses = Moments()

    @property
    def _moments(self) -> int:
        """Number of moments at which the miss curves were timed; 0 without miss curves."""
        return min((len(each.medians_us) for each in self._curves.values()), default=0)

    def begin(self) -> None:
        """Time the costs of launching kernels, and the miss curves for the first time.

        Raises:
            MeasurementError: the costs cannot be told from noise.
        """
        if self._lacks_launches:
            before_us = {} if self._table.lacks_dispatch() else self._table.dispatch_us
            for part, timing in self._attempt(lambda timer: timer.time_dispatch()).items():
                if timing.latency_us < before_us.get(part, math.inf):
                    self._table.append(self._record(part, timing))
        for _ in range(FIRST_CURVE_MOMENTS):
            self._time_curves()
        self.append()

    def time_if_due(self) -> None:
        """Time the miss curves again if the last time was long enough ago."""
        is_due = time.monotonic() >= self._timed_s + SECONDS_BETWEEN_CURVES
        if is_due and self._moments < max(self._wanted, MAX_CURVE_MOMENTS):
            self._time_curves()

    def finish(self) -> None:
        """Time the miss curves until they were timed at enough moments, once at least."""
        self._time_curves()
        while self._is_active and self._moments < self._wanted:
            self._time_curves()
        if self._is_active:
            self._curves = {
                part: replace(record, settled=True) for part, record in self._curves.items()
            }

    def append(self) -> None:
        """Append the records of the miss curves that were timed since the last time."""
        for part, record in self._curves.items():
            if record.line == 0:
                self._curves[part] = self._table.append(record)

    def _time_curves(self) -> None:
        """Time the miss curves at one moment, unless the table or the runtime needs no timing."""
        if not self._is_active:
            return
        self._pauses.wait()
        timings = self._attempt(lambda timer: timer.time_miss_curves())
        self._timed_s = time.monotonic()
        self._is_active = bool(timings)
        quiet_us = self._table.quiet_us
        sensitivity = timing_sensitivity(self._curves.values(), quiet_us)
        for part, timing in timings.items():
            record = self._curves.get(part)
            if record is None:
                record = replace(self._record(part, timing), medians_us=(timing.latency_us,))
            else:
                record = record.with_timing(
                    timing,
                    MAX_CURVE_DIFFERENCE,
                    CURVE_MOMENTS,
                    MAX_CURVE_MOMENTS,
                    quiet_us,
                    sensitivity,
                )
            # It is settled when the build is done.
            self._curves[part] = replace(record, settled=False)

    def _record(self, part: str, timing: Timing) -> Record:
        basis = self._table.runtime.basis
        return Record.from_timing("dispatch", timing, name=part, basis=basis)

    def _attempt(self, call: Callable[[KernelTimer], Mapping[str, Timing]]) -> Mapping[str, Timing]:
        """Return what a function of a timer returns, after a few attempts."""
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._timers.call_any(call)
            except MeasurementError:
                continue
        return self._timers.call_any(call)


def time_dispatch_us(timer: KernelTimer, quiet_us: float) -> dict[str, float]:
    """Time all dispatch costs now, and return their microseconds by part.

    Args:
        timer: timer of the device.
        quiet_us: duration of the reference workload at the quiet speed, see
            `LatencyTable.quiet_us`.

    Raises:
        MeasurementError: the costs cannot be told from noise.
    """
    costs_us = {part: timing.latency_us for part, timing in timer.time_dispatch().items()}
    moments = Moments()
    curves: dict[str, list[Timing]] = {}
    for _ in range(CURVE_MOMENTS):
        moments.wait()
        if not (timings := timer.time_miss_curves()):
            break
        for part, timing in timings.items():
            curves.setdefault(part, []).append(timing)
    quiet = with_slowdowns([*curves.values()], quiet_us)
    return costs_us | dict(zip(curves, map(latency_at_quiet_speed, quiet), strict=True))
