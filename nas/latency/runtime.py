"""The runtimes that can be timed. Adding one means adding a file or folder here, and its name.

A runtime has two halves. Its fusion (`Fusion`) says how a graph splits into kernels and how their
latencies compose; it imports nothing heavy, so a table predicts on machines without the runtime.
The runtime itself (`Runtime`) compiles and times.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from nas.errors import DeviceError, RequestError
from nas.graph import Graph
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.timing import Timing

_MODULES = {
    "onnxruntime": "nas.runtimes.onnxruntime",
    "tvm": "nas.runtimes.tvm",
}

Weights = Mapping[str, NDArray[np.float32]]
"""By slot name, and `<slot>.bias`: what `nas.torch_network.folded_weights` returns."""

Schedules = Mapping[Kernel, Mapping[str, Any]]
"""How the runtime builds each kernel; from a table's rows."""


class Fusion(Protocol):
    """How a runtime splits graphs into kernels; a module is one.

    `DISPATCH_PARTS` names the costs beside the kernels that `predicted_us` needs.
    """

    DISPATCH_PARTS: tuple[str, ...]

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """The kernels of a graph for batches of so many images, in launch order."""
        ...

    def predicted_us(self, kernels_us: Sequence[float], dispatch_us: Mapping[str, float]) -> float:
        """Latency of a network from its kernels' and what `Runtime.time_dispatch` measured."""
        ...


class CompiledNetwork(Protocol):
    """A whole network, compiled, with its weights."""

    @property
    def launched(self) -> list[Kernel]:
        """The kernels that the compiled network really launches, read from its code."""
        ...

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output vector of one image `channels x height x width`.

        A network compiled for a batch takes `batch x channels x height x width` and gives
        `batch x outputs`.
        """
        ...

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """See `nas.latency.timing.Evaluate`."""
        ...


class Timer(Protocol):
    """The part of a `Runtime` that builds a table, or of a worker process."""

    def time_kernel(self, kernel: Kernel) -> tuple[Mapping[str, Any], Timing]:
        """Finds the fastest schedule of a kernel and times it.

        Raises MeasurementError, or what the compiler raises, for one that cannot be timed.
        """
        ...

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        """Times a kernel again, with a schedule that `time_kernel` found.

        Raises MeasurementError, or what the compiler raises, for one that cannot be timed.
        """
        ...

    def time_dispatch(self) -> Mapping[str, Timing]:
        """What running a network costs beside its kernels, by part; `Fusion` composes them."""
        ...


class Tuner(Timer, Protocol):
    """A `Timer` that can look for a kernel's schedule at length."""

    def tune_kernel(self, kernel: Kernel, trials: int) -> Mapping[str, Any]:
        """The best schedule among `trials` that are tried, as `retime_kernel` takes it.

        Raises MeasurementError, or what the compiler raises, where there is none.
        """
        ...


class Runtime(Timer, Protocol):
    """Compiles and times kernels and networks on one device."""

    @property
    def name(self) -> str:
        """The name that `open_runtime` knows it by."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """The device and settings that its latencies are good for."""
        ...

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """See `Fusion.kernels`."""
        ...

    def compile(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights | None = None,
        batch: int = 1,
    ) -> CompiledNetwork:
        """A network ready to run, on so many images at once; random weights unless given.

        Raises MissingKernelError for a kernel without a schedule.
        """
        ...


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used here, and why not."""

    name: str
    usable: bool
    reason: str = ""
    versions: Mapping[str, str] | None = None


def names() -> list[str]:
    """Names of all runtimes, usable here or not."""
    return sorted(_MODULES)


def _module(name: str) -> Any:
    if name not in _MODULES:
        raise RequestError(
            f"There is no runtime '{name}'.", remedy=f"Allowed: {', '.join(names())}."
        )
    return import_module(_MODULES[name])


def fusion(name: str, features: Collection[str] | None = None, dtype: str = "float32") -> Fusion:
    """The fusion of a runtime. Raises RequestError for an unknown name, or dtype.

    Args:
        name: of the runtime.
        features: of the processor, where a runtime fuses by them; None is this machine's.
        dtype: of weights and activations, where a runtime has several.
    """
    module = _module(name)
    has_several = hasattr(module, "fusion_on")
    return cast(Fusion, module.fusion_on(features, dtype) if has_several else module.fusion)


def fragment_kernels(
    fusion: Fusion, graph: Graph, *, first: bool = False, batch: int = 1
) -> list[Kernel]:
    """The kernels that a block, given by itself, can have in any network.

    A fusion whose kernels depend on how a tensor enters the block says so with a
    `fragment_kernels` of its own; for all others they are the block's `kernels`.

    Args:
        graph: the block.
        first: whether images may enter it.
        batch: images that run at once.
    """
    own = getattr(fusion, "fragment_kernels", None)
    if own is None:
        return fusion.kernels(graph, batch)
    return list(own(graph, first=first, batch=batch))


def open_runtime(
    name: str, *, target: str = "cpu", threads: int = 1, dtype: str = "float32"
) -> Runtime:
    """A runtime, ready to compile and time.

    Raises RequestError for an unknown runtime, or for settings it does not have; DeviceError for
    one that cannot be used on this machine.
    """
    module = _module(name)
    if threads < 1:
        raise RequestError(f"threads is {threads}.", remedy="Use 1 or more.")
    processors = os.cpu_count()
    # A board or a GPU has processors of its own.
    if target == "cpu" and processors is not None and threads > processors:
        raise RequestError(
            f"{threads} threads cannot run at once on the {processors} processors of this machine.",
            remedy=f"Use 1 to {processors}.",
        )
    found = availability(name)
    if not found.usable:
        raise DeviceError(f"Runtime '{name}' cannot be used here: {found.reason}.")
    return cast(Runtime, module.open(target=target, threads=threads, dtype=dtype))


def require_batch(runtime: Runtime, batch: int) -> None:
    """Raises RequestError for a batch size that a runtime has no kernels for.

    A runtime that cannot have any says so by `MOST_IMAGES`.
    """
    most = getattr(runtime, "MOST_IMAGES", batch)
    if batch < 1:
        raise RequestError(f"A batch of {batch} images is none.", remedy="Use 1 or more.")
    if batch > most:
        raise RequestError(
            f"Batches of {batch} images are for the CPU, and this is "
            f"'{runtime.fingerprint.target}'.",
            remedy="Leave --batch out, or use --target cpu.",
        )


def availability(name: str) -> Availability:
    """Whether a runtime works here, found by trying. Raises RequestError for an unknown name."""
    return cast(Availability, _module(name).availability())


def available_runtimes() -> list[Availability]:
    """Every runtime and whether it works here."""
    return [availability(name) for name in names()]
