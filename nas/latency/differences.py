"""Timing of costs that are differences of other timings, such as that of launching a kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nas.errors import MeasurementError
from nas.latency.rounds import fastest_us
from nas.latency.timing import Evaluate, Timing, median_seconds

ROUNDS = 18
"""Rounds at which the components of a difference of timings are timed, at least."""

MAX_ROUNDS = 72
"""Rounds after which a cost that is not above zero is an error."""

SAMPLES = 3
"""Samples of a cost that is a difference of timings, each without its share of the rounds."""

SECONDS_BETWEEN_COMPONENTS = 0.1
"""Pause after the timings from which such a cost is worked out."""

SMALLEST_COST_S = 1e-9
"""Smallest of those costs that may be zero, such as that of a launch; less is noise around zero."""


def measure_differences(
    components: Mapping[str, Callable[[], float]],
    costs: Callable[[Mapping[str, float]], Mapping[str, float]],
) -> dict[str, Timing]:
    """Time costs that are differences of other timings.

    The components are timed in turn in many rounds, and the latency of each follows from all its
    rounds (`nas.latency.rounds.fastest_us`): a difference of timings of one round would be wrong
    by as much as that round slows one of them. Each of `SAMPLES` samples leaves out its share of
    the rounds (the delete-a-group jackknife). There are more rounds while a sample of a cost is
    not above zero.

    Args:
        components: functions that return seconds, by name.
        costs: function of the seconds of all components that returns seconds by name of the cost.

    Returns:
        The timings by name of the cost.

    Raises:
        MeasurementError: a sample is not above zero after the largest number of rounds.
    """
    rounds: list[dict[str, float]] = []
    while True:
        rounds.append({name: take() for name, take in components.items()})
        if len(rounds) >= ROUNDS:
            try:
                return cost_timings(rounds, costs)
            except MeasurementError:
                if len(rounds) >= MAX_ROUNDS:
                    raise
        time.sleep(SECONDS_BETWEEN_COMPONENTS)


def cost_timings(
    rounds: Sequence[Mapping[str, float]],
    costs: Callable[[Mapping[str, float]], Mapping[str, float]],
) -> dict[str, Timing]:
    """Return costs that are differences of timings that were taken, see `measure_differences`.

    Args:
        rounds: seconds of each component in each round, by name; `ROUNDS` or more.
        costs: see `measure_differences`.

    Raises:
        MeasurementError: a sample of a cost is not above zero.
    """
    shares = (
        [each for at, each in enumerate(rounds) if at % SAMPLES != left_out]
        for left_out in range(SAMPLES)
    )
    samples = [
        costs({name: fastest_us([each[name] for each in share]) for name in share[0]})
        for share in shares
    ]
    timings = {}
    for name in samples[0]:
        seconds = [sample[name] for sample in samples]
        if min(seconds) <= 0:
            values = ", ".join(f"{1e6 * value:.4g}" for value in seconds)
            raise MeasurementError(
                f"The dispatch cost {name!r} is a difference of timings that must be above zero, "
                f"but it came out as {values} us: other work on the machine changes the timings by "
                "more than the cost.",
                remedy="Run it again on an idle machine; what the table has is not timed again.",
            )
        timings[name] = Timing.from_seconds(seconds)
    return timings


def median_timers(evaluators: Mapping[str, Evaluate], calls: int) -> dict[str, Callable[[], float]]:
    """Return functions that return `median_seconds` of the present round, by the same names."""
    return {name: partial(median_seconds, evaluate, calls) for name, evaluate in evaluators.items()}
