"""Latency tables: kernels timed once a device, networks predicted from them, checked whole.

Importing this imports no runtime; a runtime is imported when it is opened.
"""

from nas.latency.build import BuildResult, Progress, build_table, space_kernels
from nas.latency.calibration import Calibration, calibrate
from nas.latency.check import Check, NetworkTiming, check_table, measure_networks
from nas.latency.comparison import Comparison, compare
from nas.latency.kernel import Kernel
from nas.latency.runtimes import available_runtimes, open_runtime
from nas.latency.table import LatencyTable, Prediction

__all__ = [
    "BuildResult",
    "Calibration",
    "Check",
    "Comparison",
    "Kernel",
    "LatencyTable",
    "NetworkTiming",
    "Prediction",
    "Progress",
    "available_runtimes",
    "build_table",
    "calibrate",
    "check_table",
    "compare",
    "measure_networks",
    "open_runtime",
    "space_kernels",
]
