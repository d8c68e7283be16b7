"""What follows from timings in several rounds: a latency, its interval, and how sure it is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from nas.latency.core_speed import FASTEST_SHARE, is_at_full_speed
from nas.statistics import tail_quantile

ROUNDS = 4
"""Rounds at full speed at which a kernel or a network is timed, at least.

More gained nothing on recorded tables, on idle machines and on disturbed ones
(docs/measurements.md).
"""

MAX_ROUNDS = 24
"""Rounds after which a kernel or a network whose timings disagree is timed no more."""

ROUNDS_PER_OUTLIER = 8
"""One of so many rounds may be faster than all others, while the neighbours of a core idle."""

RETIMING_TOLERANCE = 0.03
"""Largest difference of two latencies of a kernel or network that agree, as a fraction."""


def round_to_four_digits(value: float) -> float:
    """Return a value with four significant digits, which no timing exceeds in precision."""
    return float(f"{value:.4g}")


def fastest_us(rounds_us: Sequence[float]) -> float:
    """Return the latency in the fastest rounds, from the latencies in several rounds.

    Other work on the machine only adds time, so it is the fastest one, after one of each
    `ROUNDS_PER_OUTLIER` rounds is left out.

    Args:
        rounds_us: latencies of a kernel, network or file in microseconds, at least one.
    """
    return sorted(rounds_us)[len(rounds_us) // ROUNDS_PER_OUTLIER]


class Round(NamedTuple):
    """A timing in one round, in microseconds.

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
    """The latency of a kernel, network or file, from several rounds.

    Args:
        rounds: at least one.
        full_us: duration of a reading at full speed, see `full_speed_us`; None if it is not known.
    """

    rounds: Sequence[Round]
    full_us: float | None = None

    @property
    def undisturbed(self) -> Sequence[Round]:
        """The rounds in which the core ran at full speed, as far as is known."""
        if self.full_us is None:
            return self.rounds
        full_us = self.full_us
        return [each for each in self.rounds if is_at_full_speed(each.reading_us or 0.0, full_us)]

    @property
    def is_disturbed(self) -> bool:
        """Whether the core never ran at full speed, so that the latency is too high."""
        return not self.undisturbed

    @property
    def counted_us(self) -> list[float]:
        """The latencies that count: those at full speed; all if there is none."""
        return [each.latency_us for each in self.undisturbed or self.rounds]

    @property
    def fastest_us(self) -> float:
        """The latency in the fastest rounds, see `fastest_us`.

        Tables, searches and comparisons use it, as it depends least on the other work on the
        machine.
        """
        return round_to_four_digits(fastest_us(self.counted_us))

    @property
    def typical_us(self) -> float:
        """The median of the first samples, at whatever speed of the core: what users get."""
        return round_to_four_digits(statistics.median(each.first_us for each in self.rounds))

    @property
    def halves_us(self) -> tuple[float, float] | None:
        """Two latencies in ascending order that tell how precisely the latency is known.

        They are those of every other round that counts, and of the rest; None for one round.
        """
        if len(self.counted_us) < 2:
            return None
        first, second = (fastest_us(self.counted_us[start::2]) for start in (0, 1))
        return min(first, second), max(first, second)

    @property
    def interval_us(self) -> tuple[float, float]:
        """Limits of the latency at full speed.

        They are `halves_us`. A disturbed latency is the upper limit; the lower one is what would be
        left of it if the core had slowed it as much as the readings.
        """
        if self.is_disturbed:
            assert self.full_us is not None
            factor = min(each.reading_us or self.full_us for each in self.rounds) / self.full_us
            return round_to_four_digits(self.fastest_us / factor), self.fastest_us
        return self.halves_us or (self.fastest_us, self.fastest_us)

    def agrees(self, tolerance: float = RETIMING_TOLERANCE) -> bool:
        """Return whether a second round confirms the latency of the fastest rounds.

        Args:
            tolerance: largest difference of the two, as a fraction.
        """
        fastest, *slower = sorted(self.counted_us)[len(self.counted_us) // ROUNDS_PER_OUTLIER :]
        return bool(slower) and slower[0] <= (1 + tolerance) * fastest

    def is_complete(self, fewest: int, tolerance: float = RETIMING_TOLERANCE) -> bool:
        """Return whether no further timing is needed.

        None is after `fewest` rounds at full speed if these agree, and after `MAX_ROUNDS`.
        """
        if len(self.rounds) >= max(fewest, MAX_ROUNDS):
            return True
        return len(self.undisturbed) >= fewest and self.agrees(tolerance)

    def status(
        self, tolerance: float = RETIMING_TOLERANCE
    ) -> Literal["ok", "unstable", "disturbed"]:
        """Return how much the latency is worth: `unstable` if its rounds do not agree."""
        if self.is_disturbed:
            return "disturbed"
        return "ok" if self.agrees(tolerance) else "unstable"


def readings_us(rounds: Iterable[Round]) -> list[float]:
    """Return the readings of the rounds that have one."""
    return [each.reading_us for each in rounds if each.reading_us is not None]


def full_speed_us(rounds: Iterable[Round], known_us: float | None = None) -> float | None:
    """Return the duration of a reading at full speed, from rounds of whatever was timed.

    Args:
        rounds: the rounds.
        known_us: the one of other rounds, if there were some.

    Returns:
        That of the fastest `nas.latency.core_speed.FASTEST_SHARE` of the readings, or `known_us` if
        that is faster; None if there are neither.
    """
    own = readings_us(rounds)
    if not own:
        return known_us
    fastest_us = round_to_four_digits(float(np.quantile(own, FASTEST_SHARE)))
    return fastest_us if known_us is None else min(fastest_us, known_us)


class Slowdown(NamedTuple):
    """How much slower than in the fastest rounds a machine was.

    Attributes:
        typical: median over all that was timed of its typical over its fastest latency.
        high: the 95% quantile over all rounds of the latency over the fastest one; None of too few
            rounds, see `nas.statistics.has_tail`.
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
            [each.first_us / latency.fastest_us for each in latency.rounds]
            for latency in latencies
            if len(latency.rounds) > 1
        ]
        if not ratios:
            return None
        typical = statistics.median(map(statistics.median, ratios))
        return cls(typical, tail_quantile([each for own in ratios for each in own], 0.95))

    @property
    def text(self) -> str:
        """A clause that follows the name of what was timed."""
        text = f"typically took {self.typical:.2f} times as long as in the fastest rounds"
        if self.high is not None:
            text += f", and {self.high:.2f} times or more in the slowest 5% of all samples"
        return text
