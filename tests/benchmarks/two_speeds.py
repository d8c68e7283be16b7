"""Errors of latencies on a core with two speeds, and what each rule of timing is worth there.

    python -m tests.benchmarks.two_speeds

Workloads are timed on simulated cores, and recorded tables (`tests/golden`) are built on them: a
correction is fitted on some recorded networks, and the others are checked twenty minutes later.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from nas.latency import core_speed, rounds
from nas.latency.core_speed import CoreSpeed
from nas.latency.rounds import Latency
from tests.golden import disturbed
from tests.golden.latency import FOLDER, Recording
from tests.latency.test_rounds import timed_on
from tests.latency.two_speeds import COMPUTE, MEMORY, TwoSpeedCore

WORKLOADS = ((5, COMPUTE), (50, COMPUTE), (50, MEMORY), (500, 1.4), (2000, 1.4), (8000, 1.5))
"""Microseconds at full speed, and the factor of the slow speed."""

SEEDS = 100

ABLATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "as it is": lambda patch: None,
    "without readings": lambda patch: _without_readings(patch),
    "rounds need not agree": lambda patch: patch.setattr(
        Latency, "agrees", lambda self, tolerance=0.0: True
    ),
    "the fastest round": lambda patch: patch.setattr(rounds, "ROUNDS_PER_OUTLIER", 1000),
    "the median round": lambda patch: patch.setattr(rounds, "fastest_us", statistics.median),
}


def _without_readings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CoreSpeed, "is_full", lambda self, *readings: True)
    patch.setattr(core_speed, "FULL_SPEED_TOLERANCE", np.inf)


def workload_row(us: float, factor: float) -> list[str]:
    """Return the errors of a workload on idle cores and on cores with two speeds."""
    cells = []
    for full_share, ablation in ((1.0, "as it is"), (0.25, "as it is"), (0.25, "without readings")):
        ratios = []
        for seed in range(SEEDS):
            with pytest.MonkeyPatch.context() as patch:
                core = TwoSpeedCore(seed, full_share)
                disturbed.play(core, patch)
                ABLATIONS[ablation](patch)
                latency = timed_on(core, core.workload(us / 1e6, factor), core.full_us)
                ratios.append(None if latency.is_disturbed else latency.fastest_us / us)
        cells.append(error_text(ratios))
    return cells


def error_text(ratios: Sequence[float | None]) -> str:
    """Return mean and 90% quantile of errors in percent, and the share that is disturbed.

    Args:
        ratios: latencies over the right ones; None for a disturbed one.
    """
    errors = [abs(each - 1) for each in ratios if each is not None]
    share = 1 - len(errors) / len(ratios)
    return f"{100 * np.mean(errors):.1f}, {100 * np.quantile(errors, 0.9):.1f}, {share:.0%}"


def table_row(
    recording: Recording, full_share: float, ablation: str, cores: int, fewest_rounds: int
) -> str:
    """Return what becomes of a recorded table on some cores as a cell."""
    rows = []
    for seed in range(cores):
        with pytest.MonkeyPatch.context() as patch:
            ABLATIONS[ablation](patch)
            core = TwoSpeedCore(seed, full_share)
            rows.append(disturbed.checked_later(core, patch, recording, fewest_rounds))
    error, tau, uncorrected, stated, seconds, _ = np.array(rows).T
    covered = np.mean(stated >= error)
    return (
        f"{100 * error.mean():.2f} ({100 * uncorrected.mean():.2f}), {tau.mean():.3f}, "
        f"{covered:.0%} below {100 * stated.mean():.1f}, {seconds.mean():.0f} s"
    )


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=20, help="simulated cores of each table")
    arguments = parser.parse_args()
    print_row("workload", "idle", "two speeds", "two speeds, without readings")
    for us, factor in WORKLOADS:
        print_row(f"{us} us, slowed {factor:g} times", *workload_row(us, factor))
    recordings = {path.name.partition(".")[0]: path for path in sorted(FOLDER.glob("*.gz"))}
    for full_share, machine in ((1.0, "idle"), (0.25, "two speeds")):
        print_row(machine, *recordings)
        rows = [(name, name, 4) for name in ABLATIONS]
        rows += [(f"{count} rounds", "as it is", count) for count in (3, 6)]
        for name, ablation, count in rows:
            cells = [
                table_row(Recording.load(path), full_share, ablation, arguments.cores, count)
                for path in recordings.values()
            ]
            print_row(name, *cells)


if __name__ == "__main__":
    main()
