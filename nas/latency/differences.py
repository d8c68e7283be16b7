"""Timing of costs that are differences of other timings, such as that of launching a kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

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
    There are more moments if the slowdown of less than half of the timings is known.

    Args:
        components: functions that return seconds, by name.
        costs: function of the seconds of all components that returns seconds by name of the cost.
        is_local: whether the seconds are of this machine's processor, see `measure`.

    Returns:
        The timings by name of the cost. Their `reference_us` is that at the quiet speed.

    Raises:
        MeasurementError: a sample is not above zero.
    """
    timed: dict[str, list[Timing]] = {name: [] for name in components}
    quiet_us = math.inf
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
        if moment >= MOMENTS and is_enough:
            break
        time.sleep(SECONDS_BETWEEN_COMPONENTS)
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
    reference = round_to_four_digits(quiet_us) if is_local else None
    return {
        name: replace(
            Timing.from_seconds([sample[name] for sample in samples]), reference_us=reference
        )
        for name in samples[0]
    }


def median_timers(evaluators: Mapping[str, Evaluate], calls: int) -> dict[str, Callable[[], float]]:
    """Return functions that return `median_seconds` of the present moment, by the same names."""
    return {name: partial(median_seconds, evaluate, calls) for name, evaluate in evaluators.items()}
