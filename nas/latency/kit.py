"""`KitDevice`: a device that only its user reaches, and that is timed by kits.

A kit is a folder with a program for the device. Its user copies the folder there, starts the
program, and copies the file of its results back into the folder. So a command that needs timings
writes a kit, says what to do, and ends; it goes on when it is repeated with the results.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nas.display.progress import Advance
from nas.errors import RequestError
from nas.files.documents import Document, Format, shortened
from nas.latency.device import Text
from nas.latency.installed_runtimes import runtime_class, runtime_names
from nas.latency.runtime import Runtime, Schedules

if TYPE_CHECKING:
    from nas.graph import Graph
    from nas.kernels.kernel import Kernel
    from nas.latency.rounds import Latency

RESULTS: Final = "results.jsonl"
"""Name of the file in the folder of a kit that its program writes."""

MANIFEST: Final = "kit.json"
"""Name of the file in the folder of a kit that says what it times, and for which target."""

MAX_MB = 200.0
"""Largest size of a program: a device with a shell may have little room."""


@dataclass(frozen=True)
class KitSummary:
    """A kit that was written.

    Attributes:
        digest: what its results name it by.
        programs: names of its programs.
        size_bytes: size of all of them.
        kernels: number of kernels.
        candidates: number of their schedules that it times.
        errors: why a kernel cannot be compiled, by its text.
    """

    digest: str
    programs: tuple[str, ...]
    size_bytes: int
    kernels: int
    candidates: int
    errors: Mapping[str, str]


class KitDevice(Runtime):
    """A runtime whose device is timed by kits.

    Such a runtime opens without the device, and its `fingerprint` needs no device. Its `timer` and
    `compile` raise DeviceError.
    """

    @abstractmethod
    def kit_contents(self, folder: Path) -> Collection[str]:
        """Return what the kit in a folder times: texts of kernels, or digests of networks.

        Nothing if the folder holds no kit, or one for another device or other versions of the code.
        """

    @abstractmethod
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
        """Write the kit that times kernels and the dispatch costs.

        A kernel that cannot be compiled becomes a failed row of the table.

        Args:
            kernels: the kernels.
            spaces: what they belong to, in words.
            folder: the folder, new or that of a kit without results.
            progress: function to call after each kernel.
            batch: number of images of one inference.
            max_mb: size of a program in megabytes from which on there are several.

        Raises:
            RequestError: there is no compiler for the device, or the folder has something else.
        """

    @abstractmethod
    def import_kernels(
        self, folder: Path, tables: Path | str, progress: Advance | None = None
    ) -> Sequence[str]:
        """Add the timings of a kit to the latency table of the device, which is made if missing.

        Timings that the table has are not added twice.

        Args:
            folder: the folder of the kit, with its results.
            tables: file or folder of the table, see `LatencyTable.open_or_create`.
            progress: function to call after each kernel.

        Returns:
            Sentences on what is missing or doubtful.

        Raises:
            NasError: the results are damaged, or of another kit.
        """

    @abstractmethod
    def write_networks_kit(
        self,
        networks: Mapping[str, Graph],
        schedules: Schedules,
        folder: Path,
        progress: Advance | None = None,
    ) -> None:
        """Write the kit that times whole networks.

        Args:
            networks: the networks by digest.
            schedules: schedules of all their kernels.
            folder, progress: see `write_kernels_kit`.

        Raises:
            RequestError: there is no compiler for the device.
        """

    @abstractmethod
    def network_latencies(self, folder: Path) -> Mapping[str, Latency]:
        """Return the latencies by a kit of networks, by digest, of those that were timed or failed.

        Raises:
            NasError: the results are damaged, or of another kit.
        """


class _Kit(Document):
    """What the manifests of all runtimes' kits have."""

    target: Text


_KIT = Format(_Kit, f"the {MANIFEST} of a kit", RequestError, "Restore it from the kit.")


def device_of(folder: Path) -> KitDevice:
    """Return the device of the kit in a folder.

    Raises:
        RequestError: the folder holds no kit, or that of a runtime that is not installed.
    """
    if not (folder / MANIFEST).exists():
        raise RequestError(
            f"There is no {folder / MANIFEST}.",
            remedy=f"Copy {RESULTS} into the folder that `nas kit` made, and name it there.",
        )
    try:
        return device_for(_KIT.read(folder / MANIFEST).target)
    except RequestError as error:
        raise _KIT.failure(f"{folder / MANIFEST}: {error.message.rstrip('.')}") from None


def device_for(target: str) -> KitDevice:
    """Return the device of a target. Raises RequestError if no runtime has kits for it."""
    for name in runtime_names():
        cls = runtime_class(name).for_target(target)
        if issubclass(cls, KitDevice):
            device = cls(target=target)
            device.check_target()
            return device
    raise RequestError(
        f"No installed runtime has kits for {shortened(target)}.",
        remedy="Name a device: kit:NAME?triple=TRIPLE&cpu=CPU.",
    )
