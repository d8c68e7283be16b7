"""`ModelFileRuntime`: a base class for runtimes that compile ONNX models and profile them.

The package of a vendor becomes a runtime with three functions, see docs/runtimes.md. Importing this
imports no ONNX.
"""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nas.errors import MeasurementError
from nas.files.documents import shortened
from nas.graph import Graph, Op, Shape
from nas.kernels.fusion import add_kernel, weight_slot
from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import Operand
from nas.latency import timing
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.differences import SMALLEST_COST_S
from nas.latency.networks import random_weights
from nas.latency.repeated_kernels import WARM_WEIGHT_BYTES, RepeatedKernelTimer
from nas.latency.runtime import (
    Availability,
    CompiledNetwork,
    Runtime,
    Schedule,
    Schedules,
    Weights,
    package_availability,
)
from nas.latency.timing import Evaluate, Timing

COPIES = (2, 16)
"""Fewest and most copies of a kernel in one model."""

CONTEXT_CHANNELS = 16
"""Channels that the convolutions before a kernel read: few, so that they take little time."""

_TINY_KERNEL = Kernel.parse("conv2d 16x1x1 -> 16x1x1 k1 s1 p0 g1 bias relu")
"""A kernel that takes next to no time, and of which no compiler makes one of several."""


class ModelFileRuntime(Runtime):
    """A runtime of a package that compiles ONNX models and times them on a device.

    A subclass defines `name`, `capabilities`, `package`, `fingerprint`, `compile_model` and
    `profile`. One that also defines `run_model` can be verified: `nas.deploy.formats.runtime` makes
    an export format of it. See `Runtime` for the rest, which may be overridden as well.

    Its timer measures the dispatch part `invocation`, and the miss curve for a device with caches,
    whose capabilities name `nas.latency.repeated_kernels.DISPATCH_PARTS`.

    Attributes:
        package: name of the package, as `import` and pip take it.
        tolerance: largest difference of outputs from those of torch, as a share of their standard
            deviation; a device that computes in float16 needs more.
    """

    package: ClassVar[str]
    tolerance: ClassVar[float] = 1e-3

    @staticmethod
    @abstractmethod
    def compile_model(model: bytes) -> Any:
        """Return a handle of a compiled ONNX model, with one float32 input and batch size 1."""

    @staticmethod
    @abstractmethod
    def profile(handle: Any) -> Sequence[float]:
        """Return the seconds of some inferences in a row, after a warm-up; they are one sample."""

    @staticmethod
    def run_model(handle: Any, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs of a model for one image, `1 x channels x height x width`.

        If this and `compile_model` are static and import their package themselves, the `run.py` of
        an exported network has their text.
        """
        raise NotImplementedError("the runtime only times networks")

    @classmethod
    def availability(cls) -> Availability:
        """Return whether the package is installed and loads."""
        return package_availability(cls.name, cls.package, cls.package)

    @cached_property
    def timer(self) -> ModelFileTimer:
        """The timer of the device."""
        return ModelFileTimer(self)

    def compile(
        self, graph: Graph, schedules: Schedules, weights: Weights | None = None, batch: int = 1
    ) -> ModelFileNetwork:
        """Compile a network. The package needs no schedules."""
        if weights is None:
            weights = random_weights(graph, np.random.default_rng(0))
        from nas import onnx_model

        model = onnx_model.model(graph, weights)
        onnx_model.fix_batch(model, batch)
        return ModelFileNetwork(self, self.compile_model(model.SerializeToString()))


@dataclass(frozen=True)
class ModelFileNetwork(CompiledNetwork):
    """A compiled model. See `CompiledNetwork`.

    Args:
        runtime: the runtime.
        handle: what its `compile_model` returned.
    """

    runtime: ModelFileRuntime
    handle: Any

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """See `CompiledNetwork.evaluate`. A profile may be of more inferences than `calls`."""
        return [self._sample(calls) for _ in range(samples)]

    def _sample(self, calls: int) -> float:
        seconds = self._profile()
        for _ in range(len(seconds), calls, len(seconds)):
            seconds += self._profile()
        return statistics.median(seconds)

    def _profile(self) -> list[float]:
        """Return the seconds of some inferences, after checking what the package returns."""
        answer = self.runtime.profile(self.handle)
        seconds = []
        with suppress(TypeError, ValueError):
            seconds = [float(each) for each in answer]
        if not seconds or not all(0 < each < math.inf for each in seconds):
            raise MeasurementError(
                f"`profile` of runtime '{self.runtime.name}' should return the seconds of some "
                f"inferences, each above zero, and returned {shortened(str(answer))}."
            )
        return seconds

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `CompiledNetwork.run`."""
        images = image.reshape(-1, *image.shape[-3:])
        outputs = np.asarray(self.runtime.run_model(self.handle, images)).reshape(len(images), -1)
        return outputs if image.ndim > 3 else outputs[0]


class ModelFileTimer(RepeatedKernelTimer):
    """Times kernels in ONNX models of copies, see `repeated_graph`.

    Args:
        runtime: the runtime.
    """

    has_launch_cost = False  # Kernels are timed among others.

    def __init__(self, runtime: ModelFileRuntime) -> None:
        super().__init__(runtime.dtype, runtime.threads)
        self._runtime = runtime

    def kernels(self, graph: Graph) -> list[Kernel]:
        """See `RepeatedKernelTimer`."""
        return self._runtime.kernels(graph)

    def compile(
        self, graph: Graph, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """See `RepeatedKernelTimer`."""
        return self._runtime.compile(graph, {}, weights, batch)

    def timing_context(self) -> AbstractContextManager[None]:
        """See `RepeatedKernelTimer.timing_context`."""
        return self._runtime.timing_context()

    def choose_copies(self, kernel: Kernel) -> dict[str, int]:
        """See `RepeatedKernelTimer`."""
        fewest, most = COPIES
        copies = max(fewest, min(most, WARM_WEIGHT_BYTES // max(1, kernel.weight_bytes)))
        return {"copies": copies, "weights": copies}

    def load_copies(self, kernel: Kernel, schedule: Schedule) -> Evaluate:
        """See `RepeatedKernelTimer`. What surrounds the copies is timed beside them."""
        whole, surroundings = self.networks(kernel, schedule["copies"])

        def evaluate(calls: int, samples: int) -> Sequence[float]:
            pairs = zip(
                whole.evaluate(calls, samples), surroundings.evaluate(calls, samples), strict=True
            )
            return [without_surroundings(*each) for each in pairs]

        return evaluate

    def networks(self, kernel: Kernel, copies: int) -> tuple[ModelFileNetwork, ModelFileNetwork]:
        """Return a network of copies of a kernel, and one of what surrounds the copies there."""
        whole, surroundings = (
            self._runtime.compile(
                repeated_graph(kernel, copies, has_copies=has_copies), {}, batch=kernel.batch
            )
            for has_copies in (True, False)
        )
        return whole, surroundings

    def overhead_s(self, kernel: Kernel, schedule: Schedule) -> float:
        """See `RepeatedKernelTimer`; there is none left."""
        return 0.0

    def load_tiny_nodes(self, count: int) -> Evaluate:
        """See `RepeatedKernelTimer`."""
        return self.compile(repeated_graph(_TINY_KERNEL, count - 1)).evaluate

    def time_miss_curve(self) -> Mapping[str, Timing]:
        """See `KernelTimer.time_miss_curve`."""
        has_caches = WEIGHT_PARTS[0] in self._runtime.capabilities.dispatch_parts
        return super().time_miss_curve() if has_caches else {}


def without_surroundings(whole_s: float, surroundings_s: float) -> float:
    """Return the seconds of the copies in a network, from those of both `networks`.

    A kernel that only says where others write takes no time, and noise may make that less.
    """
    difference_s = whole_s - surroundings_s
    if abs(difference_s) <= timing.MAX_SPREAD * surroundings_s:
        return max(SMALLEST_COST_S, difference_s)
    return difference_s


def repeated_graph(kernel: Kernel, copies: int, *, has_copies: bool = True) -> Graph:
    """Return a graph of copies of a kernel, with one input and one output.

    A copy of a layer that keeps its shape reads the output of the copy before, and the first one
    that of a further copy. Of other kernels, each copy reads a 1x1 convolution of its own, so that
    no compiler merges copies, and a depthwise convolution of one pixel reads its result: in any
    layout, which a slice would convert. They share their other operands.

    Args:
        kernel: the kernel.
        copies: number of copies.
        has_copies: whether the copies are there, or only what surrounds them.
    """
    ops: list[Op] = []

    def add(kind: str, inputs: Sequence[int], shape: Shape, **settings: Any) -> int:
        ops.append(Op(kind, tuple(inputs), shape, **settings))
        return len(ops) - 1

    def convolve(source: int, name: str, shape: Shape, **window: int) -> int:
        stride, slot = -(-ops[source].shape[1] // shape[1]), weight_slot(name, shape[0])
        return add("conv", [source], shape, stride=stride, bias=True, slot=slot, **window)

    def read(tensor: int, operand: Operand) -> int:
        if operand == Operand.whole(operand.shape):
            return tensor
        shape = operand.channels, *operand.shape[1:]
        return add("slice", [tensor], shape, start=operand.start)

    def pixel(tensor: int) -> int:
        channels = ops[tensor].shape[0]
        if first.shape[1:] == (1, 1):
            return tensor
        window = {"kernel": 3, "padding": 1, "groups": channels}
        return convolve(tensor, f"pixel{tensor}", (channels, 1, 1), **window)

    first, *others = kernel.operands
    if kernel.has_weights and kernel.operands == (Operand.whole(kernel.output),):
        end = add("input", [], first.shape)
        for copy in range(1 + copies * has_copies):
            end = add_kernel(ops, kernel, [end], f"copy{copy}")
        return Graph(tuple(ops))
    add("input", [], (CONTEXT_CHANNELS, *first.shape[1:]))
    shared = [
        read(convolve(0, f"operand{at}", operand.shape), operand)
        for at, operand in enumerate(others)
    ]
    # What nothing else reads would be left out without copies.
    ends = [pixel(each) for each in shared if ops[each].shape[1:] == first.shape[1:]]
    for copy in range(copies):
        end = convolve(0, f"context{copy}", first.shape)
        if has_copies:
            end = add_kernel(ops, kernel, [read(end, first), *shared], f"copy{copy}")
        ends.append(pixel(end))
    add("concat", ends, (sum(ops[end].shape[0] for end in ends), 1, 1))
    return Graph(tuple(ops))
