"""Measure the speed of the parts about which the README makes claims.

    python -m tests.benchmarks.speed

Run it on an idle machine.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.runtime import Runtime
from nas.space import load_space

PROCESS_RUNS = 7
"""Runs of each Python process; the median counts."""

ARCHITECTURES = 500
"""Architectures that are lowered and predicted."""


def process_seconds(*arguments: str) -> float:
    """Return the median duration of a Python process."""
    seconds = []
    for _ in range(PROCESS_RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_space(name: str, runtime: Runtime, rng: np.random.Generator) -> None:
    """Print how fast a space is lowered, built into a table and predicted."""
    space = load_space(name, image_size=32)
    architectures = [space.sample(rng, uniform_over="choices") for _ in range(ARCHITECTURES)]
    start = time.perf_counter()
    graphs = [space.lower(architecture) for architecture in architectures]
    rate = ARCHITECTURES / (time.perf_counter() - start)
    print(f"{name:<12} lowering   {rate:.0f} per second")
    with tempfile.TemporaryDirectory() as folder:
        table = LatencyTable.open_or_create(Path(folder) / "table.jsonl", runtime)
        built = build_table(table, space_kernels(space, runtime), runtime.timer)
        print(
            f"{name:<12} table      {built.seconds / built.added:.3f} s per kernel, "
            f"{built.added} kernels, {built.failed} failed, {built.unstable} unstable"
        )
        start = time.perf_counter()
        for graph in graphs:
            table.predict(graph)
        rate = ARCHITECTURES / (time.perf_counter() - start)
        print(f"{name:<12} predicting {rate:.0f} per second")


def main() -> None:
    python_s = process_seconds("-c", "pass")
    import_s = process_seconds("-c", "import nas") - python_s
    print(f"import nas              {import_s:.3f} s in addition to Python's own start")
    print(f"nas --help              {process_seconds('-m', 'nas', '--help'):.3f} s")
    runtime = open_runtime("tvm")
    rng = np.random.default_rng(0)
    for name in ("mobilenet", "shufflenet", "squeezenet"):
        measure_space(name, runtime, rng)


if __name__ == "__main__":
    main()
