"""Latency tables of fake devices, with the kernels of a network and of the parts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.plans.split import find_cuts, halves
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime, device

LAUNCH_US, START_US = 0.5, 2.0
"""Dispatch costs of the tables. Waiting for weights costs nothing."""


def kernels_of_parts(graph: Graph) -> list[Kernel]:
    """Return the kernels of a network and of the parts of all its cuts, as TVM runs them."""
    runtime, folded = TvmRuntime(), graph.folded
    cuts = [halves(folded, position) for position in find_cuts(folded, [runtime])[0]]
    parts = [folded, *(part for parts in cuts for part in parts)]
    return list(dict.fromkeys(kernel for part in parts for kernel in runtime.kernels(part)))


def write_table(
    path: Path,
    kernels: Iterable[Kernel],
    latency_us: Callable[[Kernel], float],
    start_us: float = START_US,
    launch_us: float = LAUNCH_US,
) -> LatencyTable:
    """Write a table of a device of its own, in which kernels have these latencies."""
    runtime = FakeRuntime(device(processor=f"CPU {path.stem}"))
    table = LatencyTable.open_or_create(path, runtime)
    costs = {"launch": launch_us, "invocation": start_us}
    with table.writing():
        for part in TvmRuntime.capabilities.dispatch_parts:
            table.append(
                Record.from_timings("dispatch", [timing(costs.get(part, 30.0))], name=part)
            )
        for kernel in kernels:
            table.append(
                Record.from_timings("kernel", [timing(latency_us(kernel))], name=kernel.text)
            )
    return LatencyTable.open(path)


def timing(us: float) -> Timing:
    return Timing((us,))
