"""`EnergyGauge`: the energy of a file under a load, above the power of the idle machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nas.machine.energy import EnergyCounter, find_counter
from nas.run.model_card import EnergyRecord
from nas.run.progress import JobProgress

IDLE_SECONDS = 5.0
"""How long the power of the idle machine is measured."""


class EnergyGauge:
    """Measures the energy of loads, above the power of the idle machine.

    Args:
        counter: what counts joules. The machine has to be idle while the gauge is made.
    """

    def __init__(self, counter: EnergyCounter) -> None:
        self._counter = counter
        before = counter.read()
        time.sleep(IDLE_SECONDS)
        self._before = counter.read()
        seconds = self._before.at_s - before.at_s
        self._idle_w = (self._before.joules - before.joules) / seconds

    def begin(self) -> None:
        """Begin a measurement."""
        self._before = self._counter.read()

    def update(self) -> None:
        """See `EnergyCounter.update`."""
        self._counter.update()

    def record(self, seconds: float, images: int) -> EnergyRecord:
        """Return the energy since `begin`.

        The machine is idle before and after the load, so that this time does not count.

        Args:
            seconds: duration of the load.
            images: number of images.
        """
        after = self._counter.read()
        idle_joules = self._idle_w * (after.at_s - self._before.at_s)
        return EnergyRecord.of(
            self._counter.source,
            idle_w=self._idle_w,
            joules=after.joules - self._before.joules - idle_joules,
            seconds=seconds,
            images=images,
        )


@contextmanager
def energy_gauge(meter: str | None, progress: JobProgress) -> Iterator[EnergyGauge]:
    """Measure the power of the idle machine, and yield what measures the energy of loads.

    Args:
        meter: command of a power meter; by default a counter of the machine is used.
        progress: receives the name of this stage.

    Raises the errors of `nas.machine.energy.find_counter`.
    """
    counter = find_counter(meter)
    try:
        progress.begin("power of the idle machine", "step")
        progress.advance(0, 1)
        gauge = EnergyGauge(counter)
        progress.advance(1, 1)
        yield gauge
    finally:
        counter.close()
