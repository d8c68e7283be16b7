"""`KitDevice`: a device that is timed by kits, programs that are compiled for it.

A kit is a folder with a program, which is copied to the device and started there, and whose file of
results comes back into the folder. A transport does that (`run_kit`), or a person: a command that
needs timings then writes a kit, says what to do, and ends; it goes on when it is repeated with the
results.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue, ValidationError

from nas.display.progress import Advance
from nas.errors import BoardLostError, DeviceError, RequestError
from nas.files import jsonl
from nas.files.documents import Count, Document, Format, shortened
from nas.latency.device import Text
from nas.latency.installed_runtimes import runtime_class, runtime_names
from nas.latency.rounds import Latency
from nas.latency.runtime import Runtime, Schedules
from nas.transports import Transport

if TYPE_CHECKING:
    from nas.graph import Graph
    from nas.kernels.kernel import Kernel

RESULTS: Final = "results.jsonl"
"""Name of the file in the folder of a kit that its program writes."""

_START = b'{"line":'
"""Start of that file."""

MANIFEST: Final = "kit.json"
"""Name of the file in the folder of a kit that says what it times, and for which target."""

LOST_SECONDS = 300.0
"""How long a lost device is waited for: a small one takes a minute or two to start anew."""

LOST_PAUSE_SECONDS = 2.0
"""Pause before each attempt to reach it."""

HOT_SECONDS = 3600.0
"""How long a hot device may cool: its program gives up after 300 s, and is started again."""

MAX_RESULTS_BYTES = 1 << 30
"""Largest file of results: one of 2,000 kernels has less than a tenth of it."""

SILENCE_SECONDS = 400.0
"""Longest time in which a program may write nothing: it waits 300 s for a hot device."""

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

    Its `timer` and `compile` raise DeviceError. If a person carries its kits, it opens without the
    device, and its `fingerprint` needs no device.
    """

    @property
    @abstractmethod
    def transport(self) -> Transport | None:
        """What carries kits to the device; None for a person."""

    @property
    def build_command(self) -> str:
        """See `Runtime.build_command`."""
        return "nas table build --target ADDRESS" if self.transport else "nas kit table"

    def require_transport(self) -> Transport:
        """Return what carries kits. Raises DeviceError, with what a person does, if one does."""
        if self.transport is None:
            _ = self.timer
        assert self.transport is not None
        return self.transport

    @abstractmethod
    def kit_programs(self, folder: Path) -> tuple[str, Sequence[str]]:
        """Return the digest of the kit in a folder, and the names of its programs."""

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
    def network_latencies(
        self, folder: Path, recorded: Mapping[str, JsonValue]
    ) -> Mapping[str, Latency]:
        """Return the latencies by a kit of networks, by digest, of those that were timed or failed.

        Args:
            folder: the folder of the kit, with its results.
            recorded: what the device of the table said of itself.

        Raises:
            NasError: the results are damaged, of another kit, or of another device.
        """


def carried(runtime: Runtime) -> KitDevice | None:
    """Return the device of a runtime if a person carries its kits, and else None."""
    if isinstance(runtime, KitDevice) and runtime.transport is None:
        return runtime
    return None


def run_kit(
    device: KitDevice,
    folder: Path,
    progress: Advance | None = None,
    *,
    lost_s: float = LOST_SECONDS,
) -> None:
    """Run a kit on its device until everything is timed, and bring its results home.

    Each line of the results is here as soon as it is on the disk of the device. After a lost
    connection, an end of either side or a new start of the device, the program goes on with what
    either side has. It does so, too, when it gave up on a hot device.

    Args:
        device: the device, which a transport reaches.
        folder: folder of the kit, with results or not.
        progress: function of the timings that are done, of all, and of a text.
        lost_s: how long a lost device is waited for.

    Raises:
        BoardLostError: the device is gone for longer.
        DeviceError: the program cannot run there, or ended by itself; the message says why.
    """
    transport = device.transport
    assert transport is not None
    digest, programs = device.kit_programs(folder)
    stuck_at: float | None = None
    with transport:
        while True:
            is_hot = False
            try:
                remote = transport.lasting_folder(f"kit-{digest}")
                for name in programs:
                    _send_program(transport, folder / name, f"{remote}/{name}")
                for name in programs:
                    _share_results(transport, folder / RESULTS, f"{remote}/{RESULTS}")
                    for content in _lines_of(transport, name, remote):
                        line = _take_line(content, folder / RESULTS, progress)
                        is_hot = line.reason == "hot"
                        if line.line in _STEPS:
                            stuck_at = None
                # The program before may have written lines after its connection was lost.
                _share_results(transport, folder / RESULTS, f"{remote}/{RESULTS}")
                transport.remove(remote)
                return
            except DeviceError as error:
                limit_s = lost_s if isinstance(error, BoardLostError) else HOT_SECONDS
                if not (is_hot or isinstance(error, BoardLostError)):
                    raise
                now = time.monotonic()
                if stuck_at is None:
                    stuck_at = now
                    text = f"{error.message} It is tried again for {limit_s:.0f} s."
                    warnings.warn(text, stacklevel=2)
                if now > stuck_at + limit_s:
                    raise
                transport.close()
                time.sleep(LOST_PAUSE_SECONDS)


def measure_by_kit(
    graphs: Sequence[Graph],
    device: KitDevice,
    schedules: Schedules,
    progress: Advance | None = None,
) -> list[Latency]:
    """Time whole networks on a device, see `nas.latency.networks.measure_networks`.

    Raises:
        DeviceError: a person carries the kits of the device, or see `run_kit`.
    """
    transport = device.require_transport()
    with tempfile.TemporaryDirectory(prefix="nas-kit-") as temporary:
        folder = Path(temporary) / "kit"
        names = [str(number) for number in range(len(graphs))]
        device.write_networks_kit(dict(zip(names, graphs, strict=True)), schedules, folder)
        # The device may have results of the same kit from a command that was killed.
        with transport:
            transport.remove(transport.lasting_folder(f"kit-{device.kit_programs(folder)[0]}"))
        run_kit(device, folder, progress)
        latencies = device.network_latencies(folder, {})
    missing = Latency([], None, "the device did not time it")
    return [latencies.get(name, missing) for name in names]


def _send_program(transport: Transport, path: Path, to: str) -> None:
    """Copy a program to the device, unless it is there."""
    if transport.size(to) != path.stat().st_size:
        transport.send(path, to, executable=True)


def _share_results(transport: Transport, path: Path, remote: str) -> None:
    """Give the device or this machine the results that only the other one has.

    A program appends to a file, so that the longer one has all of them.
    """
    jsonl.repair(path, _START)
    own, there = path.stat().st_size if path.exists() else 0, transport.size(remote) or 0
    _require_size(there, remote)
    if own > there:
        transport.send(path, remote)
    elif there > own:
        transport.fetch(remote, path)
        jsonl.repair(path, _START)


def _lines_of(transport: Transport, name: str, remote: str) -> Iterator[bytes]:
    """Start a program, and yield the lines that it writes, until it ends as it should."""
    with transport.start([f"./{name}", "--stream"], folder=remote) as program:
        yield from program.lines(limit_s=SILENCE_SECONDS)
        program.require_success()


class _Line(Document):
    """What the lines of all programs have. One of progress is not for the file of results."""

    line: Text
    done: Count = 0
    of: Count = 0
    reason: Text = ""


_STEPS = ("quick", "timing", "failed", "progress", "waiting")
"""Lines after which a program is not stuck. It waits while another one runs on the device."""


def _take_line(content: bytes, results: Path, progress: Advance | None) -> _Line:
    """Append a line of results to their file, or show the progress that it tells."""
    try:
        line = _Line.model_validate_json(content)
    except ValidationError:
        raise DeviceError(
            f"The program of a kit wrote {shortened(content.decode(errors='replace'))}, which is "
            "no line of its results."
        ) from None
    if line.line in ("progress", "waiting"):
        if progress is not None:
            is_waiting = line.line == "waiting"
            text = "waits for another kit on the device" if is_waiting else "on the device"
            progress(line.done, line.of or None, text)
        return line
    with results.open("ab") as file:
        file.write(content + b"\n")
        file.flush()
        os.fsync(file.fileno())
        _require_size(file.tell(), str(results))
    return line


def _require_size(size: int, name: str) -> None:
    """Raise DeviceError for a file of results that is too large."""
    if size > MAX_RESULTS_BYTES:
        raise DeviceError(
            f"{name} has {size} bytes, and results of a kit have {MAX_RESULTS_BYTES} at most.",
            remedy="Remove the file, and start again.",
        )


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
