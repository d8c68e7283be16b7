"""`OnnxKernelTimer`: time kernels and networks with ONNX Runtime on this machine's processor."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from nas.graph import Channels, Graph, Op, Slot
from nas.latency import cache_model, device, timing
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.runtime import Schedule, Weights
from nas.latency.timing import Evaluate, Timing
from nas.onnx_model import IR_VERSION, OPSET
from nas.runtimes.onnxruntime.float32.optimised import BLOCKED_DOMAIN
from nas.runtimes.onnxruntime.float32.writer import BlockedWriter
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.int8.writer import QuantisedWriter
from nas.runtimes.onnxruntime.network import OnnxRuntimeNetwork
from nas.runtimes.onnxruntime.session import Session
from nas.runtimes.onnxruntime.writer import MICROSOFT_DOMAIN

RUN_SECONDS = 5e-4
"""Seconds that the copies of a kernel in one session should take, so that its call adds little."""

MIN_COPIES, MAX_COPIES = 4, 64
"""Fewest and most copies of a kernel in one session."""

WARM_WEIGHT_BYTES = cache_model.WEIGHTS_MIB[0] << 20
"""Total size of the weights of different copies, so small that they stay in the caches.

What networks of more weights cost is timed separately, see `nas.latency.cache_model`.
"""

_WEIGHT_READERS = {
    "float32": "conv2d {layout}128x3x3 -> 128x3x3 k1 s1 p0 g1 bias relu",
    "int8": "conv2d int8 nhwc 256x2x2 -> 256x2x2 k1 s1 p0 g1 bias",
}
"""Convolutions whose latency is mostly that of reading their weights, a sixteenth of a MiB."""

_MACS_PER_SECOND = {
    "float32": {"dense": 60e9, "depthwise": 10e9, "grouped": 1e9},
    "int8": {"dense": 150e9, "depthwise": 20e9, "grouped": 20e9},
}
"""Rough speed of a core, by which the number of copies is chosen that fill `RUN_SECONDS`."""

_MAX_CACHED_KERNELS = 64
"""Kernels whose sessions are kept, so that timing them again creates none."""

_INVOCATION_NODES = (1, 65)
"""Nodes of the two sessions from which the cost of a call is worked out."""

_LAUNCH_REPETITIONS = (1, 5)
"""How often the two networks with which launches are timed repeat their kernels."""

_DISPATCH_CALLS = 50
"""Number of calls in a sample."""

_WRITERS = {"float32": BlockedWriter, "int8": QuantisedWriter}


class OnnxKernelTimer:
    """Compile and time kernels and networks for `nas.runtimes.onnxruntime.runtime.OnnxRuntime`.

    The latency of a kernel is that of a node among copies of itself. One session runs many copies,
    so that its call, which is timed separately and subtracted, adds little. The copies are written
    as the ops to which ONNX Runtime optimises, so that no layout conversions surround them, and
    have different weights. A quantised kernel is timed as the int8 op to which a quantised network
    is fused; a function that such a network computes in float32 is timed with its conversions. ONNX
    Runtime's profiler is no alternative: it counts whole microseconds, and profiling slows a node
    by five to ten microseconds by what it does to the caches.

    Args:
        fusion: fusion rules of the dtype.
        dtype: `float32`, or `int8` for networks that are quantised, see `int8.quantisation`.
        threads: number of threads that run one kernel.
    """

    def __init__(self, fusion: OnnxRuntimeFusion, dtype: str, threads: int) -> None:
        self._fusion, self._dtype, self.threads = fusion, dtype, threads
        self._evaluators: OrderedDict[tuple[Kernel, int, int], Evaluate] = OrderedDict()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """This machine with ONNX Runtime's version and the settings."""
        model, features = device.processor()
        return Fingerprint(
            processor=model,
            features=features,
            runtime="onnxruntime",
            versions={"onnxruntime": version("onnxruntime")},
            target="cpu",
            dtype=self._dtype,
            threads=self.threads,
            recorded={**device.recorded_facts(), "block": self._fusion.block},
        )

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Time a kernel among copies of itself. The schedule is the number of copies."""
        schedule = _choose_copies(kernel)
        return schedule, self.retime_kernel(kernel, schedule)

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        """Time a kernel with the numbers of copies and sets of weights in its schedule."""
        key = kernel, schedule["copies"], schedule["weights"]
        if key not in self._evaluators:
            self._evaluators[key] = self._evaluator(kernel, schedule)
            if len(self._evaluators) > _MAX_CACHED_KERNELS:
                self._evaluators.popitem(last=False)
        with timing.pinned(self.threads):
            return timing.measure(self._evaluators[key])

    def _evaluator(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """Return what times a kernel; a call is one copy, less its share of the session's call."""
        copies = schedule["copies"]
        repeated = repeat_kernel(kernel, copies, schedule["weights"], np.random.default_rng(0))
        session = self._session(repeated)
        invocation_s = self._invocation_s

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            runs_s = session.evaluate(math.ceil(calls / copies), samples)
            return [(run_s - invocation_s) / copies for run_s in runs_s]

        return evaluate

    def _session(self, repeated: RepeatedKernel) -> Session:
        return Session(repeated.model, repeated.inputs, threads=self.threads, optimise=False)

    @cached_property
    def _invocation_s(self) -> float:
        """Seconds of a session's call, from two sessions with few and many tiny nodes."""
        with timing.pinned(self.threads):
            fastest = [
                min(
                    timing.median_seconds(session.evaluate, 4 * _DISPATCH_CALLS)
                    for _ in range(timing.MOMENTS)
                )
                for session in self._invocation_sessions
            ]
        return _without_nodes(*fastest)

    @cached_property
    def _invocation_sessions(self) -> tuple[Session, Session]:
        kernel = Kernel.parse("copy 16x1x1 -> 16x1x1 relu")
        few, many = (
            repeat_kernel(kernel, nodes, 1, np.random.default_rng(0)) for nodes in _INVOCATION_NODES
        )
        return self._session(few), self._session(many)

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Time what running a network costs beside its kernels, by dispatch part.

        `invocation` is what the straight line through sessions of few and of many tiny nodes leaves
        for no nodes. The latency of a kernel contains the cost of running a node among copies of
        itself; among different nodes, caches and branch predictor are colder. `launch` is this
        difference: the straight line through a short and a long network of different small
        kernels, less their own latencies. The other parts are what a MiB of weights costs in
        networks of more and more of them, from a small convolution among many copies with weights
        of their own.

        Raises:
            MeasurementError: noise leaves no set of samples above zero.
        """
        graphs = [_launch_network(repetitions) for repetitions in _LAUNCH_REPETITIONS]
        short, long = (self.compile(graph).evaluate for graph in graphs)
        few, many = (self._fusion.kernels(graph) for graph in graphs)
        added = list(many)
        for kernel in few:
            added.remove(kernel)
        one, many_nodes = (session.evaluate for session in self._invocation_sessions)
        kernels = {
            kernel.text: self._evaluator(kernel, _choose_copies(kernel)) for kernel in set(added)
        }
        components = {
            **timing.median_timers({"short": short, "long": long}, _DISPATCH_CALLS),
            **timing.median_timers(
                {"one": one, "many": many_nodes, **kernels}, 4 * _DISPATCH_CALLS
            ),
        }

        def costs(seconds: Mapping[str, float]) -> dict[str, float]:
            added_s = sum(seconds[kernel.text] for kernel in added)
            launch_s = (seconds["long"] - seconds["short"] - added_s) / len(added)
            invocation_s = _without_nodes(seconds["one"], seconds["many"])
            return {"launch": launch_s, "invocation": invocation_s}

        weights = self._time_weights()
        with timing.pinned(self.threads):
            parts = timing.measure_differences(components, costs)
        return {**parts, **weights}

    def _time_weights(self) -> dict[str, Timing]:
        """Time a MiB of weights in networks with more and more of them, by dispatch part."""
        layout = f"blocked{self._fusion.block} " if self._fusion.block > 1 else ""
        kernel = Kernel.parse(_WEIGHT_READERS[self._dtype].format(layout=layout))
        sets_per_mib = (1 << 20) // kernel.weight_bytes

        def time_benchmark(evaluate: Evaluate, weight_sets: int) -> Timing:
            samples = timing.undisturbed_samples(evaluate, weight_sets, timing.QUICK_SAMPLES)
            return Timing.from_seconds([sets_per_mib * each for each in samples])

        benchmarks = {}
        for mib, part in zip(cache_model.WEIGHTS_MIB, cache_model.WEIGHT_PARTS, strict=True):
            weight_sets = mib * sets_per_mib
            evaluate = self._evaluator(kernel, {"copies": weight_sets, "weights": weight_sets})
            benchmarks[part] = partial(time_benchmark, evaluate, weight_sets)
        with timing.pinned(self.threads):
            return timing.fastest_of_rounds(benchmarks)

    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> OnnxRuntimeNetwork:
        """See `OnnxRuntime.compile`."""
        return OnnxRuntimeNetwork(
            graph,
            weights,
            fusion=self._fusion,
            threads=self.threads,
            dtype=self._dtype,
            batch=batch,
        )


class RepeatedKernel(NamedTuple):
    """A model that runs one kernel many times.

    Args:
        model: the model.
        inputs: shapes of its inputs by name.
        copies: number of copies of the kernel.
    """

    model: onnx.ModelProto
    inputs: dict[str, tuple[int, ...]]
    copies: int


def repeat_kernel(
    kernel: Kernel, copies: int, weight_sets: int, rng: np.random.Generator
) -> RepeatedKernel:
    """Write a model that runs a kernel many times on the same inputs.

    Nothing reads the outputs of all copies but the last, so they share one buffer. Only an addition
    reads the output of the copy before, because a network overwrites that operand, too.

    Args:
        kernel: kernel to repeat.
        copies: number of copies.
        weight_sets: number of different sets of weights that the copies use in rotation.
        rng: generator of the weights.

    Raises:
        MeasurementError: ONNX Runtime does not have the kernel.
    """
    writer = _WRITERS[kernel.dtype](kernel, weight_sets, rng)
    for _ in range(copies):
        writer.add_copy()
    graph = helper.make_graph(
        writer.nodes,
        "repeated",
        [
            helper.make_tensor_value_info(name, writer.element_type(name), shape)
            for name, shape in writer.inputs.items()
        ],
        [helper.make_tensor_value_info(writer.last, writer.element_type(writer.last), None)],
        writer.initializers,
    )
    domains = [("", OPSET), (MICROSOFT_DOMAIN, 1), (BLOCKED_DOMAIN, 1)]
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*each) for each in domains],
        ir_version=IR_VERSION,
    )
    return RepeatedKernel(model, writer.inputs, copies)


def _choose_copies(kernel: Kernel) -> dict[str, int]:
    """Return the schedule of a kernel: `copies` in a session, and sets of `weights` they share."""
    has_preferred_layout = kernel.block > 1 or kernel.channels_last
    if kernel.is_depthwise and has_preferred_layout:
        kind = "depthwise"
    else:
        kind = "grouped" if kernel.groups > 1 and kernel.block == 1 else "dense"
    estimated_s = 1e-6 + kernel.macs / _MACS_PER_SECOND[kernel.dtype][kind]
    copies = max(MIN_COPIES, min(MAX_COPIES, math.ceil(RUN_SECONDS / estimated_s)))
    if not kernel.has_weights:
        return {"copies": copies, "weights": 1}
    weight_sets = math.ceil(WARM_WEIGHT_BYTES / kernel.weight_bytes)
    return {"copies": copies, "weights": min(copies, weight_sets)}


def _without_nodes(few_s: float, many_s: float) -> float:
    """Return the seconds of a session without nodes, from those of the invocation sessions."""
    few_nodes, many_nodes = _INVOCATION_NODES
    return few_s - few_nodes * (many_s - few_s) / (many_nodes - few_nodes)


def _launch_network(repetitions: int) -> Graph:
    """Return a network that repeats a tiny shuffle unit and a tiny residual block.

    Its kernels are plain and blocked convolutions, layout conversions and all kinds of copies, as
    they alternate in a real network, and so small that launching dominates.
    """
    width, size = 32, 2
    half, wide, shape = width // 2, 3 * width, (width, size, size)
    ops = [Op("input", (), shape)]

    def add(kind: str, inputs: tuple[int, ...], channels: int, **settings: Any) -> int:
        slot = None
        if kind == "conv":
            extent = Channels.prefix(channels, channels)
            slot, settings["bias"] = Slot(f"conv{len(ops)}", extent), True
        ops.append(Op(kind, inputs, (channels, size, size), slot=slot, **settings))
        return len(ops) - 1

    x = 0
    for _ in range(repetitions):
        untouched = add("slice", (x,), half)
        y = add("slice", (x,), half, start=half)
        y = add("relu", (add("conv", (y,), half),), half)
        y = add("conv", (y,), half, kernel=3, padding=1, groups=half)
        y = add("relu", (add("conv", (y,), half),), half)
        x = add("shuffle", (add("concat", (untouched, y), width),), width, groups=2)
        residual = x
        x = add("relu6", (add("conv", (x,), wide),), wide)
        x = add("conv", (x,), wide, kernel=5, padding=2, groups=wide)
        x = add("relu6", (x,), wide)
        x = add("add", (residual, add("conv", (x,), width)), width)
        x = add("max_pool", (x,), width, kernel=3, padding=1)
    return Graph(tuple(ops))
