"""Kernel by kernel: TVM's table against ONNX Runtime's nodes in context. Wants an idle machine.

    python -m tests.benchmarks.kernels [--only mobilenet_v2] [--tables FOLDER] [--plot kernels.png]

ONNX Runtime runs each published network whole, optimised as it does for any user, and its own
profile says what each node took: no session call, and no layout change of an isolated node, is in
that. A kernel of ours that does the work of two nodes is held against both. Its profile counts
whole microseconds, so a node's time is a mean over the faster half of many runs. Kernels are tuned
first, into the device's table in FOLDER, where a second run finds them.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime

from nas import onnx_model
from nas.graph import Graph
from nas.latency import LatencyTable, build_table, fusion, open_runtime
from nas.latency import timing as clock
from nas.latency.kinds import kind_of
from nas.latency.worker_process import timers_for
from nas.space import load, names

RUNS = 60
"""Of each network under the profiler."""

SHORTEST_US = 3.0
"""Nodes shorter than this are mostly the profiler's own work and rounding, and are left out."""


def references(only: str):
    for space in map(load, names()):
        for reference in space.references:
            if reference.name.startswith(only):
                adapted, architecture = space.published(reference.name)
                yield reference.name, adapted.lower(architecture).folded


def nodes_us(graph: Graph) -> dict[str, float]:
    """Microseconds of every node of the optimised model of a graph, by its name."""
    weights = {}
    rng = np.random.default_rng(0)
    for op in graph.ops:
        if op.slot is not None:
            inputs = graph.input_channels(op)
            shape = (op.shape[0], inputs // op.groups, op.kernel, op.kernel)
            shape = shape[:2] if op.kind == "linear" else shape
            scale = math.sqrt(2 / math.prod(shape[1:]))
            weights[op.slot.name] = (rng.standard_normal(shape) * scale).astype(np.float32)
            weights[f"{op.slot.name}.bias"] = np.zeros(op.shape[0], np.float32)
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
            for _ in range(RUNS):
                session.run(None, image)
        events = json.loads(Path(session.end_profiling()).read_text())
    found = defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            found[event["name"].removesuffix("_kernel_time")].append(event["dur"])
    return {name: statistics.mean(sorted(us)[: RUNS // 2]) for name, us in found.items()}


def by_launch(graph: Graph) -> dict[int, float]:
    """Microseconds of ONNX Runtime's nodes by the result of the launch that does their work."""
    position = {}
    for index, op in enumerate(graph.ops):
        position[f"{op.kind}_{index}"] = index
        if op.slot is not None:
            position[op.slot.name] = index
    results = [launch.result for launch in fusion.launches(graph, fuse_expansions=True)]
    found = defaultdict(float)
    for name, us in nodes_us(graph).items():
        index = position.get(name.removesuffix("_nchwc"))
        if index is None:
            continue  # a change of layout, which no kernel of ours answers for
        found[next(result for result in results if result >= index)] += us
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    tvm = open_runtime("tvm")
    networks = list(references(given.only))
    table = LatencyTable.open_or_create(given.tables, tvm)
    with timers_for(tvm) as timers:
        build_table(table, [k for _, graph in networks for k in tvm.kernels(graph)], timers)
    rows = {}
    for _, graph in networks:
        theirs = by_launch(graph)
        for launch in fusion.launches(graph, fuse_expansions=True):
            us = theirs.get(launch.result, 0.0)
            if us >= SHORTEST_US:
                rows.setdefault(launch.kernel, []).append(us)
    kinds = defaultdict(list)
    for kernel, us in rows.items():
        kinds[kind_of(kernel)].append((table.latency_us(kernel) / min(us), kernel))
    print(f"{'kind':<28}{'kernels':>8}{'geometric mean':>16}{'largest':>9}{'above 1.1':>11}")
    everything = [each for found in kinds.values() for each in found]
    for kind, found in [*sorted(kinds.items()), ("all", everything)]:
        ratios = [ratio for ratio, _ in found]
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        above = sum(ratio > 1.1 for ratio in ratios)
        print(f"{kind:<28}{len(ratios):>8}{mean:>16.2f}{max(ratios):>9.2f}{above:>11}")
    print("slowest beside ONNX Runtime:")
    for ratio, kernel in sorted(everything, key=lambda each: -each[0])[:10]:
        print(f"{ratio:>8.2f}  {table.latency_us(kernel):>8.1f} us  {kernel}")
    if given.plot is not None:
        _draw(kinds, given.plot)


def _draw(kinds, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for row, (_, found) in enumerate(sorted(kinds.items())):
        axes.plot([ratio for ratio, _ in found], [row] * len(found), "|", markersize=14)
    axes.axvline(1.0, color="grey", linewidth=1)
    axes.set(
        yticks=range(len(kinds)),
        yticklabels=sorted(kinds),
        xscale="log",
        xlabel="TVM / ONNX Runtime, time of the same work in a network",
    )
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
