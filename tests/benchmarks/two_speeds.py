"""Errors of latencies on a simulated core with two speeds, with and without readings of its speed.

    python -m tests.benchmarks.two_speeds

Each workload is timed as networks are: at six moments, and then until they agree.
"""

from __future__ import annotations

import numpy as np
import pytest

from nas.latency.core_speed import CoreSpeed
from tests.latency.test_timing import latency_at_moments_us
from tests.latency.two_speeds import COMPUTE, MEMORY, TwoSpeedCore

WORKLOADS = ((5, COMPUTE), (50, COMPUTE), (50, MEMORY), (500, 1.4), (2000, 1.4), (8000, 1.5))
"""Microseconds at full speed, and the factor of the slow speed."""

SEEDS = 200


def errors(us: float, slow_factor: float, full_share: float, *, has_readings: bool) -> np.ndarray:
    """Return the relative error of a latency on each of `SEEDS` simulated cores."""
    measured = []
    for seed in range(SEEDS):
        with pytest.MonkeyPatch.context() as patch:
            core = TwoSpeedCore(seed, full_share)
            core.install(patch)
            if not has_readings:
                patch.setattr(CoreSpeed, "is_full", lambda self, *readings: True)
            measured.append(latency_at_moments_us(core.workload(us / 1e6, slow_factor)))
    return np.abs(np.array(measured) / us - 1)


def main() -> None:
    """Print a row for each workload."""
    print("| workload | idle | two speeds | two speeds, without readings |\n|---|---|---|---|")
    for us, factor in WORKLOADS:
        cells = [
            errors(us, factor, full_share, has_readings=has_readings)
            for full_share, has_readings in ((1.0, True), (0.25, True), (0.25, False))
        ]
        texts = [f"{100 * e.mean():.1f}, {100 * np.quantile(e, 0.9):.1f}" for e in cells]
        print(f"| {us} us, slowed {factor:g} times | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
