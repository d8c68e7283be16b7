"""Runtimes that only run whole models, on a processor: their kernels are timed among copies.

The latency of a kernel is that of one copy in a model of many copies. What the model costs beside
its copies, such as its call, is timed separately and subtracted.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import ClassVar

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import cache_model, differences, timing
from nas.latency.rounds import ROUNDS
from nas.latency.runtime import CompiledNetwork, KernelTimer, Schedule, Weights
from nas.latency.timing import Evaluate, Timing

RUN_SECONDS = 5e-4
"""Seconds that the copies of a kernel in one model should take, so that its call adds little."""

MAX_COPIES = 64
"""Most copies of a kernel in one model."""

WARM_WEIGHT_BYTES = cache_model.WEIGHTS_MIB[0] << 20
"""Total size of the weights of different copies, so small that they stay in the caches.

What networks of more weights cost is timed separately, see `nas.latency.cache_model`.
"""

TINY_NODES = (1, 65)
"""Nodes of the two models from which the cost of a call is worked out."""

DISPATCH_PARTS = ("invocation", *cache_model.WEIGHT_PARTS)
"""What every `RepeatedKernelTimer` measures beside kernels."""

_MAX_CACHED_KERNELS = 64
"""Kernels whose models are kept, so that timing them again loads none."""

_WEIGHT_READERS = {"float32": (128, 3), "int8": (256, 2)}
"""Channels and side of the maps of the convolution with which reading weights is timed, by dtype.

It has 64 KiB of weights.
"""

_LAUNCH_REPETITIONS = (1, 5)
"""How often the two networks with which launches are timed repeat their kernels."""

_DISPATCH_CALLS = 50
"""Number of calls in a sample."""


class RepeatedKernelTimer(KernelTimer):
    """Times kernels among copies of themselves.

    Args:
        dtype: type of weights and activations.
        threads: number of threads that run one kernel.

    Attributes:
        has_launch_cost: whether a kernel costs more among other kernels than among copies of
            itself, because caches and branch predictor are colder: the dispatch part `launch`. It
            is measured as the straight line through a short and a long network of different small
            kernels, less their own latencies.
    """

    has_launch_cost: ClassVar[bool] = True

    def __init__(self, dtype: str, threads: int) -> None:
        self.dtype, self.threads = dtype, threads
        self._evaluators: OrderedDict[tuple[Kernel, int, int], Evaluate] = OrderedDict()

    # What a runtime provides.

    @abstractmethod
    def choose_copies(self, kernel: Kernel) -> dict[str, int]:
        """Return the schedule of a kernel: `copies` in a model, and sets of `weights` they use."""

    @abstractmethod
    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """Return what times a run of the model with the copies of a kernel."""

    @abstractmethod
    def load_tiny_nodes(self, count: int) -> Evaluate:
        """Return what times a run of a model of `count` nodes that compute next to nothing."""

    @abstractmethod
    def kernels(self, graph: Graph) -> list[Kernel]:
        """Return the kernels of a network."""

    @abstractmethod
    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """Return a network that is ready to run. See `Runtime.compile`."""

    def overhead_s(self, kernel: Kernel, schedule: Schedule) -> float:
        """Return the seconds that a run of the copies costs beside them."""
        return self.invocation_s

    def weight_bytes(self, kernel: Kernel) -> int:
        """Return the size of a kernel's weights as the runtime stores them."""
        return kernel.weight_bytes

    # What the runtimes share.

    @abstractmethod
    def timing_context(self) -> AbstractContextManager[None]:
        """Return a context in which nothing disturbs timings, see `Runtime.timing_context`."""

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Time a kernel among copies of itself. The schedule is the number of copies."""
        schedule = self.choose_copies(kernel)
        return schedule, self.retime_kernel(kernel, schedule)

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        """Time a kernel with the numbers of copies and sets of weights in its schedule."""
        key = kernel, schedule["copies"], schedule["weights"]
        if key not in self._evaluators:
            self._evaluators[key] = self._evaluator(kernel, schedule)
            if len(self._evaluators) > _MAX_CACHED_KERNELS:
                self._evaluators.popitem(last=False)
        with self.timing_context():
            return timing.measure(self._evaluators[key])

    def _evaluator(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """Return what times a kernel; a call is one copy, less its share of the overhead."""
        copies = schedule["copies"]
        evaluate_run = self.load_copies(kernel, schedule)
        overhead_s = self.overhead_s(kernel, schedule)

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            runs_s = evaluate_run(math.ceil(calls / copies), samples)
            return [(run_s - overhead_s) / copies for run_s in runs_s]

        return evaluate

    @cached_property
    def _tiny_models(self) -> dict[str, Evaluate]:
        few, many = TINY_NODES
        return {"few": self.load_tiny_nodes(few), "many": self.load_tiny_nodes(many)}

    @cached_property
    def _tiny_runs_s(self) -> tuple[float, float]:
        """Seconds of a run of the models of few and of many tiny nodes."""
        with self.timing_context():
            few, many = (
                min(timing.median_seconds(evaluate, 4 * _DISPATCH_CALLS) for _ in range(ROUNDS))
                for evaluate in self._tiny_models.values()
            )
        return few, many

    @property
    def invocation_s(self) -> float:
        """Seconds of running a model without nodes."""
        return _without_nodes(*self._tiny_runs_s)

    @property
    def tiny_node_s(self) -> float:
        """Seconds of a node that computes next to nothing."""
        few, many = self._tiny_runs_s
        return max(0.0, many - few) / (TINY_NODES[1] - TINY_NODES[0])

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Time what running a network costs beside its kernels.

        `invocation` is what the straight line through models of few and of many tiny nodes leaves
        for no nodes. `launch` is measured if `has_launch_cost` says so, and is
        `differences.SMALLEST_COST_S` at least.

        Raises:
            MeasurementError: noise leaves no set of samples above zero.
        """
        components = differences.median_timers(self._tiny_models, 4 * _DISPATCH_CALLS)
        added: list[Kernel] = []
        if self.has_launch_cost:
            added = self._add_launch_benchmark(components)

        def costs(seconds: Mapping[str, float]) -> dict[str, float]:
            parts = {"invocation": _without_nodes(seconds["few"], seconds["many"])}
            if added:
                added_s = sum(seconds[kernel.text] for kernel in added)
                launches_s = seconds["long"] - seconds["short"] - added_s
                parts["launch"] = max(differences.SMALLEST_COST_S, launches_s / len(added))
            return parts

        with self.timing_context():
            return differences.measure_differences(components, costs)

    def _add_launch_benchmark(self, components: dict[str, Callable[[], float]]) -> list[Kernel]:
        """Add a short and a long network of different small kernels, and these kernels.

        Args:
            components: functions that return seconds, by name.

        Returns:
            The kernels that the long network has and the short one lacks.
        """
        graphs = [_launch_network(repetitions) for repetitions in _LAUNCH_REPETITIONS]
        few, added = (self.kernels(graph) for graph in graphs)
        for kernel in few:
            added.remove(kernel)
        short, long = (self.compile(graph).evaluate for graph in graphs)
        components |= differences.median_timers({"short": short, "long": long}, _DISPATCH_CALLS)
        kernels = {
            kernel.text: self._evaluator(kernel, self.choose_copies(kernel))
            for kernel in set(added)
        }
        components |= differences.median_timers(kernels, 4 * _DISPATCH_CALLS)
        return added

    @cached_property
    def _weight_benchmarks(self) -> dict[str, Evaluate]:
        reader = max(self.kernels(_weight_reader(self.dtype)), key=self.weight_bytes)
        return {
            part: self._weight_evaluator(reader, mib)
            for mib, part in zip(cache_model.WEIGHTS_MIB, cache_model.WEIGHT_PARTS, strict=True)
        }

    def _weight_evaluator(self, reader: Kernel, mib: int) -> Evaluate:
        """Return what times copies of a kernel that have so many MiB of weights in all.

        A call is a run of all copies, and its seconds are those of a MiB.
        """
        readers_per_mib = (1 << 20) / self.weight_bytes(reader)
        copies = round(mib * readers_per_mib)
        evaluate_copy = self._evaluator(reader, {"copies": copies, "weights": copies})

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            return [readers_per_mib * s for s in evaluate_copy(calls * copies, samples)]

        return evaluate

    def time_miss_curve(self) -> Mapping[str, Timing]:
        """See `KernelTimer.time_miss_curve`.

        The networks are a convolution among many copies with weights of its own.
        """
        with self.timing_context():
            return {
                part: timing.measure(evaluate, calls=1)
                for part, evaluate in self._weight_benchmarks.items()
            }


def _without_nodes(few_s: float, many_s: float) -> float:
    """Return the seconds of a model without nodes, from those of the models of tiny nodes."""
    few_nodes, many_nodes = TINY_NODES
    return few_s - few_nodes * (many_s - few_s) / (many_nodes - few_nodes)


def _weight_reader(dtype: str) -> Graph:
    """Return a convolution whose latency is mostly that of reading its weights."""
    from nas.space.builder import Builder

    channels, side = _WEIGHT_READERS[dtype]
    build = Builder((channels, side, side), norm=False, activation="relu", classes=1)
    build.conv_unit(build.input, "reader", channels)
    return build.graph()


def _launch_network(repetitions: int) -> Graph:
    """Return a network that repeats a tiny shuffle unit and a tiny residual block.

    Its kernels are convolutions of all kinds and copies, as they alternate in a real network, and
    so small that launching dominates.
    """
    from nas.space.builder import Builder

    width = 32
    build = Builder((width, 2, 2), norm=False, activation="relu", classes=1)
    x = build.input
    for number in range(repetitions):
        untouched, y = build.split(x)
        y = build.conv_unit(y, f"first{number}", width // 2)
        y = build.depthwise_unit(y, f"depthwise{number}", kernel=3, activate=False)
        y = build.conv_unit(y, f"second{number}", width // 2, activate=False)
        x = residual = build.shuffle(build.concat(untouched, y), 2)
        y = build.conv_unit(x, f"expand{number}", 3 * width, activate="relu6")
        y = build.depthwise_unit(y, f"wide{number}", kernel=3, activate="relu6")
        y = build.conv_unit(y, f"project{number}", width, activate=False)
        x = build.max_pool(build.add(residual, y), f"pool{number}", kernel=3, stride=1)
    return build.graph()
