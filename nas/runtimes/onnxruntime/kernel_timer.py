"""Times kernels and networks with ONNX Runtime's processor provider, on this machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import numpy as np

from nas.graph import Channels, Graph, Op, Slot
from nas.latency import cache_model, device, timing
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.runtime import Weights
from nas.latency.timing import Timing
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.network import OnnxRuntimeNetwork
from nas.runtimes.onnxruntime.repeated import repeat
from nas.runtimes.onnxruntime.session import Session

RUN_SECONDS = 5e-4
"""How long the copies of a kernel in one session should take: the session's call is little then."""

COPIES = (4, 64)
"""Fewest and most copies of a kernel in one session."""

WEIGHTS_BYTES = cache_model.MIB[0] << 20
"""Weights of different copies together: so few that they stay near.

What networks of more weights cost beyond that is measured by itself; see `nas.latency.cache_model`.
"""

_PROBES = {
    "float32": "conv2d {layout}128x3x3 -> 128x3x3 k1 s1 p0 g1 bias relu",
    "int8": "conv2d int8 nhwc 256x2x2 -> 256x2x2 k1 s1 p0 g1 bias",
}
"""A convolution whose time is mostly that of reading its weights, a sixteenth of a MiB."""

_MACS_A_SECOND = {
    "float32": {"dense": 60e9, "depthwise": 10e9, "grouped": 1e9},
    "int8": {"dense": 150e9, "depthwise": 20e9, "grouped": 20e9},
}
"""What a core does about, for choosing how many copies fill `RUN_SECONDS`."""

_INVOCATION_NODES = (1, 65)
"""Nodes of the two sessions from which the cost of a call is worked out."""

_DISPATCH_ROUNDS = (1, 5)
"""How often the two chains that launches are timed with repeat their kernels."""

_DISPATCH_SETS = 8
"""Sets of samples of the dispatch costs that are taken at most."""

_DISPATCH_CALLS = 50
"""Calls a sample."""


class OnnxKernelTimer:
    """Compiles and times for `nas.runtimes.onnxruntime.runtime.OnnxRuntime`.

    A kernel's latency is that of a node among copies of itself: one session runs many, so that its
    call, which is timed by itself and taken off, weighs little; they are written in the ops that
    ONNX Runtime optimises to, so nothing is reordered around them; and they have different weights.
    Quantised kernels are timed in the same way, as the eight-bit ops that a quantised network is
    fused to; a function that such a network works out in float32 is timed with the conversions
    around it. ONNX Runtime's own profiler was no alternative: it counts whole microseconds, and
    profiling adds five to ten of them to a node, by what it does to the caches.

    Args:
        fusion: how the dtype fuses.
        dtype: `float32`, or `int8`: whole networks are quantised, see `int8.quantised`.
        threads: that share one kernel.
    """

    def __init__(self, fusion: OnnxRuntimeFusion, dtype: str, threads: int) -> None:
        self._fusion, self._dtype, self.threads = fusion, dtype, threads

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """This machine with ONNX Runtime's version and these settings."""
        model, features = device.processor()
        return Fingerprint(
            processor=model,
            features=features,
            runtime="onnxruntime",
            versions={"onnxruntime": version("onnxruntime")},
            target="cpu",
            dtype=self._dtype,
            threads=self.threads,
            recorded={**device.recorded(), "block": self._fusion.block},
        )

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        """Times a kernel among copies of itself. ONNX Runtime schedules it as it likes."""
        schedule = _copies(kernel)
        return schedule, self.retime_kernel(kernel, schedule)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """See `Runtime.retime_kernel`; the schedule says how many copies, with how many weights."""
        with timing.pinned(self.threads):
            return timing.measure(self._evaluator(kernel, schedule))

    def _evaluator(self, kernel: Kernel, schedule: Mapping[str, Any]) -> timing.Evaluate:
        """A kernel as something to time; a call is one copy, less its share of the session's."""
        copies = schedule["copies"]
        model = repeat(kernel, copies, schedule["weights"], np.random.default_rng(0))
        session = Session(model.model, model.inputs, threads=self.threads, optimise=False)
        invocation_s = self._invocation_s

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            found = session.evaluate(math.ceil(calls / copies), samples)
            return [(seconds - invocation_s) / copies for seconds in found]

        return evaluate

    @cached_property
    def _invocation_s(self) -> float:
        """Seconds of a session's call, from two with few and many tiny nodes."""
        with timing.pinned(self.threads):
            few, many = self._idle_sessions
            return statistics.median(_invocation_s(few, many) for _ in range(5))

    @cached_property
    def _idle_sessions(self) -> tuple[Session, Session]:
        kernel = Kernel.parse("copy 16x1x1 -> 16x1x1 relu")
        few, many = (
            repeat(kernel, nodes, 1, np.random.default_rng(0)) for nodes in _INVOCATION_NODES
        )
        return (
            Session(few.model, few.inputs, threads=self.threads, optimise=False),
            Session(many.model, many.inputs, threads=self.threads, optimise=False),
        )

    def time_dispatch(self) -> Mapping[str, Timing]:
        """The cost of an `invocation` of a session, and what a `launch` costs beyond its kernel.

        An invocation is what a straight line through sessions of few and of many tiny nodes leaves
        for none. A kernel's latency contains what running a node costs among copies of itself;
        among different ones the caches and branch predictor are colder. That is the launch: the
        straight line through a short and a long chain of different small kernels, less their own
        latencies. What a MiB of weights costs in networks of more and more of them is
        the time of a small convolution among many copies with weights of their own.

        Raises MeasurementError where noise leaves no set above zero.
        """
        chains = [_chain(rounds) for rounds in _DISPATCH_ROUNDS]
        short, long = (self.compile(chain).evaluate for chain in chains)
        few, many = (self._fusion.kernels(chain) for chain in chains)
        added = list(many)
        for kernel in few:
            added.remove(kernel)
        alone = {kernel: self._evaluator(kernel, _copies(kernel)) for kernel in set(added)}

        def once() -> dict[str, float]:
            own = {
                kernel: timing.median_s(each, 4 * _DISPATCH_CALLS) for kernel, each in alone.items()
            }
            chained = timing.median_s(long, _DISPATCH_CALLS) - timing.median_s(
                short, _DISPATCH_CALLS
            )
            launch = (chained - sum(own[kernel] for kernel in added)) / len(added)
            return {"launch": launch, "invocation": _invocation_s(*self._idle_sessions)}

        weights = self._time_weights()
        with timing.pinned(self.threads):
            found = timing.steadiest(once, _DISPATCH_SETS)
        return {**found, **weights}

    def _time_weights(self) -> dict[str, Timing]:
        """Time a MiB of weights, by part of `cache_model.PARTS`."""
        layout = f"blocked{self._fusion.block} " if self._fusion.block > 1 else ""
        kernel = Kernel.parse(_PROBES[self._dtype].format(layout=layout))
        sets_a_mib = (1 << 20) // kernel.weight_bytes

        def take(chain: timing.Evaluate, sets: int) -> Timing:
            found = timing.undisturbed(chain, sets, timing.QUICK_SAMPLES)
            return Timing.of_seconds([sets_a_mib * each for each in found])

        chains = {}
        for mib, part in zip(cache_model.MIB, cache_model.PARTS, strict=True):
            sets = mib * sets_a_mib
            chain = self._evaluator(kernel, {"copies": sets, "weights": sets})
            chains[part] = partial(take, chain, sets)
        with timing.pinned(self.threads):
            return timing.fastest_of_rounds(chains)

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


def _copies(kernel: Kernel) -> dict[str, int]:
    """How many copies of a kernel share a session, and how many sets of weights they share."""
    laid = kernel.block > 1 or kernel.channels_last
    if kernel.is_depthwise and laid:
        rate = "depthwise"
    else:
        rate = "grouped" if kernel.groups > 1 and kernel.block == 1 else "dense"
    about_s = 1e-6 + kernel.macs / _MACS_A_SECOND[kernel.dtype][rate]
    fewest, most = COPIES
    copies = max(fewest, min(most, math.ceil(RUN_SECONDS / about_s)))
    if not kernel.has_weights:
        return {"copies": copies, "weights": 1}
    weights = math.ceil(WEIGHTS_BYTES / kernel.weight_bytes)
    return {"copies": copies, "weights": min(copies, weights)}


def _invocation_s(few: Session, many: Session) -> float:
    """Seconds of a session without nodes."""
    short, long = (timing.median_s(each.evaluate, 4 * _DISPATCH_CALLS) for each in (few, many))
    nodes = _INVOCATION_NODES
    return short - nodes[0] * (long - short) / (nodes[1] - nodes[0])


def _chain(rounds: int) -> Graph:
    """`rounds` times the same different kernels of a shuffle unit and a residual, both tiny.

    They are plain and blocked convolutions, reorders and all kinds of copies, as they alternate in
    a network, and so small that launching them shows.
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
    for _ in range(rounds):
        kept = add("slice", (x,), half)
        y = add("slice", (x,), half, start=half)
        y = add("relu", (add("conv", (y,), half),), half)
        y = add("conv", (y,), half, kernel=3, padding=1, groups=half)
        y = add("relu", (add("conv", (y,), half),), half)
        x = add("shuffle", (add("concat", (kept, y), width),), width, groups=2)
        entered = x
        x = add("relu6", (add("conv", (x,), wide),), wide)
        x = add("conv", (x,), wide, kernel=5, padding=2, groups=wide)
        x = add("relu6", (x,), wide)
        x = add("add", (entered, add("conv", (x,), width)), width)
        x = add("max_pool", (x,), width, kernel=3, padding=1)
    return Graph(tuple(ops))
