"""Compare TVM's kernels with ONNX Runtime's, kernel by kernel. Needs an idle machine.

    python -m tests.benchmarks.kernels [--only mobilenet_v2] [--tables FOLDER]

Kernels of the published networks are first timed with TVM, into the device's latency table in
FOLDER, where a second run finds them. ONNX Runtime then runs each network as a whole, optimised as
for any user, and its profile says how long each node took. Such times contain no session calls, and
no layout changes that a node by itself would need. A kernel of ours that does the work of several
nodes is compared with their sum. The profile counts whole microseconds, so the time of a node is
the mean of the faster half of many runs.
"""

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from scipy.stats import gmean

from nas import onnx_model
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency import timing as clock
from nas.latency.networks import random_weights
from nas.latency.worker_process import timers_for
from nas.space import load_definition, space_names

PROFILED_RUNS = 60
"""Runs of each network under ONNX Runtime's profiler."""

MIN_NODE_US = 3.0
"""Shortest nodes that are compared, in microseconds.

The time of a shorter node is mostly that of the profiler itself, and rounding.
"""

Ratios = list[tuple[float, Kernel]]
"""Latency with TVM over the time with ONNX Runtime, of each kernel."""


def published_networks(prefix: str) -> Iterator[Graph]:
    """Yield the folded graphs of the published networks whose names start with `prefix`."""
    for space in map(load_definition, space_names()):
        for reference in space.references:
            if reference.name.startswith(prefix):
                yield space.published(reference.name).graph.folded


def node_times_us(graph: Graph) -> dict[str, float]:
    """Return the microseconds of each node of ONNX Runtime's optimised model, by node name."""
    rng = np.random.default_rng(0)
    weights = random_weights(graph, rng)
    image = {onnx_model.INPUT: rng.random((1, *graph.input_shape), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            onnx_model.model(graph, weights).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        with clock.pinned(1):
            for _ in range(PROFILED_RUNS):
                session.run(None, image)
        events = json.loads(Path(session.end_profiling()).read_text())
    times_us = defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            times_us[event["name"].removesuffix("_kernel_time")].append(event["dur"])
    faster_half = PROFILED_RUNS // 2
    return {name: statistics.mean(sorted(us)[:faster_half]) for name, us in times_us.items()}


def node_times_by_launch_us(graph: Graph) -> dict[int, float]:
    """Return the microseconds of ONNX Runtime's nodes for each of our launches, by its result.

    The nodes of a launch are those between the result of the launch before and its own.
    """
    op_index = {}
    for index, op in enumerate(graph.ops):
        op_index[f"{op.kind}_{index}"] = index
        if op.slot is not None:
            op_index[op.slot.name] = index
    results = [launch.result for launch in fusion.launches(graph, fuse_expansions=True)]
    times_us = defaultdict(float)
    for name, us in node_times_us(graph).items():
        index = op_index.get(name.removesuffix("_nchwc"))
        if index is None:
            continue  # A layout change: none of our kernels does its work.
        times_us[next(result for result in results if result >= index)] += us
    return times_us


def onnxruntime_times_us(graphs: list[Graph]) -> dict[Kernel, float]:
    """Return the microseconds of ONNX Runtime for each kernel: the least of all its launches."""
    times_us: dict[Kernel, float] = {}
    for graph in graphs:
        by_launch_us = node_times_by_launch_us(graph)
        for launch in fusion.launches(graph, fuse_expansions=True):
            us = by_launch_us.get(launch.result, 0.0)
            if us >= MIN_NODE_US:
                times_us[launch.kernel] = min(us, times_us.get(launch.kernel, us))
    return times_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="start of the networks' names")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    options = parser.parse_args()
    tvm = open_runtime("tvm")
    graphs = list(published_networks(options.only))
    if not graphs:
        parser.error(f"no published network has a name that starts with '{options.only}'")
    table = LatencyTable.open_or_create(options.tables, tvm)
    with timers_for(tvm) as timers:
        build_table(table, [kernel for graph in graphs for kernel in tvm.kernels(graph)], timers)
    ratios: dict[str, Ratios] = defaultdict(list)
    for kernel, us in onnxruntime_times_us(graphs).items():
        ratios[kernel.detailed_kind].append((table.latency_us(kernel) / us, kernel))
    print_summary(table, ratios)


def print_summary(table: LatencyTable, ratios: dict[str, Ratios]) -> None:
    print(f"{'kind':<28}{'kernels':>8}{'geometric mean':>16}{'largest':>9}{'above 1.1':>11}")
    all_ratios = [ratio for of_kind in ratios.values() for ratio in of_kind]
    for kind, of_kind in [*sorted(ratios.items()), ("all", all_ratios)]:
        values = [ratio for ratio, _ in of_kind]
        mean = gmean(values)
        above = sum(value > 1.1 for value in values)
        print(f"{kind:<28}{len(values):>8}{mean:>16.2f}{max(values):>9.2f}{above:>11}")
    print("slowest compared with ONNX Runtime:")
    for ratio, kernel in sorted(all_ratios, key=lambda each: -each[0])[:10]:
        print(f"{ratio:>8.2f}  {table.latency_us(kernel):>8.1f} us  {kernel}")


if __name__ == "__main__":
    main()
