"""The contract of a runtime, which compiles kernels and whole networks for a device and times them.

A package adds a runtime by subclassing `Runtime` and naming the class in the entry point group
`nas.runtimes`; docs/runtimes.md has an example. What a runtime can do is `Capabilities`, how its
kernels make up a network is `Composition`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nas.errors import RequestError, first_line
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.composition import Composition, Schedule
from nas.latency.device import Fingerprint
from nas.latency.timing import MEASURED, Timing, reading
from nas.transports.address import is_address, separate_targets

Weights = Mapping[str, NDArray[np.float32]]
"""Weights by slot name and biases by `<slot>.bias`, see `nas.torch_network.folded_weights`."""

Schedules = Mapping[Kernel, Schedule]
"""The schedule of each kernel, from the rows of a latency table."""


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used on this machine.

    Args:
        name: name of the runtime.
        usable: whether it can be used.
        reason: why it cannot be used; empty if it can.
        versions: versions of the packages that it needs; None if they are not installed.
    """

    name: str
    usable: bool
    reason: str = ""
    versions: Mapping[str, str] | None = None


def load_problem(package: str, module: str) -> str:
    """Return why a package cannot be used, or "" if its module can be imported.

    Args:
        package: name of the package in the text.
        module: name of the module. It stays imported.
    """
    try:
        import_module(module)
    # A package of native code raises whatever its start meets, and some call `sys.exit`.
    except (Exception, SystemExit) as error:
        return f"{package} does not load ({first_line(error)})"
    return ""


def package_availability(
    runtime: str, package: str, module: str, install: str = ""
) -> Availability:
    """Return whether a runtime can be used that needs one package.

    Args:
        runtime: name of the runtime.
        package: name of the package.
        module: name of its module, which stays imported.
        install: command that installs the package, if it is no dependency of this one.
    """
    try:
        versions = {package: version(package)}
    except PackageNotFoundError:
        reason = f"{package} is not installed" + (f": {install}" if install else "")
        return Availability(runtime, False, reason)
    problem = load_problem(package, module)
    return Availability(runtime, not problem, problem, versions)


class CompiledNetwork(ABC):
    """A whole network that is ready to run on the device."""

    @abstractmethod
    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time the network.

        Args:
            calls: consecutive inferences of one sample.
            samples: number of samples.

        Returns:
            Seconds of one inference, one value a sample, after an untimed warm-up.
        """

    def reloaded(self) -> CompiledNetwork:
        """Return the network, loaded again if its latency depends on where its tensors lie.

        Loads of one file differ by several percent in runtimes that allocate tensors when they load
        it. A user loads it once, so that each round of timings has a load of its own. By default,
        there is one load.
        """
        return self

    @property
    def launched(self) -> Sequence[Kernel] | None:
        """Kernels that the compiled network launches, read from its code; None if not known.

        Tests compare them with `Runtime.kernels`: a table predicts the kernels that really run.
        """
        return None

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs for one image or one batch.

        Args:
            image: array `channels x height x width`; `batch x channels x height x width` for a
                network that was compiled for a batch.

        Returns:
            Array `outputs`, or `batch x outputs`.

        Raises:
            NotImplementedError: the runtime only times networks.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot compute the outputs of a network")


class KernelTimer(ABC):
    """Times kernels, and what a network costs beside them, on one device.

    A build calls `time_kernel` once for each kernel, and then `retime_kernel` in further rounds.
    """

    @abstractmethod
    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Find the fastest schedule of a kernel and time it.

        Whatever it raises, and whatever else it returns, becomes a failed row of the table, and
        networks that need the kernel are infeasible. Only a DeviceError ends the build: no kernel
        can be timed on the device then.

        Returns:
            The schedule, from which the kernel can be built again, with the kernel's value of each
            of `Capabilities.kernel_figures`; and its timing.

        Raises:
            MeasurementError: the kernel cannot be timed.
        """

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        """Time a kernel again with a schedule that `time_kernel` returned.

        The default calls `time_kernel`, which fits a runtime that chooses schedules by itself.

        Raises:
            MeasurementError: the kernel cannot be timed.
        """
        return self.time_kernel(kernel)[1]

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Time what running a network costs, by names of `Capabilities.dispatch_parts`.

        Raises:
            MeasurementError: noise leaves no cost above zero.
        """
        return {}

    def time_miss_curve(self) -> Mapping[str, Timing]:
        """Time the parts `nas.latency.cache_model.WEIGHT_PARTS` in one round.

        A build calls it in several rounds, because other programs leave more of a shared cache at
        some than at others. Parts that `time_dispatch` returns are timed only there.

        Returns:
            The timings by part; empty if the caches of the device have no other users.

        Raises:
            MeasurementError: noise leaves no latency above zero.
        """
        return {}


class Runtime(Composition, ABC):
    """Compile, time and predict kernels and networks on one device.

    A subclass must define `name`, `capabilities`, `availability`, `fingerprint`, `timer` and
    `compile`. The rest has defaults for a device that belongs to this process; `Composition` says
    how kernels make up networks, by default for one that launches one kernel after the other.

    Creating a runtime must be cheap, touch no device and import nothing heavy: latency tables
    create one to predict with, also on machines that do not have the runtime. The device is used
    from `open` on. A runtime can be pickled: its settings travel, and the device is opened anew.

    `Configured` has its settings and their checks.
    """

    # What it can do. Nothing here touches the device.

    @classmethod
    @abstractmethod
    def availability(cls) -> Availability:
        """Return whether the runtime can be used on this machine, by trying."""

    @classmethod
    def for_target(cls, target: str) -> type[Runtime]:
        """Return the class for a target. Override it to have a subclass for some targets."""
        return cls

    @property
    def basis(self) -> str:
        """`measured`, or `estimated: <by what>` if its latencies are those of a model."""
        return MEASURED

    @property
    def network_basis(self) -> str:
        """The basis of the latencies of whole networks, which `compile` returns.

        It differs from `basis` where whole networks are measured, but kernels are estimated.
        """
        return self.basis

    @property
    def has_constant_networks(self) -> bool:
        """Whether the latency of a whole network is always the same, so that it is timed once."""
        return self.capabilities.rounds == 1 and self.network_basis == self.basis

    # The device.

    def open(self) -> None:
        """Connect to the device. Raises RequestError if it lacks the settings, or DeviceError."""
        return

    def release(self) -> None:
        """Let other processes use a device that has one user at a time; the next use reopens it."""
        return

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """The device and the settings for which its latencies are valid, see `describe`."""

    def timing_context(self) -> AbstractContextManager[None]:
        """Return a context in which nothing disturbs timings of whole networks.

        By default, no thread is pinned and no speed is read. Where networks run in this process,
        it is `nas.latency.timing.pinned`; `nas.latency.timing.reading` reads another core's speed.
        """
        return reading(None)

    @property
    def reading(self) -> str:
        """What a reading of the core's speed is; those of another one are not compared with it."""
        return self.capabilities.reading

    @property
    def build_command(self) -> str:
        """The command that times kernels on the device, for messages."""
        return "nas table build"

    @property
    def is_remote(self) -> bool:
        """Whether the device is another machine, which can vanish and come back."""
        return False

    @classmethod
    def at_address(cls, target: str, address: str | None) -> str:
        """Return the target to open for a table with this one, which holds no address.

        `address` is the target that the user gave, or None. Raises RequestError if it is missing,
        or belongs to another device.
        """
        if address not in (None, target):
            raise RequestError(
                f"The device of the table is '{target}', not '{address}'.",
                remedy="Leave --target out.",
            )
        return target

    @property
    def devices(self) -> Sequence[Self]:
        """Equal devices that can time kernels at the same time, each with a runtime.

        They are those whose addresses the target has (`nas.transports.address.joined_targets`).
        """
        targets = separate_targets(self.target) if is_address(self.target) else []
        if len(targets) < 2:
            return [self]
        return [type(self)(target=each, threads=self.threads, dtype=self.dtype) for each in targets]

    @property
    def compiles_beside_timing(self) -> bool:
        """Whether several processes may compile for the device while one of them times on it.

        They then share the cores of this machine as `nas.latency.core_scheduling` plans. It is for
        timers that time nothing outside of `nas.latency.timing.pinned`.
        """
        return False

    # Compile and time.

    @property
    @abstractmethod
    def timer(self) -> KernelTimer:
        """What times kernels on the device; the first use may import packages and connect."""

    @abstractmethod
    def compile(
        self, graph: Graph, schedules: Schedules, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """Compile a whole network.

        Args:
            graph: the network.
            schedules: schedule of each of its kernels.
            weights: weights of the folded graph; None means random weights.
            batch: number of images of one inference.

        Raises:
            MissingKernelError: a kernel has no schedule.
        """

    def describe(
        self,
        processor: str,
        features: Sequence[str] = (),
        *,
        versions: Mapping[str, str] | None = None,
        target: str | None = None,
        recorded: Mapping[str, Any] | None = None,
    ) -> Fingerprint:
        """Return the fingerprint of a device with these settings.

        Args:
            processor, features, recorded: see `Fingerprint`.
            versions: what its code depends on; by default the versions of `availability`.
            target: the target without the address of a device; by default `target`.
        """
        return Fingerprint(
            processor=processor,
            features=tuple(features),
            runtime=self.name,
            versions=(self.availability().versions or {}) if versions is None else versions,
            target=target or self.target,
            dtype=self.dtype,
            threads=self.threads,
            recorded=dict(recorded or {}),
        )
