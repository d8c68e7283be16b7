"""Test accuracy of published networks by the recipe that trains them alone.

    python -m tests.benchmarks.recipes CIFAR10 --jobs 2 --epochs 12
    python -m tests.benchmarks.recipes CIFAR10 --run results/study-cifar10    # also with a teacher

Each recipe changes one thing of the first one. All train the same networks with the same seeds, for
equal epochs. Prints the accuracy on the images that no training uses but the test images, its mean
difference from the first recipe over networks and seeds, and the standard error of that mean.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

import nas
from nas.data import ImageDataset, Images
from nas.machine.torch_device import resolve_device
from nas.opened_run import open_run
from nas.space.library import find_reference
from nas.supernet.distillation import Teacher
from nas.supernet.evaluation import predict_network
from nas.supernet.recipe import (
    WEIGHT_DECAY,
    Recipe,
    default_batch_size,
    scaled_learning_rate,
)
from nas.supernet.standalone import train_standalone


@dataclass(frozen=True)
class Change:
    """A recipe: that of supernets, but for some changes.

    Attributes:
        name: its name.
        settings: values of `Recipe`; the batch and the rate are factors of the default.
        teacher: whether the networks learn from the teacher, too.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    teacher: bool = False


NETWORKS_OWN = {"weight_decay": None, "alternating": None, "decays_depthwise": None}
"""What the product has for networks that are trained alone: their defaults."""

RECIPES = (
    Change("supernets"),
    Change("weight decay 4e-5", {"weight_decay": 4e-5}),
    Change("weight decay 5e-4", {"weight_decay": 5e-4}),
    Change("weight decay 5e-4, none depthwise", {"weight_decay": 5e-4, "decays_depthwise": False}),
    Change("alternating flips", {"alternating": True}),
    Change("label smoothing 0.1", {"label_smoothing": 0.1}),
    Change("teacher", teacher=True),
    Change("teacher, label smoothing 0.1", {"label_smoothing": 0.1}, teacher=True),
    Change("rate x 0.5", {"learning_rate": 0.5}),
    Change("rate x 2", {"learning_rate": 2.0}),
    Change("batch x 0.5", {"batch_size": 0.5}),
    Change("networks", NETWORKS_OWN),
    Change("networks, rate x 2", {**NETWORKS_OWN, "learning_rate": 2.0}),
    Change("networks, teacher", NETWORKS_OWN, teacher=True),
)
"""The first is the one that others are compared with."""

NETWORKS = ("mobilenet_v2_0.35", "shufflenet_v2_0.5")


def settings_of(change: Change, epochs: int) -> Recipe:
    """Return the settings of a recipe."""
    batch = default_batch_size(resolve_device("auto"))
    values = {
        "weight_decay": WEIGHT_DECAY,
        "alternating": False,
        "decays_depthwise": True,
        **change.settings,
    }
    batch = round(batch * values.pop("batch_size", 1))
    rate = scaled_learning_rate(batch) * values.pop("learning_rate", 1)
    return Recipe(epochs=epochs, batch_size=batch, learning_rate=rate, **values)


def train(
    change: Change, name: str, seed: int, epochs: int, data: ImageDataset, teacher: Teacher | None
) -> dict[str, Any]:
    """Train a network with a recipe, and return its accuracy."""
    began = time.monotonic()
    space = find_reference(name)[0].adapt(
        image_size=data.image_size, channels=data.channels, classes=len(data.classes)
    )
    graph, settings = space.reference(name).graph, settings_of(change, epochs)
    network = train_standalone(graph, data, settings, seed=seed, teacher=teacher)
    unseen = Images(
        np.concatenate([np.asarray(data.search.pixels), np.asarray(data.holdout.pixels)]),
        np.concatenate([data.search.labels, data.holdout.labels]),
    )
    accuracy = data.score(predict_network(network, data, unseen), unseen.labels)
    return {
        "recipe": change.name,
        "network": name,
        "seed": seed,
        "epochs": epochs,
        "accuracy": accuracy,
        "seconds": round(time.monotonic() - began, 1),
    }


@cache
def load_data(source: Path) -> ImageDataset:
    """Return the images, which each process loads once."""
    return replace(nas.load_dataset(source, metric="accuracy"), flip_preserves_class=True)


@cache
def load_teacher(run: Path, space: str, source: Path) -> Teacher:
    """Return the teacher, which each process loads once."""
    supernet = open_run(run).supernet(space).to(resolve_device("auto"))
    return Teacher.of_supernet(supernet, load_data(source))


def work(task: tuple[Change, str, int], options: argparse.Namespace) -> dict[str, Any]:
    """Train a network in a process of its own, and return its row."""
    torch.set_num_threads(1)
    change, name, seed = task
    teacher = None
    if change.teacher:
        teacher = load_teacher(options.run, options.teacher, options.source)
    return train(change, name, seed, options.epochs, load_data(options.source), teacher)


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table of the recipes."""
    known = {(row["recipe"], row["network"], row["seed"]): row["accuracy"] for row in rows}
    lines = [
        "| recipe | " + " | ".join(NETWORKS) + " | difference in points |",
        "|---|---|---|---|",
    ]
    for change in dict.fromkeys(row["recipe"] for row in rows):
        cells = []
        for name in NETWORKS:
            own = [value for key, value in known.items() if key[:2] == (change, name)]
            cells.append(f"{mean(own):.2%}" if own else "")
        differences = [
            100 * (value - known[RECIPES[0].name, *key[1:]])
            for key, value in known.items()
            if key[0] == change and (RECIPES[0].name, *key[1:]) in known
        ]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0
        text = f"{mean(differences):+.2f} ± {error:.2f}" if differences else ""
        lines.append(f"| {change} | " + " | ".join(cells) + f" | {text} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--run", type=Path, help="run whose supernet teaches")
    parser.add_argument("--teacher", default="mobilenet_32", help="space of that supernet")
    parser.add_argument("--recipes", nargs="+", help="names of some recipes")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    options = parser.parse_args()
    chosen = [
        each
        for each in RECIPES
        if (options.run or not each.teacher) and each.name in (options.recipes or [each.name])
    ]
    tasks = list(product(chosen, NETWORKS, range(options.seeds)))
    rows = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(partial(work, options=options), tasks):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()
