"""Prints how fast the parts are that the README makes claims about. Wants an idle machine."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.space import load_space

RUNS = 7
ARCHITECTURES = 500


def command_s(*arguments: str) -> float:
    """Median wall seconds of a Python process."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    bare = command_s("-c", "pass")
    print(f"import nas            {command_s('-c', 'import nas') - bare:.3f} s beside Python's own")
    print(f"nas --help            {command_s('-m', 'nas', '--help'):.3f} s")
    runtime = open_runtime("tvm")
    rng = np.random.default_rng(0)
    for name in ("mobilenet", "shufflenet", "squeezenet"):
        space = load_space(name, image_size=32)
        drawn = [space.sample(rng, uniform_over="choices") for _ in range(ARCHITECTURES)]
        start = time.perf_counter()
        graphs = [space.lower(architecture) for architecture in drawn]
        print(f"{name:<12} lowering  {ARCHITECTURES / (time.perf_counter() - start):.0f} a second")
        with tempfile.TemporaryDirectory() as folder:
            table = LatencyTable.open_or_create(Path(folder) / "table.jsonl", runtime)
            built = build_table(table, space_kernels(space, "tvm"), runtime)
            print(
                f"{name:<12} table     {built.seconds / built.added:.3f} s a kernel, "
                f"{built.added} kernels, {built.failed} failed, {built.unstable} unstable"
            )
            start = time.perf_counter()
            for graph in graphs:
                table.predict(graph)
            rate = ARCHITECTURES / (time.perf_counter() - start)
            print(f"{name:<12} predicting {rate:.0f} a second")


if __name__ == "__main__":
    main()
