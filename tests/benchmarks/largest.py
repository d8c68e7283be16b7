"""Accuracy of a supernet's largest and smallest subnet, against standalone training.

    python -m tests.benchmarks.largest SUPERNET --data ../shared/data/cifar10 \
        --space mobilenet_32 --images 10000 --out FOLDER

SUPERNET is a folder that `tests.benchmarks.recipes` trained, with the same data options. Standalone
training uses the recipe and the epochs of the supernet. Both are evaluated on the hold-out images,
which neither training has seen. Networks in FOLDER are not trained again.
"""

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch

from nas.data import load_dataset
from nas.job.folder import installed_versions
from nas.space import load_space
from nas.supernet import Supernet, TrainingSettings, evaluate
from nas.supernet.ground_truth import train_each_standalone
from nas.supernet.training import trained_epochs
from nas.this_machine import processor
from tests.benchmarks.recipes import split_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("supernet", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="number of training images; all by default")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset(options.data, image_size=options.image_size)
    data = replace(data, train=split_images(data.train, options.images)[0])
    space = load_space(
        options.space, image_size=data.image_size, channels=data.channels, classes=len(data.classes)
    )
    supernet = Supernet.load(options.supernet, space)
    epochs = math.ceil(trained_epochs(options.supernet) or 0)
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        label_smoothing=options.label_smoothing,
    )
    architectures = [space.largest, space.smallest]
    shared = evaluate(supernet, architectures, data, "holdout")
    standalone = train_each_standalone(
        space, architectures, data, options.out, settings, seeds=[options.seed] * 2
    )
    for name, ours, theirs in zip(("largest", "smallest"), shared, standalone, strict=True):
        print(
            f"{name}: {ours:.2%} in the supernet, {theirs:.2%} standalone, "
            f"{100 * (ours - theirs):+.2f} points, {epochs} epochs"
        )
    document = {
        "command": {
            **vars(options),
            "out": None,
            "supernet": None,
            "data": Path(options.data).name,
        },
        "versions": installed_versions(),
        "machine": processor()[0],
        "settings": asdict(settings),
        "images": data.counts,
        "largest": {"supernet": shared[0], "standalone": standalone[0]},
        "smallest": {"supernet": shared[1], "standalone": standalone[1]},
    }
    (options.out / "largest.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
