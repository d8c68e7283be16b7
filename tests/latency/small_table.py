"""A table with all dispatch costs and the three kernels of one graph."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from nas.latency import LatencyTable
from nas.latency.calibration import Calibration
from nas.latency.kernel import Kernel
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.example_graphs import three_kernels
from tests.latency.fake_runtime import latency_us

GRAPH = three_kernels()

FIRST = 1 + len(TvmRuntime.dispatch_parts) + 1
"""Line of the first kernel, after the header and the dispatch costs."""

SECOND = FIRST + 1
AFTER = FIRST + 3
"""Line after the last one."""


def timed(kernel: Kernel) -> Record:
    timing = Timing((latency_us(kernel),) * 10)
    return Record.from_timing("kernel", timing, name=kernel.text, schedule={"tile": 1})


def edit(table: LatencyTable, line: int, **changes: Any) -> None:
    lines = table.path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **changes})
    table.path.write_text("\n".join(lines) + "\n")


def calibration(slope: float, **changes: Any) -> dict[str, Any]:
    """Return the fields of a calibration that corrects the latencies of all networks."""
    fitted = Calibration(slope, 0.0, 1e-3, 1e6, 8, 0.5, 0.01, used=True)
    return {**asdict(fitted), **changes}
