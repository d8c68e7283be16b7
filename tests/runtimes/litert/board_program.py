"""What the emulated board runs: `python board_program.py FOLDER`, without torch or TVM.

It runs each FOLDER/NAME.tflite on the images in FOLDER/NAME.npy and writes FOLDER/NAME.out.npy, and
builds a latency table of one network in FOLDER.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import nas.space
from nas.graph import Graph
from nas.latency import (
    LatencyTable,
    build,
    build_table,
    cache_model,
    differences,
    open_runtime,
    repeated_kernels,
    timing,
)
from nas.runtimes.litert.session import Session

MAX_BUILDS = 5
"""Builds of the table, each of which times the kernels again that failed before."""


def timed_graph() -> Graph:
    return nas.space.load_space("squeezenet_tiny", image_size=8, classes=3).smallest.graph


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.tflite")):
        images = np.load(path.with_suffix(".npy"))
        output = Session(path.read_bytes(), 1, len(images)).run({"images": images})
        np.save(path.with_suffix(".out.npy"), output)
    # Timings of an emulator mean nothing, so take the fewest.
    timing.SECONDS_BETWEEN_ROUNDS = differences.SECONDS_BETWEEN_COMPONENTS = 0.0
    timing.SAMPLES = timing.QUICK_SAMPLES = 1
    timing.WAIT_SECONDS = 0.0
    build.CURVE_ROUNDS, build.MAX_CURVE_DIFFERENCE = 1, 1e9
    # But the cost of a run, which is subtracted from them, must not be that of a slow round.
    repeated_kernels.ROUNDS = 5
    # A network of 64 MiB takes a minute.
    cache_model.WEIGHTS_MIB = (1,) * len(cache_model.WEIGHTS_MIB)
    # With one sample of each, the difference of two timings of a kernel that costs next to nothing
    # may be below zero. Each runtime times anew what it subtracts.
    for _ in range(MAX_BUILDS):
        runtime = open_runtime("litert")
        type(runtime).capabilities = replace(runtime.capabilities, rounds=1)
        table = LatencyTable.open_or_create(folder, runtime)
        kernels = runtime.kernels(timed_graph())
        if not build_table(table, kernels, runtime.timer, retry_failed=True).failed:
            return
    raise SystemExit("some kernels could not be timed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
