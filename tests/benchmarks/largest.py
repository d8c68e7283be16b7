"""How far a supernet's largest network is from the same network trained alone as long.

    python -m tests.benchmarks.largest SUPERNET --data ../shared/data/cifar10 \
        --space mobilenet_32 --images 10000 --out FOLDER

SUPERNET is a folder that `tests.benchmarks.recipes` trained, on as many of the same images. The
network alone has the supernet's recipe and epochs, and both are scored on the hold-out images,
which neither has seen. What is in FOLDER is not trained again.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from nas.data import load_dataset
from nas.job.folder import versions
from nas.latency.device import processor
from nas.space import load_space
from nas.supernet import Supernet, TrainingSettings, evaluate
from nas.supernet.ground_truth import train_each_alone
from tests.benchmarks.recipes import some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("supernet", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="of the training split; all by default")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset(given.data, image_size=given.image_size)
    data = replace(data, train=some(data.train, given.images))
    space = load_space(
        given.space, image_size=data.image_size, channels=data.channels, classes=len(data.classes)
    )
    supernet = Supernet.load(given.supernet, space)
    epochs = json.loads((given.supernet / "epochs.json").read_text())
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=given.batch,
        learning_rate=given.learning_rate,
        label_smoothing=given.label_smoothing,
    )
    ends = [space.largest, space.smallest]
    shared = evaluate(supernet, ends, data, "holdout")
    alone = train_each_alone(space, ends, data, given.out, settings, seed=given.seed)
    for name, one, other in zip(("largest", "smallest"), shared, alone, strict=True):
        print(
            f"{name}: {one:.2%} in the supernet, {other:.2%} alone, {100 * (one - other):+.2f} "
            f"points, {epochs} epochs"
        )
    document = {
        "command": {**vars(given), "out": None, "supernet": None, "data": Path(given.data).name},
        "versions": versions(),
        "machine": processor()[0],
        "settings": asdict(settings),
        "images": data.counts,
        "largest": {"supernet": shared[0], "alone": alone[0]},
        "smallest": {"supernet": shared[1], "alone": alone[1]},
    }
    (given.out / "largest.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
