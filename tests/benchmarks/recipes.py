"""Ranking quality of supernets that are trained with different recipes in equal time.

    python -m tests.benchmarks.recipes --data ../shared/data/cifar10 --space mobilenet_32 \
        --images 10000 --minutes 60 --nets 50 --repeated 25 --epochs 12 --out FOLDER

Draws ten networks for each of five latency budgets and trains each of them standalone, some of them
once more with another seed. They are scored on all images that nothing else uses. Then trains one
supernet with each recipe for the minutes, and prints the figures of `nas supernet rank`: Kendall's
tau with the standalone accuracies among networks of equal latency, the share of the attainable
gain, and tau over all sizes; for the counts, the second training and every recipe. Without
`--table`, networks of equal multiply-accumulates take the place of those of equal latency. Each
process has one thread, so that the minutes are those of one core, and there are as many processes
as cores. What is in FOLDER is not trained again.

    python -m tests.benchmarks.recipes --truth results/recipes/recipes-0.json \
        --data ../shared/data/cifar10 --minutes 6 --recipes "single path" --out FOLDER

takes the networks and their standalone accuracies from an earlier comparison, and the space, images
and training settings with them. Then only supernets are trained.

    python -m tests.benchmarks.recipes --truth results/recipes/shuffle_32-1.json \
        --data ../shared/data/cifar10 --repeated 20 --recipes --out FOLDER

trains more of the networks once more, and no supernet: the scores of the earlier comparison are
ranked again. `--recipes` without names and without `--truth` trains the networks only.

    python -m tests.benchmarks.recipes --truth results/recipes/mobilenet_32-1.json --epochs 30 \
        --data ../shared/data/cifar10 --repeated 0 --recipes --out FOLDER

trains the networks for another number of epochs, and ranks the same scores by that. `--nets`
chooses the first of them.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.console import ProgressBars
from nas.data import ImageDataset, Images, load_dataset
from nas.job.folder import installed_versions
from nas.latency import LatencyTable
from nas.space import Architecture, load_space
from nas.statistics import Interval
from nas.supernet import TrainingSettings, evaluate, train
from nas.supernet.ground_truth import (
    draw_architectures,
    draw_matched,
    make_ranked_network,
    train_each_standalone,
)
from nas.supernet.ranking import Ranking, compute_ranking
from nas.supernet.training import trained_epochs
from nas.this_machine import processor

RECIPES = {
    "sandwich": {},
    "sandwich, 1 random": {"random_subnets": 1},
    "sandwich, not distilled": {"distil": False},
    "sandwich, averaged": {"average": 0.99},
    "sandwich, no smoothing": {"label_smoothing": 0.0},
    "sandwich, faster": {"learning_rate": 0.3},
    "sandwich, no smoothing, faster": {"label_smoothing": 0.0, "learning_rate": 0.3},
    "sandwich, no smoothing, progressive resizing": {
        "label_smoothing": 0.0,
        "progressive_resizing": 2 / 3,
    },
    "sandwich, no smoothing, progressive resizing, decay to zero": {
        "label_smoothing": 0.0,
        "progressive_resizing": 2 / 3,
        "learning_rate_floor": 0.0,
    },
    "sandwich, no smoothing, whole images": {"label_smoothing": 0.0, "progressive_resizing": 0.0},
    "sandwich, no smoothing, whole images, decay to zero": {
        "label_smoothing": 0.0,
        "progressive_resizing": 0.0,
        "learning_rate_floor": 0.0,
    },
    "sandwich, no smoothing, whole images, higher floor": {
        "label_smoothing": 0.0,
        "progressive_resizing": 0.0,
        "learning_rate_floor": 0.2,
    },
    "sandwich, no smoothing, whole images, no clipping": {
        "label_smoothing": 0.0,
        "progressive_resizing": 0.0,
        "gradient_ratio": 1000.0,
    },
    "sandwich, no smoothing, whole images, stronger decay": {
        "label_smoothing": 0.0,
        "progressive_resizing": 0.0,
        "weight_decay": 5e-4,
    },
    "sandwich, 1 random, no smoothing": {"random_subnets": 1, "label_smoothing": 0.0},
    "sandwich, 1 random, no smoothing, faster": {
        "random_subnets": 1,
        "label_smoothing": 0.0,
        "learning_rate": 0.3,
    },
    "sandwich, 4 random, no smoothing": {"random_subnets": 4, "label_smoothing": 0.0},
    "sandwich, larger batch, no smoothing": {
        "label_smoothing": 0.0,
        "batch_size": 128,
        "learning_rate": 0.2,
        "weight_decay": 5e-4,
    },
    "progressive": {"progressive": 0.5},
    "best-up": {"subnets": "best_up", "random_subnets": 1},
    "worst-up": {"subnets": "worst_up", "random_subnets": 1},
    "fair": {"subnets": "fair"},
    "single path": {"subnets": "single"},
}

SHARED_OPTIONS = "space", "image_size", "images", "validation", "batch", "learning_rate"
"""Options that a comparison takes from the earlier one whose networks it uses."""

DEFAULT_NETS = 50
DEFAULT_EPOCHS = 20


class Experiment:
    """Data, space, networks and settings that all recipes share, the same in every process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data = load_images(options)
        self.space = load_space(
            options.space,
            image_size=self.data.image_size,
            channels=self.data.channels,
            classes=len(self.data.classes),
        )
        self.plain = TrainingSettings(
            epochs=options.epochs,
            batch_size=options.batch,
            learning_rate=options.learning_rate,
            label_smoothing=0.1,
        )
        self.out, self.seed, self.minutes = options.out, options.seed, options.minutes
        self.training_seed = (
            options.seed if options.training_seed is None else options.training_seed
        )
        self.standalone: dict[tuple[int, int], float] = {}
        self.earlier: Mapping[str, Any] = {}
        if options.truth:
            self.earlier = json.loads(options.truth.read_text())
            has_accuracies = options.epochs == self.earlier["command"]["epochs"]
            self._read_networks(self.earlier["networks"][: options.nets], has_accuracies)
            return
        table = LatencyTable.open(options.table) if options.table else None

        def cost(architecture: Architecture) -> float:
            return table.predict(architecture).latency_us if table else float(architecture.macs)

        if options.draw == "matched":
            matched = draw_matched(self.space, options.nets, cost, seed=options.seed)
            self.drawn = [each for _, each in matched]
        else:
            self.drawn = draw_architectures(
                self.space, options.nets, seed=options.seed, method=options.draw
            )
        self.details = [
            {
                "latency_us": cost(each) if table else None,
                "budget": matched[at][0] if options.draw == "matched" else None,
            }
            for at, each in enumerate(self.drawn)
        ]

    def _read_networks(self, rows: Sequence[Mapping[str, Any]], has_accuracies: bool) -> None:
        """Take networks of an earlier comparison.

        Args:
            rows: the networks.
            has_accuracies: whether their standalone accuracies are taken as well.
        """
        self.drawn = [self.space.from_json(row["architecture"]) for row in rows]
        self.details = [{name: row.get(name) for name in ("latency_us", "budget")} for row in rows]
        for at, row in enumerate(rows):
            for repetition, column in enumerate(("holdout_accuracy", "repeated_accuracy")):
                if has_accuracies and row.get(column) is not None:
                    self.standalone[at, repetition] = row[column]

    def earlier_scores(self) -> list[tuple[str, float, list[float]]]:
        """Return the name, epochs and scores of each recipe of an earlier comparison."""
        recipes = self.earlier.get("recipes", {})
        nets = len(self.drawn)
        return [(name, row["epochs"], row["scores"][:nets]) for name, row in recipes.items()]

    def train_network(self, number: int, repetition: int) -> float:
        """Return the standalone accuracy of one of the drawn networks."""
        return train_each_standalone(
            self.space,
            [self.drawn[number]],
            self.data,
            self.out,
            self.plain,
            seeds=[self.seed + repetition],
        )[0]

    def train_recipe(self, name: str) -> tuple[float, list[float]]:
        """Return the epochs of a recipe's supernet, and its scores of the drawn networks."""
        settings = replace(self.plain, **RECIPES[name], seconds=60 * self.minutes)
        folder = self.out / name.replace(", ", "-").replace(" ", "-")
        if self.training_seed != self.seed:
            folder = folder.with_name(f"{folder.name}-seed-{self.training_seed}")
        supernet = train(self.space, self.data, folder, settings, seed=self.training_seed)
        return trained_epochs(folder) or 0.0, evaluate(supernet, self.drawn, self.data)

    def ranking(
        self, scores: Sequence[float], standalone: Mapping[tuple[int, int], float]
    ) -> Ranking:
        """Return the ranking quality of some scores.

        Args:
            scores: score of each drawn network.
            standalone: standalone accuracy by the numbers of network and repetition.
        """
        return compute_ranking(
            [
                replace(
                    make_ranked_network(
                        each, scores[at], standalone[at, 0], standalone.get((at, 1))
                    ),
                    **self.details[at],
                )
                for at, each in enumerate(self.drawn)
            ]
        )


def take_shared_options(options: argparse.Namespace) -> None:
    """Take from the comparison `options.truth` what networks of it were trained with."""
    command = json.loads(options.truth.read_text())["command"]
    for name in SHARED_OPTIONS:
        setattr(options, name, command[name])
    options.epochs = options.epochs or command["epochs"]


def load_images(options: argparse.Namespace) -> ImageDataset:
    """Return the data: as many images as the options say, and all others to score networks on."""
    data = load_dataset(options.data, image_size=options.image_size)
    train, unused_train = split_images(data.train, options.images)
    search, unused_search = split_images(data.search, options.validation)
    holdout = join_images([data.holdout, unused_train, unused_search])
    return replace(data, train=train, search=search, holdout=holdout)


def split_images(images: Images, count: int | None) -> tuple[Images, Images]:
    """Return a random sample of images, always the same one, and the others.

    All images are in the sample if `count` is None.
    """
    order = np.random.default_rng(0).permutation(len(images))
    chosen, others = order[:count], order[len(order) if count is None else count :]
    return tuple(Images(images.pixels[part], images.labels[part]) for part in (chosen, others))


def join_images(parts: Sequence[Images]) -> Images:
    pixels = np.concatenate([np.asarray(part.pixels[: len(part)]) for part in parts])
    return Images(pixels, np.concatenate([part.labels for part in parts]))


_experiment: list[Experiment] = []


def _prepare(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    _experiment.append(Experiment(options))


def _train_network(number: int, repetition: int) -> float:
    return _experiment[0].train_network(number, repetition)


def _train_recipe(name: str) -> tuple[float, list[float]]:
    return _experiment[0].train_recipe(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="mobilenet")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="number of training images; all by default")
    parser.add_argument(
        "--validation", type=int, help="number of validation images; all by default"
    )
    parser.add_argument("--minutes", type=float, default=30, help="training time of each recipe")
    parser.add_argument(
        "--nets", type=int, help=f"networks; all of --truth, or {DEFAULT_NETS}, by default"
    )
    parser.add_argument("--repeated", type=int, default=25, help="networks to train twice")
    parser.add_argument("--draw", default="matched", choices=["matched", "spread", "uniform"])
    parser.add_argument("--table", type=Path, help="latency table by which networks are matched")
    parser.add_argument(
        "--epochs",
        type=int,
        help=f"epochs of standalone training; those of --truth, or {DEFAULT_EPOCHS}, by default",
    )
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training-seed", type=int, help="of the supernets; --seed by default")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--truth", type=Path, help="earlier comparison with trained networks")
    options = parser.parse_args()
    if options.truth:
        take_shared_options(options)
    else:
        options.nets = options.nets or DEFAULT_NETS
        options.epochs = options.epochs or DEFAULT_EPOCHS
    experiment = Experiment(options)
    print(
        f"{options.space}, {experiment.data.counts}, {len(experiment.drawn)} networks, "
        f"{options.epochs} epochs standalone, {options.processes} processes of one thread",
        flush=True,
    )
    standalone = dict(experiment.standalone)
    nets = len(experiment.drawn)
    wanted = [(at, 0) for at in range(nets)]
    wanted += [(at, 1) for at in range(min(options.repeated, nets))]
    trainings = [each for each in wanted if each not in standalone]
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), _prepare, (options,))
    with pool, ProgressBars() as bars:
        bars.begin("standalone", "network")
        waiting = {pool.submit(_train_network, *each): each for each in trainings}
        for done in as_completed(waiting):
            standalone[waiting[done]] = done.result()
            bars.advance(len(standalone), len(wanted), "")
        bars.begin("recipes", "recipe")
        trained = {pool.submit(_train_recipe, name): name for name in options.recipes}
        rows = {}
        for name, epochs, scores in (
            ((trained[done], *done.result()) for done in as_completed(trained))
            if options.recipes
            else experiment.earlier_scores()
        ):
            ranking = experiment.ranking(scores, standalone)
            rows[name] = {"epochs": epochs, "scores": scores, **ranking.to_json()}
            bars.advance(len(rows), max(1, len(trained)), "")
            print(
                f"{name:<42}{epochs:>6.1f} epochs  {describe(ranking, 'supernet')}  scores "
                f"{min(scores):.3f} to {max(scores):.3f}",
                flush=True,
            )
    if rows and ranking.matched:
        for order in ranking.matched.kendall_tau:
            if order != "supernet":
                print(f"{order:<55}{describe(ranking, order)}")
        print(
            f"{'a second training of all networks, expected':<55}matched tau "
            f"{interval_text(ranking.matched.retraining_tau)}"
        )
    document = {
        "command": {
            **vars(options),
            "out": None,
            "data": Path(options.data).name,
            "table": options.table and options.table.name,
            "truth": options.truth and options.truth.name,
        },
        "versions": installed_versions(),
        "machine": {"processor": processor()[0], "cores": os.cpu_count()},
        "images": experiment.data.counts,
        "networks": [
            {
                "architecture": each.to_json(),
                "holdout_accuracy": standalone[at, 0],
                "repeated_accuracy": standalone.get((at, 1)),
                **experiment.details[at],
            }
            for at, each in enumerate(experiment.drawn)
        ],
        "recipes": {name: rows[name] for name in options.recipes or rows},
    }
    file = options.out / f"recipes-{experiment.training_seed}.json"
    file.write_text(json.dumps(document, indent=1) + "\n")
    draw_figure(document, file.with_suffix(".png"))


def describe(ranking: Ranking, order: str) -> str:
    """Return the figures of one order of the networks in one line."""
    if ranking.matched is None:
        return "no ranking"
    matched = ranking.matched
    figures = {
        "matched tau": matched.kendall_tau,
        "gain": matched.gain,
        "partial tau": matched.partial_tau,
        "tau": matched.global_tau,
    }
    return "  ".join(
        f"{name} {interval_text(figure[order]):<22}" for name, figure in figures.items()
    )


def interval_text(interval: Interval | None) -> str:
    if interval is None:
        return "undefined"
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def draw_figure(document, path: Path) -> None:
    """Draw Kendall's tau of each recipe and each count, with its interval."""
    from matplotlib import pyplot as plt

    matched = {name: row["matched"] for name, row in document["recipes"].items() if row["matched"]}
    if not matched:
        return
    taus = {name: row["kendall_tau"]["supernet"] for name, row in matched.items()}
    orders = next(iter(matched.values()))["kendall_tau"]
    baselines = {name: tau for name, tau in orders.items() if name != "supernet"}
    known = {name: each for name, each in {**taus, **baselines}.items() if each}
    order = sorted(known, key=lambda name: known[name]["value"])
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(order) + 1))
    for at, name in enumerate(order):
        colour = "#999999" if name in baselines else "#1f77b4"
        tau = known[name]
        axes.plot([tau["low"], tau["high"]], [at, at], color=colour, linewidth=2)
        axes.plot(tau["value"], at, "o", color=colour)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("Kendall's tau among networks of equal cost, 95% bootstrap interval")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
