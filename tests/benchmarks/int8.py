"""What int8 costs in accuracy and saves in time, for one network of each family.

    python -m tests.benchmarks.int8 --data ../shared/data/cifar10 [--seeds 3] [--epochs 4]
        [--networks mobilenet_v2_0.5 ...] [--max-drop 0.005] [--out FILE.jsonl]

Each network is trained for some minutes, quantised with `quantise_within`, written with formats
`onnx` and `onnx-int8`, and run by ONNX Runtime on one thread. Accuracies are those of the files on
the test images, which nothing before has read. Both latencies are measured in turns. Run this on an
idle machine.

    float32, int8   accuracy of the files on the test images, and the difference in points
    agreement       share of the test images with the same class in both
    speed           latency of float32 over that of int8
    layers          layers that run in int8 of all layers
    method          what recovered the accuracy on the validation images, and its drop there
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from nas.data import ImageDataset, load_dataset
from nas.deploy.benchmark import time_files
from nas.deploy.formats import model_format
from nas.deploy.int8 import MAX_DROP, quantise_within
from nas.deploy.model import TrainedModel, normalised, preprocessing_of
from nas.deploy.model_process import ModelProcess
from nas.supernet.settings import TrainingSettings
from nas.supernet.standalone import train_standalone
from tests.supernet.scrambled_supernet import space_on

NETWORKS = {
    "mobilenet_v2_0.5": ("mobilenet", True),
    "mobilenet_v3_small": ("mobilenet_v3_small", True),
    "shufflenet_v2_0.5": ("shufflenet", True),
    "squeezenet_1.1": ("squeezenet", True),
    "squeezenet_1.1 without norm": ("squeezenet", False),
}
"""The space of each network, and whether its convolutions have batch norms."""

LEARNING_RATE = {True: 0.2, False: 0.03}
"""Peak learning rate of networks with and without batch norms."""


def train(name: str, data: ImageDataset, epochs: int, seed: int) -> TrainedModel:
    """Return a trained network."""
    space_name, norm = NETWORKS[name]
    space = space_on(data, space_name)
    architecture = replace(space, norm=norm).reference(name.split()[0])
    settings = TrainingSettings(epochs=epochs, learning_rate=LEARNING_RATE[norm])
    network = train_standalone(architecture.graph, data, settings, seed=seed)
    return TrainedModel(architecture, network, preprocessing_of(data))


def measure(
    name: str, data: ImageDataset, options: argparse.Namespace, seed: int
) -> dict[str, object]:
    """Return what one network of one seed loses and gains."""
    start = time.perf_counter()
    model = train(name, data, options.epochs, seed)
    trained = time.perf_counter()
    int8 = quantise_within(model, data, max_drop=options.max_drop)
    quantised = time.perf_counter()
    images, labels = normalised(data.test, model.preprocessing), data.test.labels
    formats = {each: model_format(each) for each in ("onnx", "onnx-int8")}
    classes, running = {}, {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for each, kind in formats.items():
            path = Path(folder) / kind.file_name
            kind.write(model, int8.network if kind.precision == "int8" else None, path)
            classes[each] = kind.load(path).logits(images).argmax(1)
            running[each] = stack.enter_context(ModelProcess(kind, path))
        timed = time_files(running, images[:1])
    float_latency, int8_latency = (timed[each].latency.fastest_us for each in formats)
    return {
        "network": name,
        "seed": seed,
        "macs": model.graph.macs,
        "float_accuracy": float((classes["onnx"] == labels).mean()),
        "int8_accuracy": float((classes["onnx-int8"] == labels).mean()),
        "agreement": float((classes["onnx"] == classes["onnx-int8"]).mean()),
        "float_latency_us": float_latency,
        "int8_latency_us": int8_latency,
        "int8_layers": timed["onnx-int8"].loaded.quantised_layers,
        "training_seconds": trained - start,
        "quantisation_seconds": quantised - trained,
        "summary": int8.summary.model_dump(mode="json"),
    }


def describe(row: dict) -> Iterator[str]:
    """Yield the lines that show a row."""
    summary = row["summary"]
    drop = 100 * (row["float_accuracy"] - row["int8_accuracy"])
    done, layers = row["int8_layers"]
    yield (
        f"{row['network']:<28} seed {row['seed']}  float32 {row['float_accuracy']:.4f}  "
        f"int8 {row['int8_accuracy']:.4f}  drop {drop:+.2f} points  "
        f"agreement {row['agreement']:.4f}  "
        f"{row['float_latency_us']:.0f} -> {row['int8_latency_us']:.0f} us, speed "
        f"{row['float_latency_us'] / row['int8_latency_us']:.2f}x  layers {done}/{layers}  "
        f"method {summary['method']}"
    )
    for each in summary["attempts"]:
        yield (
            f"    {each['method']:<16} validation drop {100 * each['drop']:+.2f} points, "
            f"agreement {each['agreement']:.4f}, {each['seconds']:.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-drop", type=float, default=MAX_DROP)
    parser.add_argument("--out", type=Path, help="file to which each row is appended as JSON")
    options = parser.parse_args()
    data = load_dataset(options.data)
    rows = []
    for name in options.networks:
        for seed in range(options.seeds):
            row = measure(name, data, options, seed)
            rows.append(row)
            print("\n".join(describe(row)), flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        own = [row for row in rows if row["network"] == name]
        drops = [100 * (row["float_accuracy"] - row["int8_accuracy"]) for row in own]
        speeds = [row["float_latency_us"] / row["int8_latency_us"] for row in own]
        print(
            f"{name:<28} mean drop {statistics.mean(drops):+.2f} points, largest "
            f"{max(drops):+.2f}; median speed {statistics.median(speeds):.2f}x\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
