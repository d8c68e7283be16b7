"""Time one network in every runtime that it can be exported to: float32, and what int8 gains.

    python -m tests.benchmarks.runtimes [--image-size 32] [--classes 10] [--tables FOLDER]
    python -m tests.benchmarks.runtimes --full-size --float-only

The networks are published ones of three families, or all published networks of all spaces at the
size and with the classes of their papers. Format `tvm` is the library with the schedules of a
latency table; kernels that the table in FOLDER lacks are timed first. Every file runs in a process
of its own on one thread, and the files of a network are timed in turns. Weights are random, since
latencies do not depend on them. Run it on an idle machine. Each file has two latencies, in the
fastest rounds and the median of all rounds: where they differ much, neighbours had the machine.

    tvm / fastest   latency of the TVM library over that of the fastest other float32 file, in the
                    fastest rounds and in the median
    predicted       the table's prediction over the fastest latency of the TVM library
    int8 gain       latency of the float32 file over that of the int8 file of the same runtime
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from scipy.stats import gmean

from nas.deploy.benchmark import time_files
from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel, image_reading
from nas.deploy.model_process import ModelProcess
from nas.display.console import print_table
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.worker_process import timers_for
from nas.quantisation.post_training import quantise
from nas.run.model_card import Preprocessing
from nas.space import Architecture, load_definition, space_names
from nas.space.library import find_reference
from nas.torch_network import to_torch

PUBLISHED = (
    *("mobilenet_v2_0.5", "mobilenet_v2_1.0", "mobilenet_v3_small"),
    *("shufflenet_v2_0.5", "shufflenet_v2_1.0", "squeezenet_1.1"),
)

FLOAT_FORMATS = ("tvm", "onnx", "openvino", "tflite")
INT8_FORMATS = ("onnx-int8", "openvino-int8", "tflite-int8")
CALIBRATION_IMAGES = 32


def published(image_size: int, classes: int) -> Iterator[tuple[str, Architecture]]:
    """Yield name and architecture of the published networks."""
    for name in PUBLISHED:
        space = find_reference(name)[0].adapt(image_size=image_size, channels=3, classes=classes)
        yield name, space.reference(name)


def published_in_full_size() -> Iterator[tuple[str, Architecture]]:
    """Yield name and architecture of all published networks, as in their papers."""
    for space in map(load_definition, space_names()):
        for reference in space.references:
            yield reference.name, space.published(reference.name)


def latencies_us(
    model: TrainedModel, formats: tuple[str, ...], threads: int
) -> dict[str, tuple[float, float]]:
    """Return the fastest and the median latency of each format, timed in turns."""
    size, channels = model.preprocessing.image_size, model.preprocessing.channels
    images = np.random.default_rng(0).standard_normal(
        (CALIBRATION_IMAGES, channels, size, size), dtype=np.float32
    )
    running: dict[str, ModelProcess] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in formats:
            kind = model_format(name)
            path = Path(folder) / kind.file_name
            is_int8 = kind.precision == "int8"
            network = quantise(model.graph, model.weights, images) if is_int8 else None
            kind.write(model, network, path)
            running[name] = stack.enter_context(ModelProcess(kind, path, threads=threads))
        return {
            name: (latency.fastest_us, latency.typical_us)
            for name, latency in time_files(running, images[:1])[0].items()
        }


def ratio_to_fastest(us: dict[str, float]) -> float:
    """Return the latency of the TVM library over that of the fastest other float32 file."""
    return us["tvm"] / min(us[each] for each in FLOAT_FORMATS if each != "tvm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--full-size", action="store_true", help="all published networks")
    parser.add_argument("--float-only", action="store_true", help="leave int8 out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    options = parser.parse_args()
    networks = dict(
        published_in_full_size()
        if options.full_size
        else published(options.image_size, options.classes)
    )
    int8_formats = () if options.float_only else INT8_FORMATS
    tvm = open_runtime("tvm", threads=options.threads)
    table = LatencyTable.open_or_create(options.tables, tvm)
    kernels = [kernel for each in networks.values() for kernel in tvm.kernels(each.graph)]
    with timers_for(tvm) as timers:
        built = build_table(table, kernels, timers)
    print(f"{built.added} kernels timed in {built.seconds:.0f} s, {built.failed} failed")
    rows, ratios, median_ratios = [], [], []
    gains: dict[str, list[float]] = {name: [] for name in int8_formats}
    for name, architecture in networks.items():
        space = architecture.space
        preprocessing = Preprocessing(
            reading=image_reading(architecture.graph.input_shape[1]),
            image_size=architecture.graph.input_shape[1],
            channels=space.channels,
            mean=(0.0,) * space.channels,
            std=(1.0,) * space.channels,
            classes=tuple(str(number) for number in range(space.classes)),
            input_name="image",
            output_name="logits",
        )
        model = TrainedModel(architecture, to_torch(architecture), preprocessing, table)
        both_us = latencies_us(model, FLOAT_FORMATS + int8_formats, options.threads)
        us, median_us = ({each: both[i] for each, both in both_us.items()} for i in (0, 1))
        ratios.append(ratio_to_fastest(us))
        median_ratios.append(ratio_to_fastest(median_us))
        for each in int8_formats:
            gains[each].append(us[each.removesuffix("-int8")] / us[each])
        rows.append(
            (
                name,
                *(f"{us[each]:.4g}, {median_us[each]:.4g}" for each in FLOAT_FORMATS),
                f"{ratios[-1]:.2f}, {median_ratios[-1]:.2f}",
                f"{table.predict(architecture).latency_us / us['tvm']:.3f}",
                *(f"{us[each]:.4g} ({gains[each][-1]:.2f}x)" for each in int8_formats),
            )
        )
        print(f"{len(rows)} of {len(networks)}: {', '.join(rows[-1][:-1])}", flush=True)
    rows.append(
        (
            "geometric mean",
            *("",) * len(FLOAT_FORMATS),
            f"{gmean(ratios):.2f}, {gmean(median_ratios):.2f}",
            "",
            *(f"{gmean(gains[each]):.2f}x" for each in int8_formats),
        )
    )
    print(f"tvm / fastest: geometric mean {gmean(ratios):.3f}, largest {max(ratios):.2f}")
    print_table(["network, us", *FLOAT_FORMATS, "tvm / fastest", "predicted", *int8_formats], rows)


if __name__ == "__main__":
    main()
