"""Measure how long a kernel takes to build into a table, and how well two builds agree.

    python -m tests.benchmarks.tables [--kernels 120] [--image-size 224] [--runtime tvm]

The benchmark samples kernels of the three full spaces and builds two tables of them, one after the
other. It prints seconds per kernel, and how much the two latencies of a kernel differ. Run it on an
idle machine.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from nas.latency import Kernel, LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.runtime import Runtime
from nas.latency.worker_process import timers_for
from nas.space import load_space

SPACES = ("mobilenet", "shufflenet", "squeezenet")


def sample_kernels(runtime: Runtime, image_size: int, count: int, seed: int) -> list[Kernel]:
    """Return random kernels of all spaces, and print how many kernels the spaces have."""
    kernels: dict[Kernel, None] = {}
    for name in SPACES:
        space = load_space(name, image_size=image_size, classes=1000)
        needed = space_kernels(space, runtime)
        print(f"{name}: {len(needed)} kernels at {image_size} px")
        kernels.update(dict.fromkeys(needed))
    every = list(kernels)
    count = min(count, len(every))
    print(f"all three: {len(every)} kernels, of which {count} are timed")
    rng = np.random.default_rng(seed)
    return [every[index] for index in rng.choice(len(every), count, replace=False)]


def build_latencies_us(runtime: Runtime, kernels: list[Kernel], label: str) -> dict[str, float]:
    """Build a table, print how long it took, and return the latency of each kernel."""
    with tempfile.TemporaryDirectory() as folder, timers_for(runtime) as timers:
        table = LatencyTable.open_or_create(Path(folder), runtime)
        built = build_table(table, kernels, timers)
        records = table.records("kernel")
    timings = Counter(len(record.medians_us) for record in records)
    print(
        f"{label}: {built.seconds / len(kernels):.2f} s per kernel, {built.unstable} unstable, "
        f"{built.failed} failed; timings per kernel: "
        + ", ".join(f"{number} ({count})" for number, count in sorted(timings.items()))
    )
    return {record.name: record.latency_us for record in records if record.latency_us}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, default=120)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--runtime", default="tvm")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    runtime = open_runtime(arguments.runtime)
    kernels = sample_kernels(runtime, arguments.image_size, arguments.kernels, arguments.seed)
    first, second = (build_latencies_us(runtime, kernels, f"build {n}") for n in (1, 2))
    differences = np.array([abs(first[name] / second[name] - 1) for name in first.keys() & second])
    for percent in (50, 90, 95, 100):
        difference = np.percentile(differences, percent)
        print(f"{percent:>4}% of kernels agree within {difference:.1%}")


if __name__ == "__main__":
    main()
