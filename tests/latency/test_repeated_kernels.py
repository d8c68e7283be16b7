"""Timing kernels among copies of themselves, with a clock that knows what everything costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager

import pytest

from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import timing
from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB
from nas.latency.differences import SMALLEST_COST_S
from nas.latency.repeated_kernels import (
    DISPATCH_PARTS,
    RepeatedKernelTimer,
)
from nas.latency.runtime import CompiledNetwork, Schedule
from nas.latency.timing import Evaluate

CALL_S, TINY_NODE_S, KERNEL_S, LAUNCH_S = 5e-6, 2e-7, 3e-6, 4e-7
READER_S, COLD_S = 7e-6, 2e-6

KERNEL = Kernel.parse("copy 8x4x4 -> 8x4x4 relu")
READER = Kernel.parse("conv2d 128x3x3 -> 128x3x3 k1 s1 p0 g1 bias relu")


class Clock(RepeatedKernelTimer):
    """A runtime in which every kernel costs `KERNEL_S`, and in networks `LAUNCH_S` more.

    Reading the weights of copies that have more of them than fit into the caches costs `COLD_S`.
    """

    def __init__(self, launch_s: float = LAUNCH_S) -> None:
        super().__init__("float32", threads=1)
        self.launch_s = launch_s
        self.loaded: Counter[Kernel] = Counter()

    def timing_context(self) -> AbstractContextManager[None]:
        return timing.pinned(1)

    def choose_copies(self, kernel: Kernel) -> dict[str, int]:
        return {"copies": 6, "weights": 1}

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        self.loaded[kernel] += 1
        kernel_s = READER_S if kernel == READER else KERNEL_S
        if schedule["weights"] * kernel.weight_bytes >= WEIGHTS_MIB[-1] << 20:
            kernel_s += COLD_S
        return constant(CALL_S + schedule["copies"] * kernel_s)

    def load_tiny_nodes(self, count: int) -> Evaluate:
        return constant(CALL_S + count * TINY_NODE_S)

    def kernels(self, graph: Graph) -> list[Kernel]:
        return fusion.kernels(graph)

    def compile(self, graph: Graph) -> CompiledNetwork:
        return Network(CALL_S + len(self.kernels(graph)) * (KERNEL_S + self.launch_s))


class Network(CompiledNetwork):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        return [self.seconds] * samples


def constant(seconds: float) -> Evaluate:
    return lambda calls, samples: [seconds] * samples


def test_kernel_latency_is_that_of_one_copy_without_the_call() -> None:
    clock = Clock()
    schedule, timed = clock.time_kernel(KERNEL)
    assert schedule == {"copies": 6, "weights": 1}
    assert timed.latency_us == pytest.approx(1e6 * KERNEL_S, rel=1e-3)
    assert clock.tiny_node_s == pytest.approx(TINY_NODE_S)


def test_model_is_loaded_once_for_all_rounds() -> None:
    clock = Clock()
    schedule, _ = clock.time_kernel(KERNEL)
    for _ in range(3):
        clock.retime_kernel(KERNEL, schedule)
    assert clock.loaded == {KERNEL: 1}


def test_dispatch_costs_are_told_apart() -> None:
    clock = Clock()
    timings = {**clock.time_dispatch(), **clock.time_miss_curve()}
    costs = {part: timed.latency_us for part, timed in timings.items()}
    assert set(costs) == {"launch", *DISPATCH_PARTS}
    assert costs["launch"] == pytest.approx(1e6 * LAUNCH_S, rel=1e-3)
    assert costs["invocation"] == pytest.approx(1e6 * CALL_S, rel=1e-3)
    # Sixteen of these kernels have a MiB of weights.
    *warm_us, cold_us = (costs[part] for part in WEIGHT_PARTS)
    assert warm_us == pytest.approx([16e6 * READER_S] * len(warm_us), rel=1e-3)
    assert cold_us == pytest.approx(16e6 * (READER_S + COLD_S), rel=1e-3)


def test_launches_that_cost_nothing_are_noise_around_zero() -> None:
    clock = Clock(launch_s=-1e-9)
    assert clock.time_dispatch()["launch"].latency_us == 1e6 * SMALLEST_COST_S
    clock.has_launch_cost = False
    assert set(clock.time_dispatch()) == {"invocation"}
