"""Latency tables: time the kernels of a device once, predict networks from them, and check that.

Importing this package imports no runtime; a runtime is imported when it is opened.
"""

from nas.figures import Figure
from nas.kernels.kernel import Kernel
from nas.latency.build import build_table, space_kernels
from nas.latency.capabilities import Capabilities
from nas.latency.check import KernelCheck, TableCheck, check_kernels, check_table
from nas.latency.compare import Comparison, compare_tables, merge_tables
from nas.latency.correction import correct_after_build, correct_table, lacks_correction
from nas.latency.installed_runtimes import (
    available_runtimes,
    configured_runtime,
    open_runtime,
    runtime_names,
)
from nas.latency.networks import measure_networks
from nas.latency.prediction import Prediction
from nas.latency.record import Correction
from nas.latency.runtime import Runtime
from nas.latency.table import LatencyTable

__all__ = [
    "Capabilities",
    "Comparison",
    "Correction",
    "Figure",
    "Kernel",
    "KernelCheck",
    "LatencyTable",
    "Prediction",
    "Runtime",
    "TableCheck",
    "available_runtimes",
    "build_table",
    "check_kernels",
    "check_table",
    "compare_tables",
    "configured_runtime",
    "correct_after_build",
    "correct_table",
    "lacks_correction",
    "measure_networks",
    "merge_tables",
    "open_runtime",
    "runtime_names",
    "space_kernels",
]
