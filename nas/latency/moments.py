"""What follows from timings at several moments: a latency, its interval, and how sure it is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from nas.latency.core_speed import FASTEST_SHARE, FULL_SPEED_TOLERANCE
from nas.statistics import tail_quantile

MOMENTS = 4
"""Moments at full speed at which a kernel or a network is timed, at least.

More gained nothing on recorded tables, on idle machines and on disturbed ones
(docs/measurements.md).
"""

MAX_MOMENTS = 24
"""Moments after which a kernel or a network whose timings disagree is timed no more."""

MOMENTS_PER_OUTLIER = 8
"""One of so many moments may be faster than all others, while the neighbours of a core idle."""

RETIMING_TOLERANCE = 0.03
"""Largest difference of two latencies of a kernel or network that agree, as a fraction."""


def round_to_four_digits(value: float) -> float:
    """Return a value with four significant digits, which no timing exceeds in precision."""
    return float(f"{value:.4g}")


def quiet_us(moments_us: Sequence[float]) -> float:
    """Return the latency at quiet moments, from the latencies at several moments.

    Other work on the machine only adds time, so it is the fastest one, after one of each
    `MOMENTS_PER_OUTLIER` moments is left out.

    Args:
        moments_us: latencies of a kernel, network or file in microseconds, at least one.
    """
    return sorted(moments_us)[len(moments_us) // MOMENTS_PER_OUTLIER]


class Moment(NamedTuple):
    """A timing at one moment, in microseconds.

    Attributes:
        latency_us: median of the samples that count.
        reading_us: duration of the reading of the core's speed beside them; None without readings.
        first_us: latency of the first sample, whatever disturbed it.
    """

    latency_us: float
    reading_us: float | None
    first_us: float


@dataclass(frozen=True)
class Latency:
    """The latency of a kernel, network or file, from several moments.

    Args:
        moments: at least one.
        full_us: duration of a reading at full speed, see `full_speed_us`; None if it is not known.
    """

    moments: Sequence[Moment]
    full_us: float | None = None

    @property
    def undisturbed(self) -> Sequence[Moment]:
        """The moments at which the core ran at full speed, as far as is known."""
        if self.full_us is None:
            return self.moments
        slowest_us = (1 + FULL_SPEED_TOLERANCE) * self.full_us
        return [each for each in self.moments if (each.reading_us or 0.0) <= slowest_us]

    @property
    def is_disturbed(self) -> bool:
        """Whether the core never ran at full speed, so that the latency is too high."""
        return not self.undisturbed

    @property
    def counted_us(self) -> list[float]:
        """The latencies that count: those at full speed; all if there is none."""
        return [each.latency_us for each in self.undisturbed or self.moments]

    @property
    def quiet_us(self) -> float:
        """The latency at quiet moments, see `quiet_us`.

        Tables, searches and comparisons use it, as it depends least on the other work on the
        machine.
        """
        return round_to_four_digits(quiet_us(self.counted_us))

    @property
    def typical_us(self) -> float:
        """The median of the first samples, at whatever speed of the core: what users get."""
        return round_to_four_digits(statistics.median(each.first_us for each in self.moments))

    @property
    def halves_us(self) -> tuple[float, float] | None:
        """Two latencies in ascending order that tell how precisely the latency is known.

        They are those of every other moment that counts, and of the rest; None for one moment.
        """
        if len(self.counted_us) < 2:
            return None
        first, second = (quiet_us(self.counted_us[start::2]) for start in (0, 1))
        return min(first, second), max(first, second)

    @property
    def interval_us(self) -> tuple[float, float]:
        """Limits of the latency at full speed.

        They are `halves_us`. A disturbed latency is the upper limit; the lower one is what would be
        left of it if the core had slowed it as much as the readings.
        """
        if self.is_disturbed:
            assert self.full_us is not None
            factor = min(each.reading_us or self.full_us for each in self.moments) / self.full_us
            return round_to_four_digits(self.quiet_us / factor), self.quiet_us
        return self.halves_us or (self.quiet_us, self.quiet_us)

    def agrees(self, tolerance: float = RETIMING_TOLERANCE) -> bool:
        """Return whether a second moment confirms the latency of quiet moments.

        Args:
            tolerance: largest difference of the two, as a fraction.
        """
        quiet, *slower = sorted(self.counted_us)[len(self.counted_us) // MOMENTS_PER_OUTLIER :]
        return bool(slower) and slower[0] <= (1 + tolerance) * quiet

    def is_settled(self, fewest: int, tolerance: float = RETIMING_TOLERANCE) -> bool:
        """Return whether no further timing is needed.

        None is after `fewest` moments at full speed if these agree, and after `MAX_MOMENTS`.
        """
        if len(self.moments) >= max(fewest, MAX_MOMENTS):
            return True
        return len(self.undisturbed) >= fewest and self.agrees(tolerance)

    def status(
        self, tolerance: float = RETIMING_TOLERANCE
    ) -> Literal["ok", "unstable", "disturbed"]:
        """Return how much the latency is worth: `unstable` if its moments do not agree."""
        if self.is_disturbed:
            return "disturbed"
        return "ok" if self.agrees(tolerance) else "unstable"


def readings_us(moments: Iterable[Moment]) -> list[float]:
    """Return the readings of the moments that have one."""
    return [each.reading_us for each in moments if each.reading_us is not None]


def full_speed_us(moments: Iterable[Moment], known_us: float | None = None) -> float | None:
    """Return the duration of a reading at full speed, from moments of whatever was timed.

    Args:
        moments: the moments.
        known_us: the one of other moments, if there were some.

    Returns:
        That of the fastest `nas.latency.core_speed.FASTEST_SHARE` of the readings, or `known_us` if
        that is faster; None if there are neither.
    """
    own = readings_us(moments)
    if not own:
        return known_us
    fastest_us = round_to_four_digits(float(np.quantile(own, FASTEST_SHARE)))
    return fastest_us if known_us is None else min(fastest_us, known_us)


class Slowdown(NamedTuple):
    """How much slower than at quiet moments a machine was.

    Attributes:
        typical: median over all that was timed of its typical over its quiet latency.
        high: the 95% quantile over all moments of the latency over the quiet one; None of too few
            moments, see `nas.statistics.has_tail`.
    """

    typical: float
    high: float | None

    @classmethod
    def of(cls, latencies: Iterable[Latency]) -> Slowdown | None:
        """Return the slowdown while some latencies were timed; None if none was timed again.

        Args:
            latencies: the latency of each kernel or network.
        """
        ratios = [
            [each.first_us / latency.quiet_us for each in latency.moments]
            for latency in latencies
            if len(latency.moments) > 1
        ]
        if not ratios:
            return None
        typical = statistics.median(map(statistics.median, ratios))
        return cls(typical, tail_quantile([each for own in ratios for each in own], 0.95))

    @property
    def text(self) -> str:
        """A clause that follows the name of what was timed."""
        text = f"typically took {self.typical:.2f} times as long as at quiet moments"
        if self.high is not None:
            text += f", and {self.high:.2f} times or more in the slowest 5% of all samples"
        return text
