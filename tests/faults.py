"""Runs `nas` with a device whose latencies are computed, so that runs can be compared exactly.

    python -m tests.faults run job.toml --out out

The timing workers are real processes that use the processor. No reading says that a core of this
machine is slowed.
"""

import nas.latency
from nas.cli import main
from nas.latency import timing
from tests.latency.fake_runtime import FakeRuntime
from tests.quick_timing import FullSpeed

SECONDS_PER_KERNEL = 0.02


def open_runtime(name: str, **settings: object) -> FakeRuntime:
    return FakeRuntime(seconds=SECONDS_PER_KERNEL)


nas.latency.open_runtime = open_runtime
timing._SPEED = FullSpeed()

if __name__ == "__main__":
    main()
