"""How much the latency of a network depends on the load of its file, in each runtime.

    python -m tests.benchmarks.loads --space efficientnet_lite --image-size 96

Random networks of a space are each loaded several times, and the loads are timed in turns. Prints
the fastest and the slowest load, and how far the rounds of one load are apart. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np

from nas.display.console import print_table
from nas.latency import open_runtime, timing
from nas.space import load_space

LOADS, ROUNDS = 8, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="efficientnet_lite")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "litert"])
    parser.add_argument("--networks", type=int, default=5)
    arguments = parser.parse_args()
    space = load_space(arguments.space, image_size=arguments.image_size)
    rng = np.random.default_rng(3)
    graphs = [space.sample(rng).graph for _ in range(arguments.networks)]
    rows = []
    for name in arguments.runtimes:
        runtime = open_runtime(name)
        for graph in graphs:
            loads = [runtime.compile(graph, {}) for _ in range(LOADS)]
            latencies_us: list[list[float]] = [[] for _ in loads]
            with runtime.timing_context():
                for _ in range(ROUNDS):
                    for own, load in zip(latencies_us, loads, strict=True):
                        own.append(timing.measure(load.evaluate).latency_us)
            fastest = sorted(map(min, latencies_us))
            noise = median(sorted(own)[1] / min(own) - 1 for own in latencies_us)
            spread = fastest[-1] / fastest[0] - 1
            rows.append([name, fastest[0], fastest[-1], f"{spread:.1%}", f"{noise:.1%}"])
    print_table(["runtime", "fastest load, us", "slowest load, us", "spread", "rounds"], rows)


if __name__ == "__main__":
    main()
