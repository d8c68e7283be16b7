"""Latency tables: kernels timed once a device, networks predicted from them, checked whole.

Importing this imports no runtime; a runtime is imported when it is opened.
"""

from nas.latency.build import BuildResult, Progress, build_table, space_kernels
from nas.latency.calibration import Calibration, calibrate
from nas.latency.check import Check, check_table
from nas.latency.comparison import Comparison, compare
from nas.latency.kernel import Kernel
from nas.latency.merge import Merged, merge
from nas.latency.networks import NetworkTiming, measure_networks
from nas.latency.prediction import Prediction
from nas.latency.runtime import (
    Runtime,
    available_runtimes,
    configured_runtime,
    open_runtime,
    runtime_names,
)
from nas.latency.table import LatencyTable
from nas.latency.verify import Verification, verify

__all__ = [
    "BuildResult",
    "Calibration",
    "Check",
    "Comparison",
    "Kernel",
    "LatencyTable",
    "Merged",
    "NetworkTiming",
    "Prediction",
    "Progress",
    "Runtime",
    "Verification",
    "available_runtimes",
    "build_table",
    "calibrate",
    "check_table",
    "compare",
    "configured_runtime",
    "measure_networks",
    "merge",
    "open_runtime",
    "runtime_names",
    "space_kernels",
    "verify",
]
