"""How well the latency of a network is known, if it is timed again a minute later.

    python -m tests.benchmarks.repeated_timings [--minutes 3]

Times eight networks of three runtimes in turn, again and again. Groups of consecutive timings, as
many as a check would take, give a latency of each network by different rules:

    fastest          the fastest of ten timings or more, of which three have a known slowdown
    quartile         the lower quartile of the timings with a known slowdown, six or more
    ... / clock      the same, with each timing divided by the slowdown of the reference workload
    ... / followed   the same, with each timing divided by as much of that slowdown as the timings
                     of the group follow, see `nas.latency.processor_speed.sensitivity`

Printed are standard deviations from group to group: `all alike` of the mean over the networks, as
much as predictions of a table would seem to be wrong, and `each more` of what is left for a
network. The last row is the rule of `nas.latency.timing.latency_at_quiet_speed`. Run it on a
machine that does nothing else; its neighbours on the same host, and its clock, are what is
measured.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from nas.console import print_table
from nas.latency import networks, open_runtime, processor_speed, timing
from nas.latency.timing import Timing
from nas.space import load_space

SETTINGS = (
    ("tvm", "float32", "squeezenet_tiny"),
    ("tvm", "float32", "mobilenet_tiny"),
    ("onnxruntime", "float32", "squeezenet_tiny"),
    ("litert", "int8", "mobilenet_tiny"),
)
NETWORKS, IMAGE_SIZE = 2, 32
SECONDS_BETWEEN_MOMENTS = 0.3
GROUP_STEP = 10
"""Moments from the start of one group to that of the next."""

Divide = Callable[[Sequence[Sequence[Timing]], float], Sequence[Sequence[Timing]]]
"""A function of the timings of each network and of the duration of the reference workload at the
quiet speed, that returns the timings with the slowdowns by which they are divided."""


def fastest_us(timings: Sequence[Timing]) -> float:
    return min(each.latency_us for each in timings)


def undivided(series: Sequence[Sequence[Timing]], quiet_us: float) -> list[list[Timing]]:
    return [
        [replace(t, slowdown=t.slowdown and 1.0) for t in own]
        for own in timing.with_slowdowns(series, quiet_us)
    ]


def divided(series: Sequence[Sequence[Timing]], quiet_us: float) -> list[list[Timing]]:
    return [[each.with_slowdown(quiet_us) for each in own] for own in series]


RULES: tuple[tuple[str, int, Divide, Callable[[Sequence[Timing]], float]], ...] = tuple(
    (name + suffix, wanted, divide, rule)
    for name, wanted, rule in (
        ("fastest", 3, fastest_us),
        ("quartile", timing.MIN_UNDISTURBED, timing.latency_at_quiet_speed),
    )
    for suffix, divide in (
        ("", undivided),
        (" / clock", divided),
        (" / followed", timing.with_slowdowns),
    )
)
"""Names, the timings with a known slowdown that a rule wants, what divides the timings, and the
function of a group's timings."""


def take(minutes: float) -> list[list[Timing]]:
    """Return the timings of each network, of the same moments."""
    evaluators = []
    for name, dtype, space_name in SETTINGS:
        runtime = open_runtime(name, dtype=dtype)
        space, rng = load_space(space_name, image_size=IMAGE_SIZE), np.random.default_rng(0)
        for _ in range(NETWORKS):
            graph = space.sample(rng, uniform_over="choices").graph
            schedules = runtime.timer._first_schedules(graph) if name == "tvm" else {}
            evaluators.append(runtime.compile(graph, schedules).evaluate)
    series: list[list[Timing]] = [[] for _ in evaluators]
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        with timing.pinned(1):
            for own, evaluate in zip(series, evaluators, strict=True):
                own.append(timing.measure(evaluate, networks.SAMPLE_SECONDS))
        time.sleep(SECONDS_BETWEEN_MOMENTS)
    return series


def group(timings: Sequence[Timing], start: int, wanted: int) -> Sequence[Timing]:
    """Return as many timings as a check would take that wants so many of known slowdown."""
    for end in range(start + networks.MIN_TIMINGS, start + networks.MAX_TIMINGS + 1):
        own = timings[start:end]
        known = sum(each.slowdown is not None for each in own)
        if known >= wanted and timing.timings_agree(own):
            break
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    options = parser.parse_args()
    series = take(options.minutes)
    quiet_us = processor_speed.quiet_speed_us(
        [us for own in series for us in timing.references_us(own)]
    )
    series = divided(series, quiet_us)
    starts = range(0, len(series[0]) - networks.MAX_TIMINGS, GROUP_STEP)
    rows = []
    for name, wanted, divide, rule in RULES:
        groups = [
            divide([group(own, start, wanted) for own in series], quiet_us) for start in starts
        ]
        logs = np.array([[math.log(rule(own)) for own in row] for row in groups])
        logs -= logs.mean(axis=0)
        alike = logs.mean(axis=1)
        rows.append(
            (
                name,
                f"{alike.std():.2%}",
                f"{np.abs(alike).max():.2%}",
                f"{(logs - alike[:, None]).std():.2%}",
                f"{np.mean([len(own) for row in groups for own in row]):.0f}",
            )
        )
    pairs = [[(float(np.median(t.samples_us)), t.reference_us) for t in own] for own in series]
    print(
        f"{len(series[0])} moments, {len(starts)} groups of {len(series)} networks, which follow "
        f"the slowdown to {processor_speed.sensitivity(pairs, quiet_us):.2f}"
    )
    print_table(["latency", "all alike", "largest", "each more", "timings"], rows)


if __name__ == "__main__":
    main()
