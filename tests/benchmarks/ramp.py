"""How long a core takes to compute at full speed, and what tables gain from waiting for that.

    python -m tests.benchmarks.ramp --runtime onnxruntime --space squeezenet_tiny --image-size 8

First, how long products of matrices take after a pause or after work without vectors. Then a table
of a space is built several times with readings of the speed that wait until the core has become
fast, and without waiting, in turns: the seconds of a build, how many kernels have timings that
agree, the mean error of predicted networks before the correction, and how far two builds of one
kind are apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nas.display.console import print_table
from nas.latency import (
    LatencyTable,
    build_table,
    core_speed,
    correct_after_build,
    open_runtime,
    space_kernels,
    timing,
)
from nas.space import load_space

AT_MS = (0, 1, 2, 4, 6, 8)
MOMENTS = 60


def work(seconds: float) -> None:
    """Compute without vectors."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def products_us(before: Callable[[], None]) -> list[float]:
    """Return the median duration of a product at each of `AT_MS` after something else."""
    matrix = np.full((core_speed.SIDE, core_speed.SIDE), 0.5, np.float32)
    found: list[list[float]] = [[] for _ in AT_MS]
    for _ in range(MOMENTS):
        np.matmul(matrix, matrix)
        before()
        start = time.perf_counter()
        for at_ms, own in zip(AT_MS, found, strict=True):
            now = -1.0
            while now < at_ms / 1e3:
                begin = time.perf_counter()
                np.matmul(matrix, matrix)
                now = time.perf_counter() - start
            own.append(1e6 * (start + now - begin))
    return [float(np.median(own)) for own in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--space", default="squeezenet_tiny")
    parser.add_argument("--image-size", type=int, default=8)
    parser.add_argument("--builds", type=int, default=2)
    arguments = parser.parse_args()
    pauses: dict[str, Callable[[], None]] = {
        "nothing": lambda: None,
        "work of 5 ms without vectors": lambda: work(5e-3),
        "sleep of 2 ms": lambda: time.sleep(2e-3),
        "sleep of 20 ms": lambda: time.sleep(2e-2),
    }
    with timing.pinned(1):
        rows = [[name, *(f"{us:.1f}" for us in products_us(do))] for name, do in pauses.items()]
    print_table(["a product takes, us, after", *(f"{at} ms" for at in AT_MS)], rows)

    space = load_space(arguments.space, image_size=arguments.image_size)
    kernels = space_kernels(space, arguments.runtime)
    ramps = {"waits until it is fast": core_speed.RAMP_SECONDS, "does not wait": 0.0}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ramps}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in range(arguments.builds):
            for name, core_speed.RAMP_SECONDS in ramps.items():
                runtime = open_runtime(arguments.runtime)
                path = Path(f"{number}-{name}.jsonl")
                table = LatencyTable.open_or_create(path, runtime)
                start = time.monotonic()
                built = build_table(table, kernels, runtime.timer, progress=False)
                built_s = time.monotonic() - start
                correction = correct_after_build(table, [space], runtime)
                seconds = time.monotonic() - start
                assert correction is not None
                found[name].append({kernel.text: table.latency_us(kernel) for kernel in kernels})
                agreeing, error = built.ok / built.added, correction.mape_before
                row = [f"{built_s:.0f}", f"{seconds:.0f}", f"{agreeing:.0%}", f"{error:.1%}"]
                rows.append([name, *row])
        for row in rows:
            first, second = found[row[0]][:2]
            ratios = [abs(np.log(second[key] / us)) for key, us in first.items()]
            row.append(f"{np.median(ratios):.1%}")
    titles = ["reading", "kernels, s", "with networks, s", "agree", "error", "apart"]
    print_table(titles, rows)


if __name__ == "__main__":
    main()
