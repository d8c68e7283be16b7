"""`KitRuntime`: another device, whose kernels are timed there by a program that needs nothing.

Importing this imports no TVM.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from nas.display.progress import Advance
from nas.errors import DeviceError, RequestError
from nas.latency.core_speed import SIDE
from nas.latency.device import Fingerprint
from nas.latency.kit import MANIFEST as MANIFEST_FILE
from nas.latency.kit import MAX_MB, RESULTS, KitDevice, KitSummary
from nas.latency.runtime import Schedules
from nas.runtimes.tvm.kit import address
from nas.runtimes.tvm.kit.address import KitTarget
from nas.runtimes.tvm.kit.manifest import MANIFEST
from nas.runtimes.tvm.runtime import TvmRuntime, kernel_versions
from nas.transports import Transport, is_address, transport_to
from nas.transports import address as transports
from nas.transports.facts import DeviceFacts

if TYPE_CHECKING:
    from nas.graph import Graph
    from nas.kernels.kernel import Kernel
    from nas.latency.rounds import Latency
    from nas.runtimes.tvm.kernel_timer import TvmKernelTimer


class KitRuntime(TvmRuntime, KitDevice):
    """Kernels that TVM compiles into a program, which runs on the device.

    See `nas.runtimes.tvm.kit.address` for the targets. A device that a person reaches is never
    touched: what it is follows from the target alone.

    Attributes:
        recorded: what a device that a person reaches said of itself, as far as it is known.
    """

    capabilities = replace(
        TvmRuntime.capabilities,
        max_threads=1,
        reading=f"products of {SIDE} x {SIDE} matrices, by the program of a kit",
    )
    recorded: Mapping[str, JsonValue] = {}
    settings = address.SETTINGS

    @classmethod
    def at_address(cls, target: str, address_: str | None) -> str:
        """Return the target of a table, with the address of its device if it has one."""
        if not address.is_carried(target):
            return transports.at_address(target, address_, cls.settings)
        if address_ is not None and address.is_carried(address_):
            address_ = address.parse(address_).text
        return super().at_address(target, address_)

    def check_target(self) -> None:
        """Raise RequestError for a target that is none. The processor is checked on opening."""
        if is_address(self.target):
            address.parse_address(self.target)
        else:
            address.parse(self.target)

    @property
    def is_remote(self) -> bool:
        """It is."""
        return True

    @cached_property
    def transport(self) -> Transport | None:
        """See `KitDevice.transport`."""
        if not is_address(self.target):
            return None
        return transport_to(address.parse_address(self.target)[0])

    @cached_property
    def facts(self) -> DeviceFacts | None:
        """What a device with an address says of itself. Raises BoardLostError."""
        if self.transport is None:
            return None
        with self.transport as transport:
            return DeviceFacts.of(transport)

    @cached_property
    def kit_target(self) -> KitTarget:
        """The device for which programs are compiled."""
        if self.facts is None:
            return address.parse(self.target)
        return address.described(self.target, self.facts)

    def open(self) -> None:
        """Check that TVM has code for the processor.

        Raises:
            RequestError: it does not know the triple, the processor or a feature.
            BoardLostError: a device with an address does not answer.
        """
        from nas.runtimes.tvm.cross import c_compiler, code_target

        target = self.kit_target
        code_target(target.triple, target.cpu, target.features)
        if self.transport is not None:
            c_compiler(target.triple, static=True)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The device: by its processor if it says what that is, or by its name."""
        target, facts = self.kit_target, self.facts
        return self.describe(
            f"{target.name} ({target.cpu})" if facts is None else facts.processor,
            () if facts is None else facts.features,
            versions=kernel_versions(),
            target=target.text,
            recorded=self.recorded if facts is None else facts.recorded,
        )

    def kit_programs(self, folder: Path) -> tuple[str, Sequence[str]]:
        """See `KitDevice.kit_programs`."""
        manifest = MANIFEST.read(folder / MANIFEST_FILE)
        return manifest.kit, manifest.programs

    def kit_contents(self, folder: Path) -> Collection[str]:
        """See `KitDevice.kit_contents`."""
        try:
            manifest = MANIFEST.read(folder / MANIFEST_FILE)
        except RequestError:
            return ()
        if (manifest.target, manifest.versions) != (self.fingerprint.target, kernel_versions()):
            return ()
        return {item.name for item in manifest.items if item.part != "dispatch"}

    def write_kernels_kit(
        self,
        kernels: Sequence[Kernel],
        spaces: Sequence[str],
        folder: Path,
        progress: Advance | None = None,
        *,
        batch: int = 1,
        max_mb: float = MAX_MB,
    ) -> KitSummary:
        """See `KitDevice.write_kernels_kit`."""
        from nas.runtimes.tvm.kit.program import write_table_kit

        manifest = write_table_kit(
            self.kit_target,
            kernels,
            folder,
            spaces=spaces,
            batch=batch,
            max_mb=max_mb,
            progress=progress,
        )
        own = [item for item in manifest.items if item.part == "kernel"]
        return KitSummary(
            manifest.kit,
            manifest.programs,
            sum((folder / name).stat().st_size for name in manifest.programs),
            len({item.name for item in own}),
            sum(item.error is None for item in own),
            {item.name: item.error for item in own if item.error is not None},
        )

    def import_kernels(
        self, folder: Path, tables: Path | str, progress: Advance | None = None
    ) -> Sequence[str]:
        """See `KitDevice.import_kernels`."""
        from nas.runtimes.tvm.kit.importing import import_kernels

        return import_kernels(self, folder, tables, progress)

    def write_networks_kit(
        self,
        networks: Mapping[str, Graph],
        schedules: Schedules,
        folder: Path,
        progress: Advance | None = None,
    ) -> None:
        """See `KitDevice.write_networks_kit`."""
        from nas.runtimes.tvm.kit.program import write_networks_kit

        write_networks_kit(self.kit_target, networks, schedules, folder, progress=progress)

    def network_latencies(
        self, folder: Path, recorded: Mapping[str, JsonValue]
    ) -> Mapping[str, Latency]:
        """See `KitDevice.network_latencies`."""
        from nas.runtimes.tvm.kit.results import Results, require_same_device

        results = Results.read(folder, "networks", self.fingerprint)
        if self.transport is None:
            what = f"{folder / RESULTS}, beside the latency table,"
            require_same_device(recorded, results.device, what)
        return results.network_latencies()

    @cached_property
    def timer(self) -> TvmKernelTimer:
        """There is none: raises DeviceError, which says how the device is timed."""
        if address.is_carried(self.target):
            raise DeviceError(
                f"The device of '{self.target}' is not connected to this machine: a kit times it.",
                remedy="Make one with `nas kit table`, run it on the device, and give its "
                "results.jsonl to `nas table import`. `nas kit networks` does it for the networks "
                "of a run.",
            )
        raise DeviceError(
            f"The device of '{self.target}' is timed by a program of many kernels.",
            remedy="`nas table build` and `nas table check` without --quick run it there.",
        )
