"""A runtime that computes latencies instead of measuring them, so that builds are exact."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.device import Fingerprint
from nas.latency.runtime import CompiledNetwork, KernelTimer
from nas.latency.timing import Timing, round_to_four_digits
from nas.runtimes.tvm.runtime import TvmRuntime


def use_fake_device(
    patch: pytest.MonkeyPatch, runtime: Callable[..., FakeRuntime] | None = None
) -> None:
    """Let jobs compute latencies instead of measuring them, without processes.

    Args:
        patch: fixture or context that undoes it.
        runtime: returns the runtime for the settings of a device; a `FakeRuntime` by default.
    """

    make = runtime or (lambda threads=1, **settings: FakeRuntime(device(threads=threads)))
    patch.setattr("nas.latency.open_runtime", lambda name, **settings: make(**settings))
    for module in ("nas.job.stages", "nas.latency.worker_process"):
        patch.setattr(f"{module}.timers_for", lambda runtime: nullcontext([runtime]))


def device(**changes: Any) -> Fingerprint:
    values: dict[str, Any] = {
        "processor": "Test CPU 1-2-3",
        "features": ("avx2", "fma"),
        "runtime": "tvm",
        "versions": {"apache-tvm": "0.27", "kernels": "1"},
        "target": "cpu",
        "dtype": "float32",
        "threads": 1,
        "recorded": {"system": "test"},
    }
    return Fingerprint(**{**values, **changes})


DEVICE = device()


def latency_us(kernel: Kernel) -> float:
    return round(1 + kernel.macs / 1000, 1)


def _rebuild(cls: type[FakeRuntime], state: dict[str, Any]) -> FakeRuntime:
    runtime = cls.__new__(cls)
    runtime.__dict__.update(state)
    return runtime


@dataclass
class FakeRuntime(TvmRuntime, KernelTimer):
    """A runtime whose kernels take `latency_us`, a launch 0.5 us and an invocation 2 us.

    It is its own timer.

    Args:
        fingerprint: fingerprint of the device.
        broken: texts of kernels that cannot be compiled.
        seconds: seconds that a kernel takes to time.
        timed: kernels that were timed for the first time.
        retimed: kernels that were timed again.
        slowed: factors of the second and later timings of some kernels, by their texts.
        dispatch_us: dispatch costs that differ from the default.
    """

    fingerprint: Fingerprint = DEVICE  # type: ignore[assignment]
    broken: frozenset[str] = frozenset()
    seconds: float = 0.0
    timed: list[Kernel] = field(default_factory=list)
    retimed: list[Kernel] = field(default_factory=list)
    slowed: Mapping[str, Sequence[float]] = field(default_factory=dict)
    dispatch_us: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.__dict__)

    def open(self) -> None:
        """Do nothing: there is no device."""

    def release(self) -> None:
        """Do nothing: there is no device."""

    @property
    def devices(self) -> list[Self]:
        return [self]

    def timing_context(self) -> AbstractContextManager[None]:
        return nullcontext()

    @property
    def timer(self) -> FakeRuntime:  # type: ignore[override]
        return self

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        time.sleep(self.seconds)
        self.timed.append(kernel)
        if kernel.text in self.broken:
            raise RuntimeError("the compiler\nsays no")
        return {"tile": 1}, Timing((latency_us(kernel),) * 10)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """Return the latency, multiplied by the next factor of `slowed`."""
        assert schedule == {"tile": 1}
        again = self.retimed.count(kernel)
        self.retimed.append(kernel)
        factors = self.slowed.get(kernel.text, ())
        factor = factors[again] if again < len(factors) else 1.0
        return Timing((round_to_four_digits(factor * latency_us(kernel)),) * 10)

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Return all parts, so that there is no miss curve to time."""
        costs = {
            **dict.fromkeys(self.capabilities.dispatch_parts, 30.0),
            "launch": 0.5,
            "invocation": 2.0,
        }
        return {part: Timing((us,) * 10) for part, us in {**costs, **self.dispatch_us}.items()}

    def compile(
        self, graph: Graph, schedules: Any, weights: Any = None, batch: int = 1
    ) -> FakeNetwork:
        return FakeNetwork(self.kernels(graph, batch), self.broken)


@dataclass
class FakeNetwork(CompiledNetwork):
    """A network that takes 10% longer than its kernels; broken kernels break it."""

    launched: list[Kernel] = field(default=())  # type: ignore[assignment]
    broken: frozenset[str] = frozenset()

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        if any(kernel.text in self.broken for kernel in self.launched):
            raise RuntimeError("it crashed")
        return [1.1e-6 * sum(latency_us(kernel) for kernel in self.launched)] * samples
