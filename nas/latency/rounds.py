"""Timing in several rounds, and what follows from it: a latency, and how sure it is.

Kernels, networks and files are timed by one loop, `Rounds`, by one policy, `Policy`, and what is
known of each is one record, `Latency`.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from nas.errors import DeviceError, MeasurementError, first_line
from nas.latency import timing
from nas.latency.core_speed import FASTEST_SHARE, is_at_full_speed
from nas.latency.timing import Timing, round_to_four_digits
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


@dataclass(frozen=True)
class Policy:
    """When things that are timed in rounds are timed again.

    Args:
        fewest: rounds at full speed, at least.
        most: rounds after which things whose timings disagree are timed no more.
        tolerance: largest difference of two latencies that agree, as a fraction.
        together: whether all things are timed as long as the timings of one disagree, so that a
            slow minute of the machine meets all of them.
        in_turn: number of things that get their first rounds in turn, before the next ones do.
    """

    fewest: int
    most: int = MAX_ROUNDS
    tolerance: float = RETIMING_TOLERANCE
    together: bool = False
    in_turn: int = sys.maxsize


ONCE = Policy(1, 1)
"""One timing tells what others would."""


def fastest_us(rounds_us: Sequence[float]) -> float:
    """Return the latency in the fastest rounds, from the latencies in several rounds.

    Other work on the machine only adds time, so it is the fastest one, after one of each
    `ROUNDS_PER_OUTLIER` rounds is left out.

    Args:
        rounds_us: latencies of a kernel, network or file in microseconds, at least one.
    """
    return sorted(rounds_us)[len(rounds_us) // ROUNDS_PER_OUTLIER]


@dataclass(frozen=True)
class Latency:
    """The latency of a kernel, network or file, from several rounds.

    Args:
        rounds: the timings; none if it could not be timed, so that there is no latency.
        full_us: duration of a reading at full speed, see `full_speed_us`; None if it is not known.
        error: why it could not be timed, or not again.
    """

    rounds: Sequence[Timing]
    full_us: float | None = None
    error: str | None = None

    @property
    def undisturbed(self) -> Sequence[Timing]:
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
        """The latencies that count: those at full speed; all if there is none.

        Raises:
            MeasurementError: there is no timing.
        """
        if not self.rounds:
            raise MeasurementError(f"It could not be timed: {self.error}.")
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
        return round_to_four_digits(statistics.median(each.typical_us for each in self.rounds))

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

    def is_complete(self, policy: Policy) -> bool:
        """Return whether no further timing is needed.

        None is after the fewest rounds at full speed if these agree, and after the most rounds.
        """
        if len(self.rounds) >= max(policy.fewest, policy.most):
            return True
        if len(self.rounds) == policy.fewest == 1:
            return True
        return len(self.undisturbed) >= policy.fewest and self.agrees(policy.tolerance)

    def status(self, policy: Policy) -> Literal["ok", "unstable", "disturbed"]:
        """Return how much the latency is worth: `unstable` if its rounds do not agree.

        If one round is enough, its samples tell.
        """
        if self.is_disturbed:
            return "disturbed"
        if len(self.rounds) == policy.fewest == 1:
            return "unstable" if self.rounds[0].is_unstable else "ok"
        return "ok" if self.agrees(policy.tolerance) else "unstable"


def full_speed_us(
    readings_us: Iterable[float | None], known_us: float | None = None
) -> float | None:
    """Return the duration of a reading at full speed.

    Args:
        readings_us: readings beside timings of whatever was timed; None of timings without one.
        known_us: the one of other timings, if there were some.

    Returns:
        That of the fastest `nas.latency.core_speed.FASTEST_SHARE` of the readings, or `known_us` if
        that is faster; None if there are neither.
    """
    own = [each for each in readings_us if each is not None]
    if not own:
        return known_us
    fastest_us = round_to_four_digits(float(np.quantile(own, FASTEST_SHARE)))
    return fastest_us if known_us is None else min(fastest_us, known_us)


T = TypeVar("T", bound=Hashable)
R = TypeVar("R")

Take = Callable[[Sequence[T]], Iterable[tuple[T, Timing | Exception]]]
"""A function that times things once each. It yields each thing with its timing, or with the error
for which it has none."""


def outcome_of(call: Callable[..., R], *arguments: object) -> R | Exception:
    """Return the result of a call, or the error that it raises: a compiler may raise anything."""
    try:
        return call(*arguments)
    except Exception as error:
        return error
    except SystemExit as error:
        return MeasurementError(f"it called sys.exit({error.code!r})")


def one_at_a_time(call: Callable[[T], Timing]) -> Take[T]:
    """Return a function that times things one after the other with a function that times one."""
    return lambda things: ((thing, outcome_of(call, thing)) for thing in things)


class Rounds(Generic[T]):
    """Timings of several things, taken in rounds until those of each thing agree.

    The timings of one thing are `nas.latency.timing.SECONDS_BETWEEN_ROUNDS` apart, with those of
    the others in between. The error of a thing is its result: it is timed no more, and the others
    are. Only the error of a device ends all.

    Args:
        take: function that times things once each.
        policy: how often each is timed.
        full_speed: function that returns the reading at full speed, given all readings.
        known: timings that were taken before.
        end_s: when time is over, by the clock of `time.monotonic`: what has a timing gets no more.

    Attributes:
        timings: timings of each thing that has some.
        errors: error of each thing that could not be timed, or not again.
        full_us: reading at full speed, as far as it is known now.
        done: number of timings and errors.
    """

    def __init__(
        self,
        take: Take[T],
        policy: Policy,
        *,
        full_speed: Callable[[Iterable[float | None]], float | None] = full_speed_us,
        known: Mapping[T, Sequence[Timing]] | None = None,
        end_s: float = math.inf,
    ) -> None:
        self._take, self._policy, self._full_speed = take, policy, full_speed
        self._end_s, self._next_s = end_s, -math.inf
        self.timings = {thing: [*own] for thing, own in (known or {}).items()}
        self.errors: dict[T, Exception] = {}
        self.full_us: float | None = None
        self.done = 0
        self._left: dict[T, int] = {}

    def latency(self, thing: T) -> Latency:
        """Return the latency of a thing, judged by what is known now."""
        error = self.errors.get(thing)
        text = None if error is None else first_line(error)
        return Latency(tuple(self.timings.get(thing, ())), self.full_us, text)

    def incomplete(self, things: Iterable[T]) -> list[T]:
        """Return the things that need another timing, and have no error."""
        return [
            each
            for each in things
            if each not in self.errors and not self.latency(each).is_complete(self._policy)
        ]

    @property
    def total(self) -> int:
        """Number of timings and errors, as far as is known now; it grows if timings disagree."""
        if self.is_late:
            return self.done + sum(n > 0 and not self.timings.get(t) for t, n in self._left.items())
        return self.done + sum(self._left.values())

    def run(self, needed: Mapping[T, int]) -> Iterator[T]:
        """Time things, and yield each after every timing; `needed` is how often in any case."""
        self._left = dict(needed)
        self._judge()
        while True:
            things = [thing for thing, left in self._left.items() if left]
            for start in range(0, len(things), self._policy.in_turn):
                group = things[start : start + self._policy.in_turn]
                while group := list(filter(self._is_due, group)):
                    yield from self.round(group)
            incomplete = self.incomplete(needed)
            if not incomplete or self.is_late:
                return
            if self._policy.together:
                incomplete = [thing for thing in needed if thing not in self.errors]
            self._left = dict.fromkeys(incomplete, 1)

    def _is_due(self, thing: T) -> bool:
        return self._left[thing] > 0 and not (self.timings.get(thing) and self.is_late)

    @property
    def is_late(self) -> bool:
        """Whether time is over."""
        return time.monotonic() >= self._end_s

    def round(self, things: Sequence[T]) -> Iterator[T]:
        """Time things once each, and yield each after its timing.

        Raises:
            DeviceError: the device cannot be used, or is lost.
        """
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._next_s = time.monotonic() + timing.SECONDS_BETWEEN_ROUNDS
        for thing, outcome in self._take(things):
            if isinstance(outcome, DeviceError):
                raise outcome
            self._left[thing] = max(0, self._left.get(thing, 0) - 1)
            if isinstance(outcome, Timing):
                self.timings.setdefault(thing, []).append(outcome)
            else:
                self.errors[thing], self._left[thing] = outcome, 0
            self.done += 1
            yield thing
        self._judge()

    def _judge(self) -> None:
        self.full_us = self._full_speed(
            [each.reading_us for own in self.timings.values() for each in own]
        )


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
            [each.typical_us / latency.fastest_us for each in latency.rounds]
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
