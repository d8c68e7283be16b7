"""Which way of training a supernet ranks networks best, at an equal time budget.

    python -m tests.benchmarks.recipes --data ../shared/data/cifar10 --minutes 30 --out FOLDER

Draws networks, trains each alone once (kept in FOLDER, for all recipes and the next start), trains
a supernet by every recipe for as many whole epochs as the minutes allow by its own steps, and
prints Kendall's tau of its scores with the truth, with a bootstrap interval, beside that of
counting. What is there is not trained again. On two cores the truth alone takes hours: use fewer
images.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from nas.console import Bars
from nas.space import load as load_space
from nas.supernet import Images, TrainingSettings, load, measure_step, train
from nas.supernet.ranking import rank
from nas.supernet.truth import compare, draw

RECIPES = {
    "sandwich": {},
    "sandwich, 1 random": {"random_subnets": 1},
    "sandwich, not distilled": {"distil": False},
    "sandwich, averaged": {"average": 0.99},
    "progressive": {"progressive": 0.5},
    "best-up": {"subnets": "best_up", "random_subnets": 1},
    "worst-up": {"subnets": "worst_up", "random_subnets": 1},
    "fair": {"subnets": "fair"},
    "single path": {"subnets": "single"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="of the training split; all by default")
    parser.add_argument("--minutes", type=float, default=30, help="of training for each recipe")
    parser.add_argument("--nets", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20, help="of training alone")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = load(given.data, image_size=given.image_size)
    if given.images:
        chosen = np.random.default_rng(0).permutation(len(data.train))[: given.images]
        subset = Images(data.train.pixels[chosen], data.train.labels[chosen])
        data = replace(data, train=subset)
    space = load_space(given.space).on(
        image_size=data.image_size, channels=data.channels, classes=len(data.classes)
    )
    plain = TrainingSettings(
        epochs=given.epochs, batch_size=given.batch, learning_rate=given.learning_rate
    )
    drawn = draw(space, given.nets, seed=given.seed)
    print(f"{given.space}, {data.counts}, {len(drawn)} networks, {given.epochs} epochs alone")
    rows = []
    for name in given.recipes:
        settings = replace(plain, **RECIPES[name])
        folder = given.out / name.replace(", ", "-").replace(" ", "-")
        kept = folder / "epochs.json"
        if not kept.is_file():
            epochs = measure_step(space, data, settings).epochs_within(60 * given.minutes)
            folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(epochs))
        epochs = json.loads(kept.read_text())
        with Bars() as bars:
            bars.begin(name, "step")
            supernet = train(
                space, data, folder, replace(settings, epochs=epochs), seed=given.seed,
                progress=lambda p, b=bars: b.advance(p.step, p.steps, f"loss {p.loss:.3f}"),
            )  # fmt: skip
            bars.begin("alone", "step")
            networks = compare(
                supernet, drawn, data, given.out, plain, seed=given.seed, progress=bars.advance
            )
        found = rank(networks)
        tau = found.kendall_tau
        text = "no ranking" if tau is None else f"{tau.value:.3f} ({tau.low:.3f} to {tau.high:.3f})"
        scores = [each.supernet_accuracy for each in networks]
        rows.append({"recipe": name, "epochs": epochs, **found.to_json()})
        print(
            f"{name:<26}{epochs:>4} epochs  tau {text:<26} scores {min(scores):.3f} to "
            f"{max(scores):.3f}  picking loses {100 * found.regret['supernet']:.2f} points",
            flush=True,
        )
    for name, tau in found.counted_tau.items():
        print(f"counting {name:<17} tau {'undefined' if tau is None else f'{tau.value:.3f}'}")
    (given.out / "recipes.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
