"""What int8 costs in accuracy and saves in time, for one network of each family.

    python -m tests.benchmarks.int8 --data ../shared/data/cifar10 [--seeds 3] [--epochs 4]
        [--networks mobilenet_v2_0.5 ...]

Each network is trained for some minutes, quantised with `quantise_within`, written with formats
`onnx` and `onnx-int8`, and run by ONNX Runtime on one thread. Accuracies are those of the files on
the test images, which nothing before has read. Both latencies are measured in turns. Run this on an
idle machine.

    float32, int8     accuracy of the files on the test images
    drop_points       their difference in points
    agreement         share of the test images with the same class in both
    speed             latency of float32 over that of int8
    layers            layers that run in int8 of all layers
    method            what recovered the accuracy on the validation images
    validation_drop   the loss of accuracy there
"""

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from nas.data import ImageDataset, load_dataset
from nas.deploy.benchmark import time_files
from nas.deploy.formats import model_format
from nas.deploy.int8 import quantise_within
from nas.deploy.model import TrainedModel, normalised, preprocessing_of
from nas.deploy.model_process import ModelProcess
from nas.supernet.recipe import Recipe
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
    settings = Recipe(epochs=epochs, learning_rate=LEARNING_RATE[norm])
    network = train_standalone(architecture.graph, data, settings, seed=seed)
    return TrainedModel(architecture, network, preprocessing_of(data))


def measure(name: str, data: ImageDataset, epochs: int, seed: int) -> dict[str, object]:
    """Return what one network of one seed loses and gains."""
    model = train(name, data, epochs, seed)
    int8 = quantise_within(model, data)
    images, labels = normalised(data.test, model.preprocessing), data.test.labels
    formats = {each: model_format(each) for each in ("onnx", "onnx-int8")}
    classes, running = {}, {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for each, kind in formats.items():
            path = Path(folder) / kind.file_name
            kind.write(model, int8.network if kind.precision == "int8" else None, path)
            classes[each] = kind.load(path).logits(images).argmax(1)
            running[each] = stack.enter_context(ModelProcess(kind, path))
        latencies, _ = time_files(running, images[:1])
        done, layers = running["onnx-int8"].loaded.quantised_layers
    float_us, int8_us = (latencies[each].fastest_us for each in formats)
    accuracies = {each: float((own == labels).mean()) for each, own in classes.items()}
    return {
        "network": name,
        "seed": seed,
        "float32": accuracies["onnx"],
        "int8": accuracies["onnx-int8"],
        "drop_points": 100 * (accuracies["onnx"] - accuracies["onnx-int8"]),
        "agreement": float((classes["onnx"] == classes["onnx-int8"]).mean()),
        "float32_us": float_us,
        "int8_us": int8_us,
        "speed": float_us / int8_us,
        "layers": f"{done}/{layers}",
        "method": int8.summary.method,
        "validation_drop": int8.summary.drop,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    data = load_dataset(options.data)
    rows = []
    for name, seed in product(options.networks, range(options.seeds)):
        rows.append(measure(name, data, options.epochs, seed))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.4f}".format))
    figures = ["drop_points", "agreement", "speed"]
    print(table.groupby("network", sort=False)[figures].agg(["mean", "max"]).to_string())


if __name__ == "__main__":
    main()
