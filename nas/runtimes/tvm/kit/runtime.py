"""`KitRuntime`: a device that has only a shell. Its kernels are timed there by a kit.

Importing this imports no TVM.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import JsonValue

from nas.errors import DeviceError, RequestError
from nas.latency.device import Fingerprint
from nas.runtimes.tvm.kit import address
from nas.runtimes.tvm.runtime import TvmRuntime, kernel_versions

if TYPE_CHECKING:
    from nas.runtimes.tvm.kernel_timer import TvmKernelTimer


class KitRuntime(TvmRuntime):
    """Kernels that TVM compiles into a program, which the user copies to the device and runs there.

    See `nas.runtimes.tvm.kit.address` for the targets. The device itself is never touched: what it
    is follows from the target alone.

    Attributes:
        recorded: what the device said of itself, as far as it is known.
    """

    recorded: Mapping[str, JsonValue] = {}

    @classmethod
    def at_address(cls, target: str, address_: str | None) -> str:
        """Return the target of a table, which the user may have given in another form."""
        given = address.parse(address_).text if address_ and address.is_kit(address_) else address_
        return super().at_address(target, given)

    def check_target(self) -> None:
        """Raise RequestError for a target that is none. The processor is checked on opening."""
        address.parse(self.target)

    def check_threads(self) -> None:
        """Raise RequestError for more than the one thread that runs a kit."""
        super().check_threads()
        if self.threads != 1:
            raise RequestError(
                f"threads is {self.threads}, but a kit runs on one thread.", remedy="Use 1."
            )

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
        return Fingerprint(
            processor=f"{target.name} ({target.cpu})",
            features=(),
            runtime=self.name,
            versions=kernel_versions(),
            target=target.text,
            dtype=self.dtype,
            threads=self.threads,
            recorded=dict(self.recorded),
        )

    @cached_property
    def timer(self) -> TvmKernelTimer:
        """There is none: raises DeviceError, which says how the device is timed."""
        raise DeviceError(
            f"The device of '{self.target}' is not connected to this machine: a kit times it.",
            remedy="Make one with `nas kit table`, run it on the device, and give its "
            "results.jsonl to `nas table import`. `nas kit networks` does it for the networks of a "
            "run.",
        )
