"""Timing in few rounds and without pauses, in the processes of the tests and in their workers."""

from pkgutil import resolve_name

import pytest

from nas.latency import worker_process
from nas.latency.core_scheduling import CorePlan
from nas.latency.core_speed import CoreSpeed
from nas.latency.device import Fingerprint
from nas.latency.runtime import Runtime
from tests.capabilities import change

_open_runtime = worker_process._open_runtime


class FullSpeed(CoreSpeed):
    """A core that always runs at full speed, so that no timing waits for it."""

    def read(self) -> float:
        return 1e-5

    def is_full(self, *readings: float) -> bool:
        return True


RUNTIMES = (
    "tvm.runtime.TvmRuntime",
    "tvm.kit.runtime.KitRuntime",
    "onnxruntime.runtime.OnnxRuntime",
    "litert.runtime.LiteRt",
)


def apply(patch: pytest.MonkeyPatch) -> None:
    """Time in few rounds and without pauses; many are for a device that others use as well."""
    patch.setattr("nas.latency.timing._SPEED", FullSpeed())
    patch.setattr("nas.latency.timing.SECONDS_BETWEEN_ROUNDS", 0.0)
    patch.setattr("nas.latency.rounds.ROUNDS", 2)
    patch.setattr("nas.run.measurements.ROUNDS", 2)
    patch.setattr("nas.latency.repeated_kernels.ROUNDS", 2)
    patch.setattr("nas.latency.differences.SECONDS_BETWEEN_COMPONENTS", 0.0)
    patch.setattr("nas.latency.differences.ROUNDS", 6)
    patch.setattr("nas.latency.build.CURVE_ROUNDS", 2)
    for name in RUNTIMES:
        change(patch, resolve_name(f"nas.runtimes.{name}"), rounds=2)
    patch.setattr("nas.latency.worker_process._open_runtime", open_runtime)


def open_runtime(runtime: Runtime, plan: CorePlan | None) -> Fingerprint:
    """Open a runtime in a timer's process, in which nothing is patched yet."""
    apply(pytest.MonkeyPatch())
    return _open_runtime(runtime, plan)
