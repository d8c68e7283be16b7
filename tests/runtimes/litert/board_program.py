"""What the emulated board runs: `python board_program.py FOLDER`, without torch or TVM.

It runs each FOLDER/NAME.tflite on the images in FOLDER/NAME.npy and writes FOLDER/NAME.out.npy, and
builds a latency table of one network in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import nas.space
from nas.graph import Graph
from nas.latency import LatencyTable, build_table, cache_model, open_runtime, timing
from nas.runtimes.litert.session import Session


def timed_graph() -> Graph:
    return nas.space.load_space("squeezenet_tiny", image_size=8, classes=3).smallest.graph


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.tflite")):
        images = np.load(path.with_suffix(".npy"))
        output = Session(path.read_bytes(), 1, len(images)).run(images)
        np.save(path.with_suffix(".out.npy"), output)
    # Timings of an emulator mean nothing, so take the fewest.
    timing.SECONDS_BETWEEN_MOMENTS = timing.SECONDS_BETWEEN_COMPONENTS = 0.0
    timing.SECONDS_BETWEEN_ROUNDS = 0.0
    timing.ROUNDS = timing.SAMPLES = timing.MOMENTS = timing.QUICK_SAMPLES = 1
    # A network of 64 MiB takes a minute.
    cache_model.WEIGHTS_MIB = (1,) * len(cache_model.WEIGHTS_MIB)
    runtime = open_runtime("litert")
    type(runtime).moments = 1
    table = LatencyTable.open_or_create(folder, runtime)
    assert build_table(table, runtime.kernels(timed_graph()), runtime).failed == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
