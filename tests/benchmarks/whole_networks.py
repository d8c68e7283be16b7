"""Compare the published networks as compiled by TVM with the same networks in ONNX Runtime.

    python -m tests.benchmarks.whole_networks --threads 1 [--only mobilenet_v2] [--tables FOLDER]

Both run float32 and one image, alternately in rounds; the ratio is that of the fastest rounds. The
kernels are first timed into the device's table in FOLDER, where a second run reads them. Run it on
an idle machine.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

from nas.graph import Graph
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency import timing as clock
from nas.latency.timing import Evaluate
from nas.latency.worker_process import timers_for
from nas.space import load_definition, space_names

ROUNDS = 7
SAMPLE_SECONDS = 0.02


def references(prefix: str) -> Iterator[tuple[str, Graph]]:
    """Yield name and graph of the published networks whose names start with a prefix."""
    for space in map(load_definition, space_names()):
        for reference in space.references:
            if reference.name.startswith(prefix):
                yield reference.name, space.published(reference.name).graph


def fastest_us(evaluators: list[Evaluate], threads: int) -> list[float]:
    """Return the fastest latency of each network in microseconds, timed alternately."""
    with clock.pinned(threads):
        calls = [clock.calls_per_sample(each, SAMPLE_SECONDS) for each in evaluators]
        rounds = [
            [
                min(clock.undisturbed_samples(evaluate, count, 3))
                for evaluate, count in zip(evaluators, calls, strict=True)
            ]
            for _ in range(ROUNDS)
        ]
    return [1e6 * min(column) for column in zip(*rounds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    arguments = parser.parse_args()
    threads = arguments.threads
    tvm, onnxruntime = (open_runtime(name, threads=threads) for name in ("tvm", "onnxruntime"))
    networks = list(references(arguments.only))
    table = LatencyTable.open_or_create(arguments.tables, tvm)
    kernels = [kernel for _, graph in networks for kernel in tvm.kernels(graph)]
    with timers_for(tvm) as timers:
        built = build_table(table, kernels, timers)
    print(f"{built.added} kernels timed in {built.seconds:.0f} s, {built.failed} failed")
    print(f"{'network':<32}{'TVM, us':>10}{'ONNX Runtime, us':>18}{'ratio':>8}{'predicted':>11}")
    ratios = []
    for name, graph in networks:
        compiled = [tvm.compile(graph, table.schedules()), onnxruntime.compile(graph, {})]
        tvm_us, onnxruntime_us = fastest_us([each.evaluate for each in compiled], threads)
        ratios.append(tvm_us / onnxruntime_us)
        predicted = table.predict(graph).latency_us / tvm_us
        print(
            f"{name:<32}{tvm_us:>10.0f}{onnxruntime_us:>18.0f}{ratios[-1]:>8.2f}{predicted:>11.3f}",
            flush=True,
        )
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"geometric mean {mean:.3f}, largest {max(ratios):.2f} of {len(ratios)} networks")


if __name__ == "__main__":
    main()
