"""Latency tables: time the kernels of a device once, predict networks from them, and check that.

Importing this package imports no runtime; a runtime is imported when it is opened.
"""

from nas.latency.build import BuildProgress, BuildResult, build_table, space_kernels
from nas.latency.calibration import (
    Calibration,
    calibrate_after_build,
    calibrate_table,
    calibration_summary,
    calibration_text,
    lacks_calibration,
)
from nas.latency.check import check_table
from nas.latency.check_result import TableCheck
from nas.latency.comparison import Comparison, compare_tables
from nas.latency.installed_runtimes import (
    available_runtimes,
    configured_runtime,
    open_runtime,
    runtime_names,
)
from nas.latency.kernel import Kernel
from nas.latency.merge import MergeResult, merge_tables
from nas.latency.networks import NetworkTimings, measure_networks
from nas.latency.prediction import Prediction
from nas.latency.runtime import Runtime
from nas.latency.table import LatencyTable
from nas.latency.verify import Verification, verify_table

__all__ = [
    "BuildProgress",
    "BuildResult",
    "Calibration",
    "Comparison",
    "Kernel",
    "LatencyTable",
    "MergeResult",
    "NetworkTimings",
    "Prediction",
    "Runtime",
    "TableCheck",
    "Verification",
    "available_runtimes",
    "build_table",
    "calibrate_after_build",
    "calibrate_table",
    "calibration_summary",
    "calibration_text",
    "check_table",
    "compare_tables",
    "configured_runtime",
    "lacks_calibration",
    "measure_networks",
    "merge_tables",
    "open_runtime",
    "runtime_names",
    "space_kernels",
    "verify_table",
]
