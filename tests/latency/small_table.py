"""A table with all dispatch costs and the three kernels of one graph."""

from __future__ import annotations

import json
from typing import Any

from nas.kernels.kernel import Kernel
from nas.latency import Correction, LatencyTable, Prediction
from nas.latency.check import CheckedNetwork
from nas.latency.record import Record
from nas.latency.rounds import Latency
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_space
from tests.latency.example_graphs import three_kernels
from tests.latency.fake_runtime import latency_us

GRAPH = three_kernels()

KERNEL = TvmRuntime().kernels(GRAPH)[0]

SPACE = load_space("mobilenet_tiny", image_size=8, channels=1)

FIRST = 1 + len(TvmRuntime.capabilities.dispatch_parts) + 1
"""Line of the first kernel, after the header and the dispatch costs."""

SECOND = FIRST + 1
AFTER = FIRST + 3
"""Line after the last one."""


def timed(kernel: Kernel) -> Record:
    timing = Timing((latency_us(kernel),) * 10)
    return Record.from_timings("kernel", [timing], name=kernel.text, schedule={"tile": 1})


def edit(table: LatencyTable, line: int, **changes: Any) -> None:
    lines = table.path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **changes})
    table.path.write_text("\n".join(lines) + "\n")


def correction(factor: float = 1.0, **changes: Any) -> Correction:
    """Return a correction of kernels and dispatch costs alike, whose other fields are made up."""
    values: dict[str, Any] = {
        "kernel_factor": factor, "dispatch_factor": factor,
        "nets": 8, "mape_before": 0.5, "mape_after": 0.01,
    }  # fmt: skip
    return Correction(**{**values, **changes})


def checked(
    predicted_us: float, *measured_us: float, dispatch_us: float = 0.0, **changes: Any
) -> CheckedNetwork:
    """Return a network of one kernel with made-up latencies in some rounds."""
    kernels, kernels_us = (KERNEL,), (predicted_us - dispatch_us,)
    prediction = Prediction(
        predicted_us, kernels, kernels_us, dispatch_us, 0, uncorrected_us=predicted_us
    )
    latency = Latency([Timing((us,)) for us in measured_us])
    return CheckedNetwork(SPACE.smallest, prediction, latency, **changes)
