"""Published networks whole, as deployed: TVM's kernels against ONNX Runtime. Wants an idle machine.

    python -m tests.benchmarks.whole_networks --threads 1 [--only mobilenet_v2] [--tables FOLDER]

Both run float32, one image, interleaved in rounds; a ratio is of the fastest rounds. Kernels are
tuned first, into the device's table in FOLDER, where a second run finds them.
"""

import argparse
import math
from pathlib import Path

from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency import timing as clock
from nas.latency.worker_process import timers_for
from nas.space import load_definition, space_names

ROUNDS = 7


def references(only: str):
    for space in map(load_definition, space_names()):
        for reference in space.references:
            if reference.name.startswith(only):
                yield reference.name, space.published(reference.name).graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    given = parser.parse_args()
    tvm, other = (open_runtime(name, threads=given.threads) for name in ("tvm", "onnxruntime"))
    networks = list(references(given.only))
    table = LatencyTable.open_or_create(given.tables, tvm)
    kernels = [kernel for _, graph in networks for kernel in tvm.kernels(graph)]
    with timers_for(tvm) as timers:
        built = build_table(table, kernels, timers)
    print(f"{built.added} kernels tuned in {built.seconds:.0f} s, {built.failed} failed")
    print(f"{'network':<32}{'TVM, us':>10}{'ONNX Runtime, us':>18}{'ratio':>8}{'predicted':>11}")
    ratios = []
    for name, graph in networks:
        ours = tvm.compile(graph, table.schedules()).evaluate
        theirs = other.compile(graph, {}).evaluate
        with clock.pinned(given.threads):
            calls = [max(1, math.ceil(0.02 / min(each(1, 3)))) for each in (ours, theirs)]
            rounds = [
                [
                    min(clock.undisturbed_samples(each, n, 3))
                    for each, n in zip((ours, theirs), calls, strict=True)
                ]
                for _ in range(ROUNDS)
            ]
        first, second = (1e6 * min(column) for column in zip(*rounds, strict=True))
        ratios.append(first / second)
        predicted = table.predict(graph).latency_us / first
        print(
            f"{name:<32}{first:>10.0f}{second:>18.0f}{ratios[-1]:>8.2f}{predicted:>11.3f}",
            flush=True,
        )
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"geometric mean {mean:.3f}, largest {max(ratios):.2f} of {len(ratios)} networks")


if __name__ == "__main__":
    main()
