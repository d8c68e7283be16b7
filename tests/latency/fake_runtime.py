"""A runtime whose clock is arithmetic: builds of it are exact, and fast enough to kill."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nas.graph import Graph
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.timing import Timing, four_digits
from nas.runtimes.tvm import fusion


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


def latency_us(kernel: Kernel) -> float:
    return round(1 + kernel.macs / 1000, 1)


@dataclass
class FakeRuntime:
    """Kernels take `latency_us`; a launch 0.5 us, an invocation 2 us.

    `slowed` has, for some kernels, factors for their later timings; `dispatch_us` what else costs
    something beside the kernels.
    """

    fingerprint: Fingerprint = field(default_factory=device)
    broken: frozenset[str] = frozenset()
    seconds: float = 0.0
    timed: list[Kernel] = field(default_factory=list)
    retimed: list[Kernel] = field(default_factory=list)
    slowed: Mapping[str, Sequence[float]] = field(default_factory=dict)
    dispatch_us: Mapping[str, float] = field(default_factory=dict)
    name: str = "tvm"

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        return fusion.kernels(graph, batch)

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass
        self.timed.append(kernel)
        if kernel.text in self.broken:
            raise RuntimeError("the compiler\nsays no")
        return {"tile": 1}, Timing((latency_us(kernel),) * 10)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """By a factor for each time, where `slowed` has some for the kernel."""
        assert schedule == {"tile": 1}
        again = self.retimed.count(kernel)
        self.retimed.append(kernel)
        factors = self.slowed.get(kernel.text, ())
        factor = factors[again] if again < len(factors) else 1.0
        return Timing((four_digits(factor * latency_us(kernel)),) * 10)

    def time_dispatch(self) -> Mapping[str, Timing]:
        costs = dict.fromkeys(fusion.DISPATCH_PARTS, 30.0)
        costs |= {"launch": 0.5, "launch_2mib": 0.5, "invocation": 2.0, **self.dispatch_us}
        return {part: Timing((us,) * 10) for part, us in costs.items()}

    def compile(
        self, graph: Graph, schedules: Any, weights: Any = None, batch: int = 1
    ) -> FakeNetwork:
        return FakeNetwork(self.kernels(graph, batch), self.broken)


@dataclass
class FakeNetwork:
    """Takes a tenth longer than its kernels; one with a broken kernel cannot be timed."""

    launched: list[Kernel]
    broken: frozenset[str]

    def run(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a fake network computes nothing")

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        if any(kernel.text in self.broken for kernel in self.launched):
            raise RuntimeError("it crashed")
        return [1.1e-6 * sum(latency_us(kernel) for kernel in self.launched)] * samples
