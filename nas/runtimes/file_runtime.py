"""`FileRuntime`: a runtime that loads model files, in this process or on a device with Python."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from nas.errors import RequestError
from nas.graph import Graph
from nas.latency.core_speed import PRODUCTS, SIDE
from nas.latency.device import Fingerprint
from nas.latency.repeated_kernels import RepeatedKernelTimer
from nas.latency.runtime import CompiledNetwork, Runtime, Schedules, Weights
from nas.machine import this_machine
from nas.runtimes.files import Files
from nas.transports import address as transports
from nas.transports import is_address, split_address
from nas.transports.address import DEVICE, is_device, with_settings


class FileRuntime(Runtime):
    """A runtime that loads model files, on this machine's processor or on a device with Python.

    A target is `cpu`, or the address of a device (`nas.transports`) with settings. The table of a
    device belongs to its processor, so that its header has no address.

    Attributes:
        module: name of the module that loads them, see `nas.runtimes.files`.
        packages: names of the packages that it imports, one of which is enough.
        install: what pip installs for it.
    """

    module: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    install: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ("python",)

    @property
    def is_remote(self) -> bool:
        """Whether the target is the address of a device."""
        return is_address(self.target)

    def check_target(self) -> None:
        """See `Runtime.check_target`."""
        if self.is_remote:
            split_address(self.target, self.settings)
        else:
            super().check_target()

    @classmethod
    def at_address(cls, target: str, address: str | None) -> str:
        """See `Runtime.at_address`. A table of a processor is used at any address that has it."""
        if is_device(target) or (address is not None and is_address(address)):
            # The header has the name of a delegate's file, and not its place.
            return transports.at_address(target, address, cls.settings, of_address=["delegate"])
        return super().at_address(target, address)

    @cached_property
    def files(self) -> Files:
        """What loads files; the first use imports the runtime here, unless a device has it."""
        if not self.is_remote:
            return Files(import_module(self.module), self.threads)
        from nas.runtimes.on_device.client import DeviceFiles

        session = find_spec(self.module)
        assert session is not None
        assert session.origin is not None
        return DeviceFiles(
            Path(session.origin),
            self.threads,
            address=self.target.partition("?")[0],
            python=self.device_settings.get("python", "python3"),
            packages=self.packages,
            install=self.install,
            delegate=self.delegate,
        )

    @property
    def device_settings(self) -> Mapping[str, str]:
        """The settings in the target, by name."""
        return split_address(self.target, self.settings)[1] if self.is_remote else {}

    @property
    def delegate(self) -> dict[str, Any] | None:
        """The library of a delegate on the device, and its options; None without one."""
        settings = self.device_settings
        if "delegate" not in settings:
            return None
        options = filter(None, settings.get("delegate_options", "").split(","))
        pairs = [(name, value) for name, _, value in (each.partition("=") for each in options)]
        return {"library": settings["delegate"], "options": dict(pairs)}

    @property
    def header_settings(self) -> Mapping[str, str]:
        """The settings on which latencies depend, without those of the address."""
        delegate = self.delegate
        return {"delegate": PurePosixPath(delegate["library"]).name} if delegate else {}

    @property
    @abstractmethod
    def timer(self) -> RepeatedKernelTimer:
        """The timer of the device; the first use imports what writes files for the runtime."""

    def open(self) -> None:
        """Connect to the device.

        Raises:
            RequestError: it lacks Python, the runtime or cores.
            DeviceError: it does not answer.
        """
        if not self.is_remote:
            return
        cores = self.fingerprint.recorded.get("cores")
        if isinstance(cores, int) and self.threads > cores:
            raise RequestError(
                f"{self.threads} threads cannot run at once: the device has {cores} cores.",
                remedy="Use fewer threads.",
            )

    def release(self) -> None:
        """Close the connection to the device; the next use opens another one."""
        if "files" in self.__dict__:
            self.files.close()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The processor, with the versions that run there and the settings."""
        if not self.is_remote:
            return self.describe(*this_machine.processor(), recorded=this_machine.recorded_facts())
        from nas.runtimes.on_device.client import DeviceFiles

        files = self.files
        assert isinstance(files, DeviceFiles)
        has = files.describe()
        facts = files.facts
        versions = {name.replace("_", "-"): version for name, version in has["versions"].items()}
        if self.delegate is not None:
            options = [f"{name}={value}" for name, value in self.delegate["options"].items()]
            digest = has["digests"][self.delegate["library"]][:12]
            name = self.header_settings["delegate"]
            versions[name] = " ".join([digest, *options])
        settings = self.header_settings
        return self.describe(
            facts.processor,
            facts.features,
            versions=versions,
            target=with_settings(DEVICE, settings) if settings else "cpu",
            recorded={**facts.recorded, "python": has["python"], "numpy": has["numpy"]},
        )

    @property
    def reading(self) -> str:
        """See `Runtime.reading`. The numpy of a device multiplies there."""
        if not self.is_remote:
            return super().reading
        numpy = self.fingerprint.recorded["numpy"]
        return f"{PRODUCTS} products of {SIDE} x {SIDE} matrices, numpy {numpy}"

    @property
    def compiles_beside_timing(self) -> bool:
        """See `Runtime.compiles_beside_timing`."""
        return not self.is_remote

    def timing_context(self) -> AbstractContextManager[None]:
        """See `Runtime.timing_context`."""
        return self.files.timing_context()

    def compile(
        self, graph: Graph, schedules: Schedules, weights: Weights | None = None, batch: int = 1
    ) -> CompiledNetwork:
        """Load a network, which needs no schedules.

        Raises:
            MeasurementError: the runtime cannot run the network as a table predicts it.
        """
        return self.timer.compile(graph, weights, batch)
