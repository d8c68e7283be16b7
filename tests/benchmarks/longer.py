"""Whether longer standalone training changes the order of networks of equal latency.

    python -m tests.benchmarks.longer results/recipes/shuffle_32-0.json --epochs 30 \
        --data ../shared/data/cifar10 --out FOLDER

Takes networks that `tests.benchmarks.recipes` trained standalone. Trains the deepest and the
shallowest of each latency budget again for more epochs, with the same images and settings. Prints
by how many points the deep network of each pair is better: after the short training, after the long
one, and by the score of every stored supernet. The order is settled if both trainings agree. If
they do not, the longer one decides whether the short training or the supernet is wrong about depth.
Networks in FOLDER are not trained again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from nas.console import ProgressBars
from nas.space import load_space
from nas.supernet import TrainingSettings
from nas.supernet.ground_truth import train_each_standalone
from tests.benchmarks.recipes import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", type=Path, help="file that tests.benchmarks.recipes wrote")
    parser.add_argument("--data", required=True, help="the images that the file names")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--budgets", type=int, nargs="*", help="numbers of budgets; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document = json.loads(options.recipes.read_text())
    command = {**document["command"], "data": options.data}
    data = load_images(argparse.Namespace(**command))
    space = load_space(
        command["space"],
        image_size=data.image_size,
        channels=data.channels,
        classes=len(data.classes),
    )
    networks = [(row, space.from_json(row["architecture"])) for row in document["networks"]]
    pairs = []
    for budget in sorted({row["budget"] for row, _ in networks}):
        if options.budgets is None or budget in options.budgets:
            own = [at for at, (row, _) in enumerate(networks) if row["budget"] == budget]
            own.sort(key=lambda at: networks[at][1].graph.depth)
            pairs.append((own[-1], own[0]))
    short = [row["holdout_accuracy"] for row, _ in networks]
    scores = {name: row["scores"] for name, row in document["recipes"].items()}
    settings = TrainingSettings(
        epochs=options.epochs,
        batch_size=command["batch"],
        learning_rate=command["learning_rate"],
        label_smoothing=0.1,
    )
    before, after = f"{command['epochs']} epochs", f"{options.epochs} epochs"
    print(f"deep - shallow, points; depths; {before}, {after}, {', '.join(scores)}")
    with ProgressBars() as bars:
        for deep, shallow in pairs:
            bars.begin("standalone", "step")
            long = train_each_standalone(
                space,
                [networks[deep][1], networks[shallow][1]],
                data,
                options.out,
                settings,
                seeds=[command["seed"]] * 2,
                progress=bars.advance,
            )
            orders: list[Sequence[float]] = [
                [short[deep], short[shallow]],
                long,
                *([own[deep], own[shallow]] for own in scores.values()),
            ]
            depths = [networks[at][1].graph.depth for at in (deep, shallow)]
            print(
                f"budget {networks[deep][0]['budget']}: {depths[0]:>3} {depths[1]:>3}  "
                + "  ".join(f"{100 * (a - b):+6.2f}" for a, b in orders)
                + f"   accuracies {long[0]:.2%} {long[1]:.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
