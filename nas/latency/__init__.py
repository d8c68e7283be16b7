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
from nas.latency.runtime import available_runtimes, open_runtime
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
    "Verification",
    "available_runtimes",
    "build_table",
    "calibrate",
    "check_table",
    "compare",
    "measure_networks",
    "merge",
    "open_runtime",
    "space_kernels",
    "verify",
]
