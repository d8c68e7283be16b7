"""Compiling int8 TensorFlow Lite files with Vela, in a process that may crash or hang.

`ethosu.regor.compile` is what Vela's command line calls. It is no public interface, so the extra
`ethos-u` pins the version, and a test compares the cycles with those of the command line. It is
native code, which can end its process; starting Vela for each file would take longer than the
compilation, so one process compiles them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nas.errors import MeasurementError, first_line
from nas.figures import Figure
from nas.machine.processes import ChildProcess
from nas.runtimes.ethos_u.configuration import Configuration

COMPILE_LIMIT_SECONDS = 100.0
"""How long one file may take to compile; most networks take tenths of a second. The limit of a
kernel in its worker, see `nas.latency.worker_process`, is above it and has a less precise error."""

_ON_CHIP_BUFFERS = frozenset({"shram", "lutram"})
"""Memories inside of the NPU, which the report lists with the system's memories."""


SRAM, DRAM = "Sram", "Dram"
"""Vela's names of the fast memory beside the NPU, and of DRAM. Those of flash end with `Flash`."""

FIGURES = (
    Figure("sram_kib", "SRAM, KiB"),
    Figure("flash_kib", "flash, KiB"),
    Figure("dram_traffic_kib", "DRAM traffic, KiB"),
    Figure("flash_traffic_kib", "flash traffic, KiB"),
    Figure("mac_utilisation", "MAC utilisation, %", scale=100.0, is_maximised=True),
)
"""Largest use of the SRAM at a time; size of weights and other constants as they are stored; what
is read from and written to DRAM, and to flash; and used multiply-accumulates, as a fraction of
those that the NPU could do in the same cycles."""


class OperatorRow(NamedTuple):
    """What one operation of the NPU takes.

    Attributes:
        source: position of the operator in the file from which it comes, from 0.
        kind: Vela's name of the operation, such as `DepthwiseConv2D`.
        cycles: cycles of the whole operation; 0 for an operation that runs as a part of another.
    """

    source: int
    kind: str
    cycles: int


@dataclass(frozen=True)
class Compilation:
    """A file that Vela compiled, and what its cycle model says of it.

    Args:
        model: the compiled TensorFlow Lite file.
        cycles: cycles of the network.
        rows: its operations; their cycles sum up to `cycles`.
        macs: multiply-accumulates that the NPU does.
        peak_bytes: largest use of each memory at a time, such as `Sram`, `Dram`, `OffChipFlash`.
        traffic_bytes: bytes that are read from and written to each memory.
        constant_bytes: size of weights, biases and tables as they are stored.
        details: the vendor's further figures, for the report beside an exported file.
    """

    model: bytes
    cycles: int
    rows: tuple[OperatorRow, ...]
    macs: int
    peak_bytes: dict[str, int]
    traffic_bytes: dict[str, int]
    constant_bytes: int
    details: dict[str, int]

    def figures(self, macs_per_cycle: int) -> dict[str, float]:
        """Return the memory, the traffic and the use of the multipliers; see `FIGURES`.

        Args:
            macs_per_cycle: largest number of multiply-accumulates in a cycle.
        """
        flash = sum(size for name, size in self.traffic_bytes.items() if name.endswith("Flash"))
        return {
            "sram_kib": self.peak_bytes.get(SRAM, 0) / 1024,
            "flash_kib": self.constant_bytes / 1024,
            "dram_traffic_kib": self.traffic_bytes.get(DRAM, 0) / 1024,
            "flash_traffic_kib": flash / 1024,
            "mac_utilisation": self.macs / (macs_per_cycle * self.cycles),
        }


def compile_file(data: bytes, configuration: Configuration) -> Compilation:
    """Compile a file whose operators must all run on the NPU.

    Raises:
        MeasurementError: Vela refuses the file, crashes or takes too long, or leaves an operator to
            the CPU; the message names the operators.
    """
    try:
        compilation: Compilation = _compiler.call(
            _compile, data, configuration, limit_s=COMPILE_LIMIT_SECONDS
        )
    except (ChildProcessError, TimeoutError) as error:
        raise MeasurementError(f"Vela's compiler {error}.") from error
    return compilation


def _compile(data: bytes, configuration: Configuration) -> Compilation:
    """Compile a file in this process; see `compile_file` for the errors."""
    from ethosu import regor

    try:
        compiled = regor.compile(
            configuration.architecture,
            data,
            "TFLITE",
            configuration.system,
            options=configuration.options,
            verbose=False,
        )
    except Exception as error:  # The bindings raise RuntimeError and ValueError, for anything.
        raise MeasurementError(f"Vela cannot compile it: {first_line(error)}.") from error
    report = compiled.perf_report
    if report.cpuOps:
        raise MeasurementError(
            f"Vela leaves {_cpu_operators(compiled)} to the CPU, whose time it does not know.",
        )
    rows = tuple(
        OperatorRow(int(row["source_id"]) - 1, row["operator"], int(row["op_cycles"]))
        for row in _table(compiled, "perf")
    )
    if sum(row.cycles for row in rows) != report.totalCycles:
        raise MeasurementError(
            f"Vela's operations take {sum(row.cycles for row in rows)} cycles, the network "
            f"{report.totalCycles}.",
            remedy="Use the version of ethos-u-vela that the extra 'ethos-u' installs.",
        )
    memories = {
        str(name): memory
        for name, memory in report.memories.items()
        if str(name).lower() not in _ON_CHIP_BUFFERS
    }
    return Compilation(
        bytes(compiled.model),
        report.totalCycles,
        rows,
        report.macCount,
        {name: memory.peakUsage for name, memory in memories.items()},
        {
            name: sum(each.bytesRead + each.bytesWritten for each in memory.accesses.values())
            for name, memory in memories.items()
        },
        report.readOnlyPeakUsage,
        {
            "npu_cycles": report.npuCycles,
            "npu_operations": report.npuOps,
            "cascaded_operations": report.cascadedOps,
            "weight_bytes": report.originalWeights,
            "encoded_weight_bytes": report.encodedWeights,
        },
    )


_compiler = ChildProcess()


def _table(compiled: Any, name: str) -> Sequence[dict[str, str]]:
    """Return the rows of a table of the compiler's data base, by the names of its columns."""
    table = compiled.opt_database.tables[name]
    return [dict(zip(table.header, row, strict=True)) for row in table.data]


def _cpu_operators(compiled: Any) -> str:
    """Return the operators that the CPU runs, as text; the compiler passes them through."""
    operators = {row["id"]: row["operator"] for row in _table(compiled, "source")}
    kinds = [
        operators.get(row["source_id"], "an operator")
        for row in _table(compiled, "perf")
        if row["operator"] == "Passthrough"
    ]
    return ", ".join(dict.fromkeys(kinds)) or "operators"
