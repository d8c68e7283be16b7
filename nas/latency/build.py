"""Builds a latency table: enumerates what spaces need, times what is missing, row by row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from nas.graph import Graph
from nas.latency import runtimes
from nas.latency.kernel import Kernel
from nas.latency.record import Record
from nas.latency.runtimes import Runtime
from nas.latency.table import LatencyTable


class Fragmented(Protocol):
    """What this module needs of a `nas.space.SearchSpace`."""

    def fragments(self) -> Iterable[Graph]:
        """Every block by itself, for every input shape that can reach it."""
        ...


@dataclass(frozen=True)
class Progress:
    """One kernel is done: the `done`-th of `total`, `seconds` after the start."""

    record: Record
    done: int
    total: int
    seconds: float

    @property
    def remaining_seconds(self) -> float:
        """An estimate from the mean so far."""
        return self.seconds / self.done * (self.total - self.done)


@dataclass(frozen=True)
class BuildResult:
    """What a build added, by status, and how long it took."""

    ok: int
    unstable: int
    failed: int
    seconds: float

    @property
    def added(self) -> int:
        """Records added, whatever their status."""
        return self.ok + self.unstable + self.failed


def space_kernels(space: Fragmented, runtime_name: str) -> list[Kernel]:
    """Every kernel that any architecture of a space can launch, once each.

    Kernels depend on nothing beyond the neighbouring block, so a space's fragments have them all.
    Raises RequestError for an unknown runtime.
    """
    fusion = runtimes.fusion(runtime_name)
    found: dict[Kernel, None] = {}
    for fragment in space.fragments():
        found.update(dict.fromkeys(fusion.kernels(fragment)))
    return list(found)


def build_table(
    table: LatencyTable,
    kernels: Iterable[Kernel],
    runtime: Runtime,
    *,
    retry_failed: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> BuildResult:
    """Times the kernels that a table does not have; each is on the disk before the next starts.

    A kernel that cannot be compiled or timed becomes a failed record with its error, and the build
    goes on. Stopped at any point and started again, a build continues with what is missing.

    Raises TableError where another process writes the table, MeasurementError where the cost of a
    launch cannot be told from noise.
    """
    counts = {"ok": 0, "unstable": 0, "failed": 0}
    start = time.monotonic()
    with table.writing():
        if table.lacks_dispatch():
            for part, timing in runtime.time_dispatch().items():
                table.append(Record.of_timing("dispatch", timing, name=part))
        missing = table.missing(kernels, failed=retry_failed)
        for done, kernel in enumerate(missing, start=1):
            record = table.append(_timed(kernel, runtime))
            counts[record.status] += 1
            if progress is not None:
                seconds = time.monotonic() - start
                progress(Progress(record, done, len(missing), seconds))
    return BuildResult(**counts, seconds=time.monotonic() - start)


def _timed(kernel: Kernel, runtime: Runtime) -> Record:
    try:
        schedule, timing = runtime.time_kernel(kernel)
    # A compiler may raise anything; whatever it is, it becomes the kernel's record.
    except Exception as error:
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
        return Record("kernel", kernel.text, "failed", error=text)
    return Record.of_timing("kernel", timing, name=kernel.text, schedule=schedule)
