"""`KitRuntime`: a device that has only a shell. Its kernels are timed there by a kit.

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
from nas.latency.kit import MAX_MB, KitDevice, KitSummary
from nas.latency.runtime import Schedules
from nas.runtimes.tvm.kit import address
from nas.runtimes.tvm.kit.manifest import MANIFEST
from nas.runtimes.tvm.runtime import TvmRuntime, kernel_versions

if TYPE_CHECKING:
    from nas.graph import Graph
    from nas.kernels.kernel import Kernel
    from nas.latency.rounds import Latency
    from nas.runtimes.tvm.kernel_timer import TvmKernelTimer


class KitRuntime(TvmRuntime, KitDevice):
    """Kernels that TVM compiles into a program, which the user copies to the device and runs there.

    See `nas.runtimes.tvm.kit.address` for the targets. The device itself is never touched: what it
    is follows from the target alone.

    Attributes:
        recorded: what the device said of itself, as far as it is known.
    """

    capabilities = replace(
        TvmRuntime.capabilities,
        max_threads=1,
        reading=f"products of {SIDE} x {SIDE} matrices, by the program of a kit",
    )
    recorded: Mapping[str, JsonValue] = {}

    @classmethod
    def at_address(cls, target: str, address_: str | None) -> str:
        """Return the target of a table, which the user may have given in another form."""
        given = address.parse(address_).text if address_ and address.is_kit(address_) else address_
        return super().at_address(target, given)

    def check_target(self) -> None:
        """Raise RequestError for a target that is none. The processor is checked on opening."""
        address.parse(self.target)

    @property
    def is_remote(self) -> bool:
        """It is."""
        return True

    @property
    def device_count(self) -> int:
        """The device has a name, so there is one."""
        return 1

    def open(self) -> None:
        """Check that TVM has code for the processor.

        Raises:
            RequestError: it does not know the triple, the processor or a feature.
        """
        from nas.runtimes.tvm.cross import code_target

        target = address.parse(self.target)
        code_target(target.triple, target.cpu, target.features)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The device by its name, with TVM's version."""
        target = address.parse(self.target)
        return self.describe(
            f"{target.name} ({target.cpu})",
            versions=kernel_versions(),
            target=target.text,
            recorded=self.recorded,
        )

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
            address.parse(self.target),
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

        return import_kernels(self.target, folder, tables, progress)

    def write_networks_kit(
        self,
        networks: Mapping[str, Graph],
        schedules: Schedules,
        folder: Path,
        progress: Advance | None = None,
    ) -> None:
        """See `KitDevice.write_networks_kit`."""
        from nas.runtimes.tvm.kit.program import write_networks_kit

        target = address.parse(self.target)
        write_networks_kit(target, networks, schedules, folder, progress=progress)

    def network_latencies(self, folder: Path) -> Mapping[str, Latency]:
        """See `KitDevice.network_latencies`."""
        from nas.runtimes.tvm.kit.results import Results

        return Results.read(folder, "networks", self.fingerprint).network_latencies()

    @cached_property
    def timer(self) -> TvmKernelTimer:
        """There is none: raises DeviceError, which says how the device is timed."""
        raise DeviceError(
            f"The device of '{self.target}' is not connected to this machine: a kit times it.",
            remedy="Make one with `nas kit table`, run it on the device, and give its "
            "results.jsonl to `nas table import`. `nas kit networks` does it for the networks of a "
            "run.",
        )
