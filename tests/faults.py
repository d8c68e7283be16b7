"""`nas` on a device whose clock is arithmetic, so that runs compare to the digit.

    python -m tests.faults run job.toml --out out

Timing workers are real processes, and keep the processor busy.
"""

import nas.latency
from nas.cli import main
from tests.latency.fake_runtime import FakeRuntime

SECONDS_PER_KERNEL = 0.02


def open_runtime(name: str, **settings: object) -> FakeRuntime:
    return FakeRuntime(seconds=SECONDS_PER_KERNEL)


nas.latency.open_runtime = open_runtime

if __name__ == "__main__":
    main()
