"""Counters of energy: RAPL, boards that the package `zeus` knows, and power meters.

A counter says how many joules were used since some moment; what a load needs is the difference of
two readings.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from nas.errors import DeviceError, RequestError, first_line

POWERCAP = Path("/sys/class/powercap")
"""Folder with the counters of Intel's and AMD's processors on Linux."""

METER_LIMIT_SECONDS = 30.0
"""How long a power meter may take to print its next number."""

_ZEUS_FIELDS = (
    ("total_energy_mj",),
    ("cpu_energy_mj", "gpu_energy_mj"),
    ("cpu_total_mj", "dram_mj", "gpu_mj", "gpu_sram_mj", "ane_mj"),
)
"""Fields of a reading of `zeus` that make up the energy of a board: of a Jetson with and without a
sensor for the whole board, and of Apple silicon. The first ones that have values count."""


class Reading(NamedTuple):
    """A number of joules, and the moment at which it held on the clock `time.monotonic`."""

    at_s: float
    joules: float


class EnergyCounter(ABC):
    """What counts joules.

    Attributes:
        source: what is measured by what, such as "RAPL (package-0)".
    """

    source: str

    @abstractmethod
    def read(self) -> Reading:
        """Return the energy since some moment, now or soon after. Raises DeviceError."""

    def update(self) -> None:
        """Do what must be done once a minute, so that `read` is right."""
        return

    def close(self) -> None:
        """Stop counting."""
        return


class Rapl(EnergyCounter):
    """The counters of the processor packages and their memory, which Linux shows as files.

    They start at zero again after some minutes or hours, see
    https://docs.kernel.org/power/powercap/powercap.html.

    Args:
        zones: folders of the counters, see `rapl_zones`.

    Raises:
        DeviceError: a counter cannot be read.
    """

    def __init__(self, zones: dict[str, Path]) -> None:
        self._zones = list(zones.values())
        self.source = f"RAPL ({', '.join(zones)})"
        self._ranges_uj = [self._number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last_uj = self._counters_uj()
        self._total_uj = 0

    def read(self) -> Reading:
        """See `EnergyCounter.read`."""
        counters_uj = self._counters_uj()
        for last, now, span in zip(self._last_uj, counters_uj, self._ranges_uj, strict=True):
            self._total_uj += now - last if now >= last else now - last + span
        self._last_uj = counters_uj
        return Reading(time.monotonic(), self._total_uj / 1e6)

    def update(self) -> None:
        """Read the counters, so that none passes zero twice between two readings."""
        self.read()

    def _counters_uj(self) -> list[int]:
        return [self._number(zone / "energy_uj") for zone in self._zones]

    def _number(self, path: Path) -> int:
        try:
            return int(path.read_text())
        except OSError as error:
            raise DeviceError(
                f"The energy counter {path} cannot be read: {error.strerror}.",
                remedy=f"Allow it until the next start of the system: sudo chmod a+r {path}",
            ) from None
        except ValueError:
            raise DeviceError(f"The energy counter {path} holds no number.") from None


def rapl_zones(powercap: Path) -> dict[str, Path]:
    """Return the folders of the counters of all processor packages and their memory, by name.

    A counter of the whole platform (`psys`) or of cores counts what a package counts, too.
    """
    zones = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = (zone / "name").read_text().strip()
        if name.startswith("package"):
            zones[name] = zone
            for part in sorted(powercap.glob(f"{zone.name}:*")):
                if (part / "name").read_text().strip() == "dram":
                    zones[f"memory of {name}"] = part
    return zones


class Zeus(EnergyCounter):
    """The sensors of an NVIDIA Jetson or of Apple silicon, read by the package `zeus`.

    Args:
        board: what `zeus.device.get_soc` returns.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        reading = board.get_total_energy_consumption()
        known = [
            [name for name in names if getattr(reading, name, None) is not None]
            for names in _ZEUS_FIELDS
        ]
        self._fields = next((names for names in known if names), [])
        if not self._fields:
            raise DeviceError(
                f"Package zeus tells no energy of this board ({type(board).__name__}).",
                remedy="Use a power meter, see --meter.",
            )
        names = ", ".join(name.removesuffix("_mj").removesuffix("_energy") for name in self._fields)
        self.source = f"zeus, {type(board).__name__} ({names})"

    def read(self) -> Reading:
        """See `EnergyCounter.read`."""
        reading = self._board.get_total_energy_consumption()
        millijoules = sum(getattr(reading, name) for name in self._fields)
        return Reading(time.monotonic(), millijoules / 1000)


class Meter(EnergyCounter):
    """A command that prints the joules since its start, one number a line.

    A reading is the next line, and its moment is that at which it came.

    Args:
        command: the command with its arguments, as for a shell.

    Raises:
        RequestError: the command cannot be started.
    """

    def __init__(self, command: str) -> None:
        self.source = f"meter ({command})"
        self._command = command
        self._lines: SimpleQueue[tuple[float, str]] = SimpleQueue()
        self._last_joules = 0.0
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                errors="replace",
            )
        except (OSError, ValueError, IndexError) as error:
            raise RequestError(
                f"The power meter {command!r} cannot be started: {first_line(error)}.",
                remedy="Give a command that prints the joules since its start, one number a line.",
            ) from None
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        """Put each line into the queue, and at the end an empty one."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.monotonic(), line))
        self._lines.put((float("inf"), ""))

    def read(self) -> Reading:
        """See `EnergyCounter.read`."""
        called_s = time.monotonic()
        while True:
            try:
                at_s, line = self._lines.get(timeout=METER_LIMIT_SECONDS)
            except Empty:
                raise self._error(f"printed nothing for {METER_LIMIT_SECONDS:g} s") from None
            if not line:
                self._errors.seek(0)
                message = (self._errors.read().strip().splitlines() or [""])[-1]
                raise self._error(f"has ended{': ' * bool(message)}{message}")
            try:
                joules = float(line)
            except ValueError:
                raise self._error(f"printed {line.strip()[:60]!r}, which is no number") from None
            if not self._last_joules <= joules < float("inf"):
                raise self._error(f"printed {joules:g} after {self._last_joules:g}")
            self._last_joules = joules
            if at_s >= called_s:
                return Reading(at_s, joules)

    def _error(self, problem: str) -> DeviceError:
        return DeviceError(
            f"The power meter {self._command!r} {problem}.",
            remedy="It should print the joules since its start, one number a line, and flush it.",
        )

    def close(self) -> None:
        """End the command."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def find_counter(meter: str | None = None) -> EnergyCounter:
    """Return the energy counter of this machine.

    Args:
        meter: command of a power meter, see `Meter`; by default RAPL counts, or else `zeus`.

    Raises:
        RequestError: the meter cannot be started.
        DeviceError: there is no counter, or it cannot be read; the message says what is missing.
    """
    if meter is not None:
        return Meter(meter)
    if zones := rapl_zones(POWERCAP):
        return Rapl(zones)
    missing = f"there is no {POWERCAP / 'intel-rapl:0'} (RAPL; virtual machines hide it), and "
    try:
        from zeus.device import get_soc
        from zeus.device.exception import ZeusBaseSoCError
    except ImportError:
        missing += (
            "package zeus, which reads the sensors of an NVIDIA Jetson or of Apple silicon, is not "
            "installed (pip install 'hardware-nas[energy]')"
        )
    else:
        try:
            return Zeus(get_soc())
        except ZeusBaseSoCError as error:
            missing += f"package zeus says: {str(error).rstrip('.')}"
    raise DeviceError(
        f"This machine has no energy counter: {missing}.",
        remedy="Use a power meter: --meter COMMAND, which prints the joules since its start.",
    )
