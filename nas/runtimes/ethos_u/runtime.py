"""`EthosURuntime`: Arm Ethos-U NPUs, estimated by Vela. Importing this imports no Vela.

Vela compiles kernels and networks, and its cycle model says how long they take. Without a board,
nothing runs on an NPU; with one, whole networks do (`EthosUOnBoard`). Vela's documentation says of
its numbers that they "should not be taken as accurate representations of real performance numbers
and they should not be compared against those from other compilations that use different settings or
configurations", and that they "allow the compiler to make its optimisation decisions only". Each
row of a table says by its basis what it comes from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from nas.errors import DeviceError, MeasurementError
from nas.figures import Figure
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import timing
from nas.latency.capabilities import Capabilities
from nas.latency.device import Fingerprint
from nas.latency.runtime import (
    Availability,
    CompiledNetwork,
    KernelTimer,
    Runtime,
    Schedule,
    Schedules,
    Weights,
    load_problem,
)
from nas.latency.timing import ESTIMATED, MEASURED, Timing
from nas.machine import this_machine
from nas.quantisation.network import QuantisedNetwork
from nas.runtimes.ethos_u.configuration import PARTS, Configuration, Target, configuration
from nas.runtimes.ethos_u.context import KernelInContext
from nas.runtimes.ethos_u.networks import (
    WEIGHT_DISTRIBUTION,
    WEIGHT_SEED,
    EthosUNetwork,
    file_of,
    quantised_file,
)
from nas.runtimes.ethos_u.vela import FIGURES, compile_file
from nas.runtimes.file_runtime import FileRuntime
from nas.runtimes.litert.runtime import LiteRt
from nas.transports import is_address
from nas.transports.address import is_device, parse_settings, refuse

VELA_VERSION = "5.2."
"""Start of the versions of Vela whose compiler is called in the way of `vela`."""

_OWN_OPERATIONS = frozenset(
    {"Conv2D", "DepthwiseConv2D", "FullyConnected", "Add", "Mul", "MaxPool", "AvgPool"}
)
"""Operations that the network has, too. Others of a rewritten kernel are there because it is: the
transposition of a channel shuffle, the copies of a padded pooling, and the ReLU after a grouped
convolution, which would otherwise be a part of the convolution."""

_INSTALL_COMMAND = "pip install 'hardware-nas[ethos-u]'"

_NPU = "npu"
"""Setting of a board's target: the part with its system, see `configuration.Target`."""

_EXAMPLE = "ssh://root@imx93?npu=ethos-u65-256&delegate=/usr/lib/libethosu_delegate.so"


class VelaTimer(KernelTimer):
    """Returns the latencies that Vela estimates.

    Args:
        configuration: what Vela needs to compile for a target.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        """Return Vela's cycles of a kernel between other operations, as a time.

        The schedule has the cycles, and the number and the time of the NPU's operations of which
        the kernel consists.

        Raises:
            MeasurementError: the NPU cannot run the kernel.
        """
        context = KernelInContext(kernel)
        rows = compile_file(file_of(context.graph), self._configuration).rows
        own = context.own_rows(rows)
        cycles, clock_hz = sum(row.cycles for row in own), self._configuration.clock_hz
        if not cycles:
            raise MeasurementError("Vela gives it no cycles of its own.")
        schedule = {
            "cycles": cycles,
            "operations": dict(Counter(row.kind for row in own)),
            "operations_us": {
                kind: round(1e6 * sum(row.cycles for row in own if row.kind == kind) / clock_hz, 3)
                for kind in dict.fromkeys(row.kind for row in own)
            },
            "weights": WEIGHT_DISTRIBUTION,
            "seed": WEIGHT_SEED,
        }
        return schedule, Timing.from_seconds([cycles / clock_hz])


class EthosURuntime(Runtime):
    """Kernels and networks of an Ethos-U system, in cycles that Vela estimates.

    See `nas.latency.runtime.Runtime` for the arguments, and `configuration` for targets.
    """

    name = "ethos_u"
    capabilities = Capabilities(targets=PARTS, dtypes=("int8",), max_batch=1, rounds=1)

    @classmethod
    def availability(cls) -> Availability:
        """Return whether Vela and the schema of TensorFlow Lite files are installed."""
        versions = {}
        for package in ("ethos-u-vela", "ai-edge-litert"):
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                reason = f"{package} is not installed: {_INSTALL_COMMAND}"
                return Availability(cls.name, False, reason)
        vela = versions["ethos-u-vela"]
        if not vela.startswith(VELA_VERSION):
            reason = f"ethos-u-vela is {vela}, not {VELA_VERSION}x: {_INSTALL_COMMAND}"
            return Availability(cls.name, False, reason, versions)
        if problem := load_problem("Vela", "ethosu.regor"):
            return Availability(cls.name, False, problem, versions)
        return Availability(cls.name, True, "", {"ethos-u-vela": vela})

    @classmethod
    def for_target(cls, target: str) -> type[Runtime]:
        """Return `EthosUOnBoard` for boards, and this class for all other targets."""
        is_board = is_address(target) or is_device(target)
        return EthosUOnBoard if is_board else EthosURuntime

    @classmethod
    def at_address(cls, target: str, address: str | None) -> str:
        """See `Runtime.at_address`; a target has several spellings."""
        if address is not None and Target.parse(address) == Target.parse(target):
            return target
        return super().at_address(target, address)

    def check_target(self) -> None:
        """See `Runtime.check_target`. Names of Vela's file are checked with the settings."""
        _ = self._system

    def check_settings(self) -> None:
        """See `Runtime.check_settings`. Vela's names are checked if it is installed."""
        super().check_settings()
        if self.availability().usable:
            configuration(self._system)

    @cached_property
    def basis(self) -> str:
        """The cycle model, its version, and the system that it is for."""
        system = self._system
        return (
            f"{ESTIMATED}vela {version('ethos-u-vela')}, compiler cycle model, "
            f"{system.part}/{system.system}/{system.memory}"
        )

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network in an order in which they can run.

        Operations write their results where a concatenation wants them, so that it costs nothing
        unless it shuffles or copies.
        """
        return [_as_int8(each) for each in fusion.kernels(graph) if not _is_free(each)]

    def kernel_note(self, kernel: Kernel) -> str:
        """Return in which form the NPU runs a kernel that it has no operation for."""
        forms = []
        if kernel.groups > 1 and not kernel.is_depthwise:
            forms.append(f"grouped convolution as {kernel.groups} convolutions")
        if kernel.kind in ("max_pool", "avg_pool") and kernel.padding:
            forms.append("padding as copies")
        if kernel.shuffle_groups > 1:
            forms.append("channel shuffle as a transposition")
        if "hard_swish" in kernel.epilogue:
            forms.append("hard swish as a lookup table")
        if "hard_sigmoid" in kernel.epilogue:
            forms.append("hard sigmoid as a clipped sum")
        return ", ".join(forms)

    def rewriting_us(self, kernel: Kernel, schedule: Schedule) -> float | None:
        """See `Runtime.rewriting_us`."""
        operations_us = schedule.get("operations_us")
        if operations_us is None:
            return None
        return sum(us for kind, us in operations_us.items() if kind not in _OWN_OPERATIONS)

    # The cycle model.

    @cached_property
    def _system(self) -> Target:
        return Target.parse(self.target)

    @cached_property
    def configuration(self) -> Configuration:
        """What Vela needs to compile for the target.

        Raises:
            DeviceError: Vela is not installed.
            RequestError: the target has a name that Vela's configuration file lacks.
        """
        availability = self.availability()
        if not availability.usable:
            raise DeviceError(f"Runtime '{self.name}' cannot be used here: {availability.reason}.")
        return configuration(self._system)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The NPU and its system; the machine that asks Vela does not matter."""
        system = self._system
        processor = f"Arm {system.family.title()}"
        return self.describe(processor, target=system.text, recorded=self._recorded())

    def _recorded(self) -> dict[str, Any]:
        return {
            "system": self._system.system,
            "memory_mode": self._system.memory,
            "clock_hz": self.configuration.clock_hz,
            "weights": {"distribution": WEIGHT_DISTRIBUTION, "seed": WEIGHT_SEED},
            "host": this_machine.recorded_facts()["system"],
        }

    @property
    def devices(self) -> Sequence[Self]:
        """Vela can run on all cores that this process may use at the same time."""
        return [self] * this_machine.allowed_cores()

    @cached_property
    def timer(self) -> VelaTimer:
        """The timer, which asks Vela."""
        return VelaTimer(self.configuration)

    def compile(
        self, graph: Graph, schedules: Schedules, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """Compile a network. Vela needs no schedules.

        Raises:
            MeasurementError: the NPU cannot run the network.
        """
        return EthosUNetwork(graph, weights, self.configuration)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """See `Runtime.figures`, and `nas.runtimes.ethos_u.vela.FIGURES`."""
        return FIGURES

    def network_figures(self, graph: Graph) -> Mapping[str, float]:
        """See `Runtime.network_figures`, and `nas.runtimes.ethos_u.vela.FIGURES`."""
        compilation = EthosUNetwork(graph, None, self.configuration).compilation
        return compilation.figures(self._system.macs_per_cycle)

    def device_files(self, network: QuantisedNetwork) -> Mapping[str, bytes]:
        """Return the file that the NPU runs, and Vela's report on it.

        The file's input and output are int8. Its weights are the trained ones, so its cycles differ
        from those of a network with random weights.
        """
        compilation = compile_file(quantised_file(network), self.configuration)
        report = {
            "basis": self.basis,
            "target": self._system.text,
            "clock_hz": self.configuration.clock_hz,
            "cycles": compilation.cycles,
            "latency_us": 1e6 * compilation.cycles / self.configuration.clock_hz,
            **compilation.figures(self._system.macs_per_cycle),
            "macs": compilation.macs,
            "peak_bytes": compilation.peak_bytes,
            "traffic_bytes": compilation.traffic_bytes,
            **compilation.details,
            "operations": [row._asdict() for row in compilation.rows],
        }
        text = json.dumps(report, indent=1) + "\n"
        return {"_vela.tflite": compilation.model, "_vela.json": text.encode()}


class EthosUOnBoard(FileRuntime, EthosURuntime):
    """An Ethos-U of a Linux board, on which whole networks are timed.

    Vela estimates the kernels, and whole networks are compiled by Vela and run by LiteRT on the
    board, with the vendor's delegate. What only a compiler knows, such as the SRAM of a network, is
    the same as without a board.
    """

    module = "nas.runtimes.litert.session"
    packages = LiteRt.packages
    install = LiteRt.install
    settings = (*LiteRt.settings, _NPU)

    @property
    def network_basis(self) -> str:
        """Whole networks are measured."""
        return MEASURED

    def check_target(self) -> None:
        """See `Runtime.check_target`. The board has no say in what Vela compiles for."""
        super().check_target()
        for name in (_NPU, "delegate"):
            if name not in self.device_settings:
                refuse(self.target, f"it has no {name}", _EXAMPLE)
        _ = self._system

    def timing_context(self) -> AbstractContextManager[None]:
        """See `Runtime.timing_context`. The speed of the board's core is not that of the NPU."""
        return timing.reading(None)

    @property
    def reading(self) -> str:
        """See `Runtime.reading`. Estimates have none."""
        return self.capabilities.reading

    @property
    def compiles_beside_timing(self) -> bool:
        """See `Runtime.compiles_beside_timing`. Vela's estimates need no core for themselves."""
        return False

    @cached_property
    def timer(self) -> VelaTimer:  # type: ignore[override]
        """The timer, which asks Vela."""
        return VelaTimer(self.configuration)

    @cached_property
    def _system(self) -> Target:
        if self.is_remote:
            return Target.parse(self.device_settings[_NPU])
        _, _, query = self.target.partition("?")
        return Target.parse(parse_settings(self.target, query, self.settings, _EXAMPLE)[_NPU])

    @property
    def header_settings(self) -> Mapping[str, str]:
        """See `FileRuntime.header_settings`."""
        return {_NPU: self._system.text, **super().header_settings}

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The board with its software, the NPU and its system, and Vela's version."""
        board = super().fingerprint
        changes = {
            "versions": {**(self.availability().versions or {}), **board.versions},
            "recorded": {**self._recorded(), "board": board.recorded},
        }
        return board.model_copy(update=changes)

    def compile(
        self, graph: Graph, schedules: Schedules, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """Compile a network, and load it on the board. Vela needs no schedules.

        Raises:
            MeasurementError: the NPU cannot run the network, or the board cannot load it.
        """
        from nas.runtimes.litert.network import LiteRtNetwork

        compiled = compile_file(file_of(graph, weights), self.configuration).model
        return LiteRtNetwork(self.files.load(compiled))


def _is_free(kernel: Kernel) -> bool:
    """Return whether a kernel only names where the kernels before it write."""
    return (
        kernel.kind == "concat"
        and not kernel.epilogue
        and all(operand.channels == operand.shape[0] for operand in kernel.inputs)
    )


@lru_cache(maxsize=1 << 20)
def _as_int8(kernel: Kernel) -> Kernel:
    return replace(kernel, dtype="int8")
