"""The contract of a runtime: all that a runtime must and may provide is in the class `Runtime`.

A runtime compiles kernels and whole networks for one device, and times them there. It also says how
a network splits into kernels and how the kernels' latencies compose into the network's, so that a
latency table predicts networks on machines that do not have the runtime.

A package adds a runtime by subclassing `Runtime` and naming the class in the entry point group
`nas.runtimes`:

    [project.entry-points."nas.runtimes"]
    profiler = "my_package:ProfilerRuntime"

`docs/runtimes.md` has a worked example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nas.errors import DeviceError, RequestError, first_line
from nas.figures import Figure
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import DispatchCosts
from nas.latency.core_speed import READING
from nas.latency.device import Fingerprint
from nas.latency.fused_blocks import FusedBlocks
from nas.latency.timing import MEASURED, Timing, reading
from nas.machine import this_machine
from nas.quantisation.network import QuantisedNetwork

Weights = Mapping[str, NDArray[np.float32]]
"""Weights by slot name and biases by `<slot>.bias`, see `nas.torch_network.folded_weights`."""

Schedule = Mapping[str, Any]
"""How a runtime builds a kernel, as JSON can hold it. A table keeps it beside the latency."""

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


@dataclass(frozen=True)
class NetworkCost:
    """The kernels of a network, from which `Runtime.network_us` works out the network's latency.

    Args:
        kernels_us: latency of each kernel with warm caches in microseconds, in launch order.
        weight_bytes: size of all weights as the runtime stores them.
        activation_bytes: largest size of the activations that are alive at the same time.
    """

    kernels_us: Sequence[float]
    weight_bytes: float
    activation_bytes: float

    @property
    def touched_bytes(self) -> float:
        """Memory that one inference reads or writes."""
        return self.weight_bytes + self.activation_bytes


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

    Attributes:
        is_recorded: whether it only returns timings that were taken before, each of them once.
            Nothing then waits between rounds, and timings come to an end: `retime_kernel` returns
            None after the last one of a kernel, and `time_dispatch` and `time_miss_curve` return
            nothing.
        full_us: reading of the core's speed that counts as full speed if those beside the timings
            are slower: an overheated device was slowed at most of them. None if only those count.
    """

    is_recorded: ClassVar[bool] = False
    full_us: float | None = None

    @abstractmethod
    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Find the fastest schedule of a kernel and time it.

        Whatever it raises, and whatever else it returns, becomes a failed row of the table, and
        networks that need the kernel are infeasible. Only a DeviceError ends the build: no kernel
        can be timed on the device then.

        Returns:
            The schedule, from which the kernel can be built again, with the kernel's value of each
            of `Runtime.kernel_figures`; and its timing.

        Raises:
            MeasurementError: the kernel cannot be timed.
        """

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing | None:
        """Time a kernel again with a schedule that `time_kernel` returned.

        The default calls `time_kernel`, which fits a runtime that chooses schedules by itself.

        Returns:
            The timing; None if `is_recorded` and there is no other one.

        Raises:
            MeasurementError: the kernel cannot be timed.
        """
        return self.time_kernel(kernel)[1]

    def time_dispatch(self) -> Mapping[str, Timing]:
        """Time what running a network costs, by names of `Runtime.dispatch_parts`.

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


class Runtime(ABC):
    """Compile, time and predict kernels and networks on one device.

    A subclass must define `name`, `availability`, `timer` and `compile`, and `fingerprint` for
    targets other than this machine's processor. Everything else has a default that fits a device
    that launches fused kernels one after the other, whatever processor it is.

    Creating a runtime must be cheap, touch no device and import nothing heavy: latency tables
    create one to predict with, also on machines that do not have the runtime. The device is used
    from `open` on. A runtime can be pickled: its settings travel, and the device is opened anew.

    Args:
        target: device to compile for: one of `targets`, or what `check_target` accepts besides.
        threads: number of threads that run one network.
        dtype: type of weights and activations, one of `dtypes`.
        features: features of the processor, for runtimes whose kernels depend on them; None means
            this machine's processor.

    Attributes:
        name: name of the runtime, which is also the name of its entry point.
        targets: targets that it compiles for, for messages and help texts.
        dtypes: types of weights and activations that it has.
        max_batch: largest batch that it has kernels for; None means that there is no limit.
        max_table_threads: largest number of threads for which its kernels predict whole networks;
            None means that there is no limit.
        dispatch_parts: names of the costs beside the kernels that `timer` measures and `network_us`
            needs, see `nas.latency.cache_model.DispatchCosts`.
        dispatch_seconds: seconds that timing them for a table takes on an idle machine, by which
            builds are planned.
        rounds: number of rounds in which a build times each kernel, at least. A timer that
            compiles a kernel anew for each wants few. A runtime whose latencies are always the
            same, such as those of a model, says 1; whole networks are then timed once, too, unless
            their `network_basis` is another.
        kernel_figures: figures that are sums over the kernels of a network, such as `energy_uj`.
            `KernelTimer.time_kernel` returns the value of a kernel with its schedule, under the
            name of the figure, so that the table has it.
        reading: what a reading of the core's speed is, see `nas.latency.core_speed`.
        has_local_kernels: whether the kernels of a block never depend on other blocks. If so, the
            kernels of each block are remembered and predictions are fast.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("cpu",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    max_batch: ClassVar[int | None] = None
    max_table_threads: ClassVar[int | None] = None
    dispatch_parts: ClassVar[tuple[str, ...]] = ()
    dispatch_seconds: ClassVar[float] = 0.0
    rounds: ClassVar[int] = 2
    kernel_figures: ClassVar[tuple[Figure, ...]] = ()
    reading: ClassVar[str] = READING
    has_local_kernels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        target: str = "cpu",
        threads: int = 1,
        dtype: str = "float32",
        features: Sequence[str] | None = None,
    ) -> None:
        self.target = target
        self.threads = threads
        self.dtype = dtype
        self.features = features

    def __reduce__(self) -> Any:
        settings = (self.target, self.threads, self.dtype, self.features)
        return _restore, (type(self), *settings)

    # What the runtime can do. Nothing here touches the device.

    @classmethod
    @abstractmethod
    def availability(cls) -> Availability:
        """Return whether the runtime can be used on this machine, by trying."""

    @classmethod
    def for_target(cls, target: str) -> type[Runtime]:
        """Return the class for a target. Override it to have a subclass for some targets."""
        return cls

    @classmethod
    def at_address(cls, target: str, address: str | None) -> str:
        """Return the target under which the device of a latency table is opened.

        Args:
            target: target in the header of the table, which holds no address.
            address: what the user gave as the device's target; None if nothing was given.

        Raises:
            RequestError: the address is missing, or belongs to another device.
        """
        if address not in (None, target):
            raise RequestError(
                f"The device of the table is '{target}', not '{address}'.",
                remedy="Leave --target out.",
            )
        return target

    def check_settings(self) -> None:
        """Raise RequestError for a target, a dtype or a number of threads that it does not have."""
        self.check_target()
        self.check_dtype()
        self.check_threads()

    def check_target(self) -> None:
        """Raise RequestError for a target that it does not have."""
        if self.target not in self.targets:
            raise self.refusal("target", self.target, self.targets)

    def check_threads(self) -> None:
        """Raise RequestError for a number of threads that it cannot use on its target."""
        if self.threads < 1:
            raise RequestError(f"threads is {self.threads}.", remedy="Use 1 or more.")

    def check_dtype(self) -> None:
        """Raise RequestError for a dtype that it does not have on any target."""
        if self.dtype not in self.dtypes:
            raise self.refusal("dtype", self.dtype, self.dtypes)

    def check_batch(self, batch: int) -> None:
        """Raise RequestError for a batch size that it has no kernels for."""
        if batch < 1:
            raise RequestError(f"The batch size is {batch}.", remedy="Use 1 or more.")
        if self.max_batch is not None and batch > self.max_batch:
            raise RequestError(
                f"The batch size is {batch}, but runtime '{self.name}' has kernels for at most "
                f"{self.max_batch} on target '{self.target}'.",
                remedy="Use a smaller batch or another target.",
            )

    def check_predictions(self) -> None:
        """Raise RequestError for more threads than its kernels predict whole networks for.

        Networks can be compiled and timed all the same, but no latency table is made.
        """
        if self.max_table_threads is not None and self.threads > self.max_table_threads:
            raise RequestError(
                f"threads is {self.threads}, but the kernels of runtime '{self.name}' predict "
                f"networks for at most {self.max_table_threads}.",
                remedy="Use fewer threads or another runtime. `nas benchmark` times exported "
                "models with any number.",
            )

    def refusal(self, setting: str, value: str, allowed: Sequence[str]) -> RequestError:
        """Return the error for a setting that the runtime does not have."""
        remedy = f"Allowed: {', '.join(allowed)}." if allowed else "Leave it out."
        return RequestError(f"Runtime '{self.name}' has no {setting} '{value}'.", remedy=remedy)

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
        return self.rounds == 1 and self.network_basis == self.basis

    @property
    def is_remote(self) -> bool:
        """Whether the device is another machine, which can vanish and come back."""
        return False

    @property
    def compiles_beside_timing(self) -> bool:
        """Whether some processes compile for the device while another one times on it.

        They then share the cores of this machine as `nas.latency.core_scheduling` plans. False
        means that one process asks the timer, one kernel after the other. Return True only if the
        timer times nothing outside of `nas.latency.timing.pinned`, in which no two processes are at
        the same time.
        """
        return False

    # How networks split into kernels, and how kernels compose. Nothing here touches the device.

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network in launch order, for batches of this size.

        They must equal, as a multiset, what the compiled network launches. The default fuses each
        convolution with its bias, activations and residual addition, see `nas.kernels.fusion`.

        Raises:
            ValueError: the runtime has no kernel for an op of the graph.
        """
        return fusion.kernels(graph, batch)

    def kernel_blocks(self, graph: Graph, batch: int = 1) -> list[int] | None:
        """Return the number of the block to which each of `kernels` belongs; None if not known.

        Blocks are counted as in `Graph.segments`, and the kernels are in launch order. The report
        groups kernels by them. Override it if `has_local_kernels` is false.
        """
        if not self.has_local_kernels:
            return None
        return [n for n, block in enumerate(graph.segments) for _ in self.kernels(block, batch)]

    def block_kernels(self, blocks: Collection[Graph], batch: int = 1) -> list[Kernel]:
        """Return all kernels that blocks can have in any network of them, once each.

        Override it if kernels depend on what is next to a block.
        """
        return list(dict.fromkeys(each for block in blocks for each in self.kernels(block, batch)))

    @property
    def fused_blocks(self) -> FusedBlocks | None:
        """What the runtime makes of blocks, for tables to record; None if rules tell it."""
        return None

    def kernel_note(self, kernel: Kernel) -> str:
        """Return in which form the device runs a kernel that it has no code for; may be empty.

        Predictions show it beside the kernel, such as `hard swish as a lookup table`.
        """
        return ""

    def rewriting_us(self, kernel: Kernel, schedule: Schedule) -> float | None:
        """Return what the form of `kernel_note` adds to a kernel's latency; None if not known.

        It is the time of operations that the network itself does not have, in microseconds, which
        the latency contains.

        Args:
            kernel: a kernel with a note.
            schedule: its schedule, from the row of the latency table.
        """
        return None

    def weight_bytes(self, kernel: Kernel, schedule: Schedule) -> int:
        """Return the size of a kernel's weights as the runtime stores them.

        Raises:
            ValueError: the schedule is none of this runtime's.
        """
        return kernel.weight_bytes

    def activation_bytes(self, graph: Graph, batch: int = 1) -> float:
        """Return the largest size of the activations that are alive at the same time."""
        return batch * graph.peak_memory_bytes

    def network_us(self, network: NetworkCost, dispatch: DispatchCosts) -> float:
        """Return the latency of a network in microseconds.

        The default adds the kernels, a launch for each and `invocation` once, as far as
        `dispatch_parts` names them, and what waiting for weights costs
        (`nas.latency.cache_model`).
        """
        warm_us = sum(network.kernels_us) + len(network.kernels_us) * dispatch.launch_us
        waiting_us = dispatch.waiting_us(network.weight_bytes, network.touched_bytes)
        return warm_us + dispatch.invocation_us + waiting_us

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What the runtime knows of a whole network beside its latency, such as `sram_kib`.

        A search can optimise and limit them. Those of `kernel_figures` are added up by the table;
        `network_figures` returns the others.
        """
        return self.kernel_figures

    def network_figures(self, graph: Graph) -> Mapping[str, float]:
        """Return further costs of a whole network, by the names in `figures`.

        It may take as long as compiling the network, and touches no device.

        Raises:
            MeasurementError: the device cannot run the network.
        """
        return {}

    def device_files(self, network: QuantisedNetwork) -> Mapping[str, bytes]:
        """Return the files that the device needs in place of an exported int8 file.

        Args:
            network: the network of the exported file, with calibrated ranges.

        Returns:
            Contents by what follows the stem of the exported file's name, such as `_vela.tflite`.

        Raises:
            MeasurementError: the device cannot run the network.
        """
        return {}

    # The device.

    def open(self) -> None:
        """Connect to the device.

        Raises:
            RequestError: the device lacks the settings.
            DeviceError: the device cannot be used.
        """
        return

    def release(self) -> None:
        """Let other processes use a device that has one user at a time; the next use reopens it."""
        return

    def timing_context(self) -> AbstractContextManager[None]:
        """Return a context in which nothing disturbs timings of whole networks.

        The default does not touch this thread and reads no speed, because only the runtime knows on
        which processor its networks run. Override it with `nas.latency.timing.pinned` if they run
        in this thread: it keeps the thread on as many cores as it uses threads, and reads their
        speed beside the timings. `nas.latency.timing.reading` reads the speed of another device.
        """
        return reading(None)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The device and the settings for which its latencies are valid.

        The default describes this machine's processor, which is target `cpu`, with the versions of
        `availability`.

        Raises:
            DeviceError: the target is another device, which the runtime has to describe.
        """
        if self.is_remote or not self.target.startswith("cpu"):
            raise DeviceError(
                f"Runtime '{self.name}' does not say which device '{self.target}' is.",
                remedy="Its package has to define `fingerprint`: docs/runtimes.md.",
            )
        processor, features = this_machine.processor()
        return Fingerprint(
            processor=processor,
            features=features,
            runtime=self.name,
            versions=self.availability().versions or {},
            target=self.target,
            dtype=self.dtype,
            threads=self.threads,
            recorded=this_machine.recorded_facts(),
        )

    @property
    def device_count(self) -> int:
        """Number of equal devices that can time kernels at the same time."""
        return 1

    @property
    @abstractmethod
    def timer(self) -> KernelTimer:
        """What times kernels on the device; the first use may import packages and connect."""

    @abstractmethod
    def compile(
        self,
        graph: Graph,
        schedules: Schedules,
        weights: Weights | None = None,
        batch: int = 1,
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


def _restore(
    cls: type[Runtime], target: str, threads: int, dtype: str, features: Sequence[str] | None
) -> Runtime:
    """Create an unpickled runtime."""
    return cls(target=target, threads=threads, dtype=dtype, features=features)
