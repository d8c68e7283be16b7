"""Timing of costs that are differences of other timings, such as that of launching a kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from nas.errors import MeasurementError
from nas.latency import processor_speed
from nas.latency.processor_speed import quiet_speed_us
from nas.latency.timing import (
    MAX_MOMENTS_FACTOR,
    Evaluate,
    Timing,
    median_seconds,
    quiet_quantile,
    references_us,
    round_to_four_digits,
    with_slowdowns,
)

MOMENTS = 18
"""Moments at which the components of a difference of timings are timed, at least."""

SAMPLES = 3
"""Samples of a cost that is a difference of timings, each without its share of the moments."""

SECONDS_BETWEEN_COMPONENTS = 0.1
"""Pause after the timings from which such a cost is worked out."""

SMALLEST_COST_S = 1e-9
"""Smallest of those costs that may be zero, such as that of a launch; less is noise around zero."""


def measure_differences(
    components: Mapping[str, Callable[[], float]],
    costs: Callable[[Mapping[str, float]], Mapping[str, float]],
    *,
    is_local: bool = True,
) -> dict[str, Timing]:
    """Time costs that are differences of other timings, at the quiet speed of the processor.

    The components are timed in turn at many moments, each with the reference workload beside it,
    since a neighbour on the core comes and goes within a moment. The latency of a component follows
    from all its timings (`with_slowdowns`, `latency_at_quiet_speed`): a difference of timings of
    one moment would be wrong by as much as that moment slows one of them. Each of
    `SAMPLES` samples leaves out its share of the moments (the delete-a-group jackknife).
    There are more moments while the slowdown of less than half of the timings is known, and while
    a sample of a cost is not above zero.

    Args:
        components: functions that return seconds, by name.
        costs: function of the seconds of all components that returns seconds by name of the cost.
        is_local: whether the seconds are of this machine's processor, see `measure`.

    Returns:
        The timings by name of the cost. Their `reference_us` is that at the quiet speed.

    Raises:
        MeasurementError: a sample is not above zero after the largest number of moments.
    """
    timed: dict[str, list[Timing]] = {name: [] for name in components}
    quiet_us = math.inf
    samples: Sequence[Mapping[str, float]] = ()
    for moment in range(1, 1 + MAX_MOMENTS_FACTOR * MOMENTS):
        before_us = processor_speed.reference_us() if is_local else None
        for name, take in components.items():
            microseconds = 1e6 * take()
            after_us = processor_speed.reference_us() if is_local else None
            beside_us = before_us and after_us and max(before_us, after_us)
            timed[name].append(Timing((microseconds,), reference_us=beside_us))
            before_us = after_us
        references = [us for own in timed.values() for us in references_us(own)]
        quiet_us = quiet_speed_us(references)
        known = sum(processor_speed.slowdown(us, quiet_us) is not None for us in references)
        is_enough = 2 * known >= MOMENTS * len(components) or not is_local
        if moment >= MOMENTS:
            samples = _samples(timed, quiet_us, costs)
            if is_enough and all(min(sample.values()) > 0 for sample in samples):
                break
        time.sleep(SECONDS_BETWEEN_COMPONENTS)
    reference = round_to_four_digits(quiet_us) if is_local else None
    return {
        name: replace(timing, reference_us=reference)
        for name, timing in _cost_timings(samples).items()
    }


def _samples(
    timed: Mapping[str, Sequence[Timing]],
    quiet_us: float,
    costs: Callable[[Mapping[str, float]], Mapping[str, float]],
) -> list[Mapping[str, float]]:
    """Return the costs in seconds without each share of the moments.

    Args:
        timed: timings of each component, one a moment.
        quiet_us: duration of the reference workload at the quiet speed.
        costs: see `measure_differences`.
    """
    timings = dict(zip(timed, with_slowdowns([*timed.values()], quiet_us), strict=True))
    samples = []
    for left_out in range(SAMPLES):
        latencies = {}
        for name, own in timings.items():
            counted = [each for at, each in enumerate(own) if at % SAMPLES != left_out]
            # Differences need more than the four digits of a latency.
            latencies[name] = 1e-6 * quiet_quantile(
                [each.samples_us[0] / (each.slowdown or 1.0) for each in counted],
                [each.slowdown for each in counted],
            )
        samples.append(costs(latencies))
    return samples


def _cost_timings(samples: Sequence[Mapping[str, float]]) -> dict[str, Timing]:
    """Return the timing of each cost from its samples in seconds.

    Raises:
        MeasurementError: a sample is not above zero.
    """
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
    """Return functions that return `median_seconds` of the present moment, by the same names."""
    return {name: partial(median_seconds, evaluate, calls) for name, evaluate in evaluators.items()}
