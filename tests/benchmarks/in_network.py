"""What kernels take within a network, compared with a latency table.

    python -m tests.benchmarks.in_network TABLE --space shufflenet --image-size 224

Compiles random networks with a reading of the clock after each kernel, and prints by kind of kernel
how many times longer the kernels take than in the table, where they were timed alone. For each
network, prints the miss fraction that the table predicts (`nas.latency.cache_model`), and the one
that its kernels show: what they take longer than in the table, over what they would take longer
with weights from memory. Kernels that are timed alone between the networks tell how fast the
processor is, and all times are divided by it.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import tirx

from nas.cli.options import load_adapted_space
from nas.graph import Graph
from nas.latency import LatencyTable, open_runtime, timing
from nas.latency.fusion import Launch, launches
from nas.runtimes.tvm.clock import clock_of, empty_readings, nanoseconds, write_reading
from nas.runtimes.tvm.network_function import network_function, taking_addresses
from nas.runtimes.tvm.relax_network import _Constants
from nas.runtimes.tvm.runtime import TvmRuntime

RUNS = 40
"""Runs of a network; the median of the last three quarters counts."""

ALONE = 12
"""Kernels that are timed alone between the networks."""


class ProfiledNetwork:
    """A network that reads the clock after each kernel.

    Args:
        graph: the network.
        table: latency table of this device, whose schedules it uses.
        runtime: the runtime of the table.
    """

    def __init__(self, graph: Graph, table: LatencyTable, runtime: TvmRuntime) -> None:
        templates, device = runtime.timer.templates, runtime.timer.device
        schedules = table.schedules()
        self.sequence: Sequence[Launch] = launches(graph, fuse_expansions=True)
        constants = _Constants(schedules, None, templates)
        callees = {
            launch.kernel: tvm.ir.GlobalVar(f"kernel_{index}")
            for index, launch in enumerate(self.sequence)
        }
        c, h, w = graph.input_shape
        network = network_function(
            self.sequence,
            callees,
            [constants.of(launch) for launch in self.sequence],
            c * h * w,
            templates.dtype,
        )
        functions = {
            callee: taking_addresses(
                templates.function(kernel, schedules[kernel], callee.name_hint).with_attr(
                    "global_symbol", callee.name_hint
                )
            )
            for kernel, callee in callees.items()
        }
        main = _with_clock(network.function, len(self.sequence), clock_of(templates.target))
        module = tvm.IRModule({**functions, tvm.ir.GlobalVar("main"): main})
        built = tvm.tirx.build(module, templates.target, "tirx")
        self._run = device.load_library(built)["main"]
        last = self.sequence[-1].kernel
        self._readings = device.to_device(empty_readings(len(self.sequence) + 1))
        self._tensors = [
            *(
                device.to_device(np.asarray(array, np.float32))
                for array in (
                    np.random.default_rng(0).standard_normal(c * h * w),
                    network.weights,
                    np.zeros(last.elements(last.output)),
                )
            ),
            self._readings,
        ]

    def kernels_us(self) -> NDArray[np.float64]:
        """Return the microseconds of each kernel within the network."""
        taken = []
        for _ in range(RUNS):
            self._run(*self._tensors)
            taken.append(np.diff(nanoseconds(self._readings.numpy())))
        return np.median(taken[RUNS // 4 :], axis=0) / 1000


def _with_clock(function: tirx.PrimFunc, kernels: int, clock: int | None) -> tirx.PrimFunc:
    """Return the function of a network that also reads the clock, before and after each kernel."""
    assert clock is not None
    readings = tirx.decl_buffer((2 * (kernels + 1),), "int64", "readings")

    allocation, *calls = function.body.seq
    body = [allocation, write_reading(readings, 0, clock)]
    for index, call in enumerate(calls, start=1):
        body += [call, write_reading(readings, index, clock)]
    return tirx.PrimFunc([*function.params, readings], tirx.SeqStmt(body)).with_attr(
        "global_symbol", "main"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="table of this device, in float32 by TVM")
    parser.add_argument("--space", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--nets", type=int, default=6, help="random networks")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    runtime = open_runtime("tvm")
    assert isinstance(runtime, TvmRuntime)
    table = LatencyTable.open(arguments.table, runtime=runtime)
    space = load_adapted_space(arguments.space, arguments.image_size, None, None)
    rng = np.random.default_rng(arguments.seed)
    graphs = [space.sample(rng, uniform_over="choices").graph for _ in range(arguments.nets)]
    by_kind: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    print("kernels  MiB    us in network  in table  predicted  misses: predicted, shown")
    for graph in graphs:
        profile(ProfiledNetwork(graph, table, runtime), graph, table, runtime, by_kind)
    print(f"\n{'kind':<30}{'kernels':>8}{'us in network':>15}{'over the table':>16}")
    for kind, pairs in sorted(by_kind.items(), key=lambda each: -sum(us for us, _ in each[1])):
        own, timed = (sum(column) for column in zip(*pairs, strict=True))
        print(f"{kind:<30}{len(pairs):>8}{own:>15.1f}{own / timed:>16.3f}")


def profile(
    network: ProfiledNetwork,
    graph: Graph,
    table: LatencyTable,
    runtime: TvmRuntime,
    by_kind: dict[str, Any],
) -> None:
    """Print the row of a network, and add its kernels to those of their kinds."""
    kernels = [launch.kernel for launch in network.sequence]
    timed_us = np.array([table.latency_us(kernel) for kernel in kernels])
    penalties_us = np.array([table.cold_penalty_us(kernel) for kernel in kernels])
    slowest = sorted(set(kernels), key=table.latency_us)[-ALONE:]
    alone = mean(
        runtime.retime_kernel(kernel, table.schedules()[kernel]).latency_us
        / table.latency_us(kernel)
        for kernel in slowest
    )
    with timing.pinned(1):
        own_us = network.kernels_us() / alone
    has_penalty = penalties_us > 0
    shown = (own_us - timed_us)[has_penalty].sum() / penalties_us.sum()
    touched = sum(map(table.weight_bytes, kernels)) + graph.peak_memory_bytes
    predicted = table.dispatch.miss_fraction(touched, float(timed_us.sum()))
    prediction_us = table.predict(graph).uncorrected_us
    print(
        f"{len(kernels):>7}{touched / 2**20:>6.1f}{own_us.sum():>14.0f}{timed_us.sum():>10.0f}"
        f"{prediction_us:>11.0f}{predicted:>20.2f}{shown:>7.2f}"
    )
    for kernel, own, timed in zip(kernels, own_us, timed_us, strict=True):
        by_kind[kernel.detailed_kind].append((own, timed))


if __name__ == "__main__":
    main()
