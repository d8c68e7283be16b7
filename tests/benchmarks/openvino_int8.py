"""Int8 in OpenVINO: our own scales in the file, against NNCF's post-training quantisation.

    pip install nncf
    python -m tests.benchmarks.openvino_int8 --data digits --epochs 30

A network of each family is trained, and quantised in each way with the same training images. The
table has the accuracy on the hold-out images, the share of images that get the class that float32
gives them, the layers that run in int8, and the latency of one image, timed in turns on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nas.console import print_table
from nas.data import ImageDataset, Images, load_dataset
from nas.deploy.formats import model_format
from nas.deploy.formats.openvino import OpenVinoModel, import_openvino
from nas.deploy.model import TrainedModel, normalised, preprocessing_of
from nas.quantisation.post_training import quantise
from nas.space import load_space
from nas.supernet import TrainingSettings
from nas.supernet.standalone import train_standalone

SPACES = ("mobilenet_32", "shufflenet", "squeezenet", "mobilenet_v3_small")

ROUNDS = 30
SECONDS_OF_A_ROUND = 0.02


def trained(space_name: str, data: ImageDataset, epochs: int) -> TrainedModel:
    space = load_space(
        space_name,
        image_size=data.image_size,
        channels=data.channels,
        classes=len(data.classes),
    )
    architecture = space.sample(seed=0)
    network = train_standalone(architecture.graph, data, TrainingSettings(epochs=epochs), seed=0)
    return TrainedModel(architecture, network, preprocessing_of(data))


def write_files(model: TrainedModel, calibration: np.ndarray, folder: Path) -> Iterator[tuple]:
    """Yield the name of each way to make a file, and the file."""
    import_openvino()
    import nncf
    import openvino

    path = folder / "model.xml"
    model_format("openvino").write(model, None, path)
    yield "float32", path
    own = folder / "model-int8.xml"
    int8 = quantise(model.graph, model.weights, calibration)
    model_format("openvino-int8").write(model, int8, own)
    yield "own scales", own
    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        network = openvino.Core().read_model(path)
        images = nncf.Dataset([image[None] for image in calibration])
        options = {"preset": preset, "subset_size": len(calibration)}
        quantised = nncf.quantize(network, images, **options)
        file = folder / f"{preset.value}.xml"
        openvino.save_model(quantised, file, compress_to_fp16=False)
        yield f"NNCF, {preset.value}", file


def latencies_ms(models: list[OpenVinoModel], image: np.ndarray) -> list[float]:
    """Return the median latency of each model, timed in turns."""
    runners = [model.runner(image) for model in models]
    samples: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for run, own in zip(runners, samples, strict=True):
            run()
            calls, start = 0, time.perf_counter()
            while time.perf_counter() < start + SECONDS_OF_A_ROUND:
                run()
                calls += 1
            own.append((time.perf_counter() - start) / calls)
    return [1e3 * statistics.median(own) for own in samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--spaces", nargs="+", default=SPACES)
    parser.add_argument("--calibration", type=int, default=300, help="training images")
    arguments = parser.parse_args()
    size = arguments.image_size
    data = load_dataset(arguments.data, image_size=size, validation_fraction=0.4)
    images = normalised(data.holdout, preprocessing_of(data))
    rng = np.random.default_rng(0)
    rows = []
    for space in arguments.spaces:
        model = trained(space, data, arguments.epochs)
        chosen = np.sort(rng.choice(len(data.train), arguments.calibration, replace=False))
        part = Images(data.train.pixels[chosen], data.train.labels[chosen])
        calibration = normalised(part, model.preprocessing)
        expected = model.logits(images).argmax(1)
        with tempfile.TemporaryDirectory() as folder:
            files = dict(write_files(model, calibration, Path(folder)))
            models = [OpenVinoModel(path, 1) for path in files.values()]
            times = latencies_ms(models, images[:1])
            for name, loaded, ms in zip(files, models, times, strict=True):
                classes = loaded.logits(images).argmax(1)
                accuracy = (classes == data.holdout.labels).mean()
                int8_layers, layers = loaded.quantised_layers()
                rows.append(
                    (
                        space,
                        name,
                        f"{accuracy:.4f}",
                        f"{(classes == expected).mean():.4f}",
                        f"{int8_layers} of {layers}",
                        f"{ms:.4f}",
                        f"{times[0] / ms:.2f}",
                    )
                )
    print_table(["space", "file", "accuracy", "agreement", "int8", "ms", "speed-up"], rows)


if __name__ == "__main__":
    main()
