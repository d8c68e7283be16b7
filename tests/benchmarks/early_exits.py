"""Whether an exit inside a network beats a cascade of two networks of the same mean latency.

    python -m tests.benchmarks.early_exits ../shared/data/cifar10 --out early_exits.json

All networks are points of `mobilenet_32`. The rivals, each trained from newly drawn weights:

- `single`: the small, the middle and the large network, each trained alone;
- `cascade`: the small or the middle one answers, and the large one where that is not confident;
- `exit`: the large network with an exit behind a stage, the block `pool_classifier`. Both
  classifiers are trained together, and the exit learns from the last one, too. This training has as
  many multiply-accumulates as those of the cascade beside which the exit stands in `EXITS`, or with
  `--equal-epochs` as many epochs as each network of the cascade.

Each classifier gets one temperature, and each confidence threshold is chosen, on the search and
hold-out images. For every limit of the mean latency, the chain and the threshold with the highest
accuracy there are judged on the test images. Latencies are predicted from kernels that are timed
here. Those of a network with an exit are the prefix, which ends with the exit, and the rest.

Prints the networks, then a row for each limit: the accuracies with their 95% intervals, and the
difference of `exit` and `cascade`, in points. `--quick` shows in three minutes that it works.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

import nas
from nas.data import ImageDataset
from nas.data.dataset import joined
from nas.deploy.confidence import fit_temperature
from nas.display.console import print_table
from nas.graph import Graph
from nas.job.folder import installed_versions
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.worker_process import timers_for
from nas.machine import this_machine
from nas.space import Architecture, SearchSpace, load_space
from nas.space.exits import ExitNetwork, with_exit
from nas.statistics import paired_difference, wilson_interval
from nas.supernet.evaluation import network_logits
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_standalone

NETWORKS = {
    "small": (8, (16, 24, 48), (1, 1, 1)),
    "middle": (16, (16, 24, 48), (1, 2, 2)),
    "large": (16, (16, 32, 96), (1, 2, 4)),
}
"""Stem width, and widths and depths of the three stages. Kernels and expand ratios are 3."""

EXITS = {"stage1": "small", "stage2": "middle"}
"""The stage behind which an exit stands, and the first network of the rival cascade."""

LEVELS = 101
"""Thresholds of each chain: quantiles of the confidences, and one that no answer reaches."""

LIMITS = np.linspace(0.3, 1.0, 8)
"""Limits of the mean latency, over that of the large network."""

QUICK_TRAINING_IMAGES, QUICK_IMAGES = 512, 500
"""Training images, and those of each other part, with `--quick`."""


class Answers(NamedTuple):
    """The answers of one classifier to some images.

    Attributes:
        confidences: largest probability of each image, `n`.
        right: whether each answer is right, `n`.
    """

    confidences: NDArray[np.float64]
    right: NDArray[np.bool_]


class Stage(NamedTuple):
    """A classifier of a chain: its latency behind the stage before, and its answers."""

    latency_us: float
    choosing: Answers
    judging: Answers


Chain = tuple[Stage, ...]
"""One classifier, or two of which the second one answers where the first is not confident."""


def network(space: SearchSpace, name: str) -> Architecture:
    """Return a network of `NETWORKS`."""
    stem, widths, depths = NETWORKS[name]
    choices: dict[str, int] = {"stem.width": stem, "head.width": 256}
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        choices |= {f"stage{number}.width": width, f"stage{number}.depth": depth}
    return space.architecture(dict.fromkeys(space.parameters, 3) | choices)


def parts_of(space: SearchSpace, stage: str) -> ExitNetwork:
    """Return the large network with an exit behind a stage."""
    return with_exit(network(space.with_exit(stage), "large"))


def graphs(space: SearchSpace) -> dict[str, Graph]:
    """Return the graphs that are trained, by name: `small`, ..., `exit stage1`, ..."""
    return {
        **{name: network(space, name).graph for name in NETWORKS},
        **{f"exit {stage}": parts_of(space, stage).whole for stage in EXITS},
    }


@cache
def load_data(source: Path, image_size: int, quick: bool) -> ImageDataset:
    """Return the images, which each process loads once."""
    data = nas.load_dataset(source, image_size=image_size, metric="accuracy")
    if not quick:
        return data
    counts = {"train": QUICK_TRAINING_IMAGES}
    counts |= dict.fromkeys(("search", "holdout", "test"), QUICK_IMAGES)
    parts = {name: getattr(data, name).take(slice(0, count)) for name, count in counts.items()}
    return replace(data, **parts)


def space_for(data: ImageDataset) -> SearchSpace:
    """Return the space of all networks, adapted to some images."""
    return load_space(
        "mobilenet_32",
        image_size=data.image_size,
        channels=data.channels,
        classes=len(data.classes),
    )


def train(task: tuple[str, int], options: argparse.Namespace) -> list[tuple[Answers, Answers]]:
    """Train a network, and return the answers of each classifier on both halves of the images."""
    torch.set_num_threads(1)
    name, seed = task
    data = load_data(options.source, options.image_size, options.quick)
    known = graphs(space_for(data))
    graph, epochs = known[name], options.epochs
    if name.startswith("exit") and not options.equal_epochs:
        rivals = (EXITS[name.split()[1]], "large")
        epochs *= sum(known[each].macs for each in rivals) / graph.macs
    trained = train_standalone(graph, data, Recipe(epochs=epochs), seed=seed)
    halves = (joined([data.search, data.holdout]), data.test)
    outputs = [network_logits(trained, data, each) for each in halves]
    classifiers = []
    classes = len(data.classes)
    for start in range(0, outputs[0].shape[1], classes):
        choosing, judging = (each[:, start : start + classes].astype(float) for each in outputs)
        temperature = fit_temperature(choosing, halves[0].labels)
        classifiers.append(
            tuple(
                Answers(
                    softmax(logits / temperature, axis=1).max(1),
                    logits.argmax(1) == images.labels,
                )
                for logits, images in zip((choosing, judging), halves, strict=True)
            )
        )
    print(f"{name}, seed {seed}: {epochs:.2f} epochs", file=sys.stderr)
    return classifiers


def predict(
    space: SearchSpace, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Time the kernels, and return microseconds: of each network, and of prefix and rest."""
    runtime = open_runtime(options.runtime, threads=1)
    table = LatencyTable.open_or_create(options.tables, runtime)
    alone = {name: Graph(network(space, name).graph.ops) for name in NETWORKS}
    parts = {stage: parts_of(space, stage) for stage in EXITS}
    needed = [*alone.values(), *(part for each in parts.values() for part in each[1:3])]
    kernels = [kernel for each in needed for kernel in runtime.kernels(each)]
    with timers_for(runtime) as timers:
        build_table(table, kernels, timers, seconds=0 if options.quick else None)

    def latency_us(graph: Graph) -> float:
        return table.predict(graph).latency_us

    return (
        {name: latency_us(graph) for name, graph in alone.items()},
        {stage: (latency_us(each.prefix), latency_us(each.rest)) for stage, each in parts.items()},
    )


def run_chain(chain: Chain, half: str, threshold: float) -> tuple[float, NDArray[np.bool_]]:
    """Return the mean latency of a chain on one half of the images, and whether it is right."""
    first, *others = chain
    answers: Answers = getattr(first, half)
    latency_us, right = first.latency_us, answers.right
    for second in others:
        passed = answers.confidences < threshold
        latency_us += float(passed.mean()) * second.latency_us
        right = np.where(passed, getattr(second, half).right, right)
    return latency_us, right


def choose(chains: dict[str, Chain], limit_us: float) -> tuple[str, float] | None:
    """Return the chain and the threshold that are best within a mean latency; None if none is."""
    best, chosen = -1.0, None
    for name, chain in chains.items():
        confidences = chain[0].choosing.confidences
        levels = [*np.quantile(confidences, np.linspace(0, 1, LEVELS)), math.inf]
        for threshold in levels if len(chain) > 1 else [0.0]:
            latency_us, right = run_chain(chain, "choosing", threshold)
            if latency_us <= limit_us and right.mean() > best:
                best, chosen = float(right.mean()), (name, float(threshold))
    return chosen


def rivals(
    answers: dict[str, list[tuple[Answers, Answers]]],
    alone_us: dict[str, float],
    parts_us: dict[str, tuple[float, float]],
) -> dict[str, dict[str, Chain]]:
    """Return the chains of one seed by kind and name."""
    single = {name: Stage(us, *answers[name][0]) for name, us in alone_us.items()}
    return {
        "single": {name: (stage,) for name, stage in single.items()},
        "cascade": {each: (single[each], single["large"]) for each in EXITS.values()},
        "exit": {
            stage: tuple(
                Stage(us, *own) for us, own in zip(each_us, answers[f"exit {stage}"], strict=True)
            )
            for stage, each_us in parts_us.items()
        },
    }


def curve_row(seeds: list[dict[str, dict[str, Chain]]], limit_us: float) -> dict[str, Any]:
    """Return what each kind reaches within a mean latency, judged on the images for that."""
    row: dict[str, Any] = {"limit_us": limit_us}
    right: dict[str, list[NDArray[np.bool_]]] = {}
    for kind in seeds[0]:
        chosen = [choose(chains[kind], limit_us) for chains in seeds]
        if None in chosen:
            continue
        runs = [
            (name, threshold, *run_chain(chains[kind][name], "judging", threshold))
            for chains, (name, threshold) in zip(seeds, chosen, strict=True)
        ]
        right[kind] = [run[3] for run in runs]
        accuracies = [float(each.mean()) for each in right[kind]]
        interval = wilson_interval(mean(accuracies), [len(each) for each in right[kind]])
        row[kind] = {
            "accuracy": interval.value,
            "low": interval.low,
            "high": interval.high,
            "seeds": [
                {"chain": run[0], "threshold": run[1], "mean_us": run[2], "accuracy": accuracy}
                for run, accuracy in zip(runs, accuracies, strict=True)
            ],
        }
    for rival in ("cascade", "single"):
        if "exit" in right and rival in right:
            difference = paired_difference(
                np.concatenate(right["exit"]),
                np.concatenate(right[rival]),
                [len(each) for each in right[rival]],
            )
            row[f"exit_minus_{rival}"] = {
                "value": difference.value,
                "low": difference.low,
                "high": difference.high,
                "text": difference.text(1, scale=100, sign="+"),
            }
    return row


def print_rows(rows: Iterable[dict[str, Any]], large_us: float) -> None:
    """Print the curve."""
    cells = []
    for row in rows:
        texts = []
        for kind in ("single", "cascade", "exit"):
            own = row.get(kind)
            names = "/".join(dict.fromkeys(each["chain"] for each in own["seeds"])) if own else ""
            texts.append(
                f"{100 * own['accuracy']:.1f} ({100 * own['low']:.1f} to "
                f"{100 * own['high']:.1f}), {names}"
                if own
                else None
            )
        differences = [
            row[name]["text"] if name in row else None
            for name in ("exit_minus_cascade", "exit_minus_single")
        ]
        share = row["limit_us"] / large_us
        cells.append((f"{row['limit_us']:.1f} ({share:.0%})", *texts, *differences))
    print_table(["mean us", "single", "cascade", "exit", "exit - cascade", "exit - single"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--image-size", type=int, default=24)
    parser.add_argument("--epochs", type=float, default=3, help="of the networks without an exit")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--runtime", default="tvm")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    parser.add_argument("--equal-epochs", action="store_true", help="for all networks")
    parser.add_argument("--quick", action="store_true", help="few images and one seed")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.seeds = 1, 1
    space = space_for(load_data(options.source, options.image_size, options.quick))
    alone_us, parts_us = predict(space, options)
    known = graphs(space)
    # The longest trainings begin first, so that no process waits for one at the end.
    tasks = sorted(product(known, range(options.seeds)), key=lambda task: -len(known[task[0]].ops))
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        trained = dict(zip(tasks, pool.map(partial(train, options=options), tasks), strict=True))
    seeds = [
        rivals({name: trained[name, seed] for name in known}, alone_us, parts_us)
        for seed in range(options.seeds)
    ]
    networks = []
    for name, graph in known.items():
        own = [trained[name, seed] for seed in range(options.seeds)]
        networks.append(
            {
                "network": name,
                "macs": graph.macs,
                "latency_us": parts_us[name.split()[1]] if "exit" in name else (alone_us[name],),
                "accuracies": [
                    mean(float(each[at][1].right.mean()) for each in own)
                    for at in range(len(own[0]))
                ],
            }
        )
    print_table(
        ["network", "million MACs", "us", "accuracy of each classifier, %"],
        [
            (
                each["network"],
                f"{each['macs'] / 1e6:.2f}",
                " + ".join(f"{us:.1f}" for us in each["latency_us"]),
                ", ".join(f"{100 * value:.1f}" for value in each["accuracies"]),
            )
            for each in networks
        ],
    )
    rows = [curve_row(seeds, share * alone_us["large"]) for share in LIMITS]
    print_rows(rows, alone_us["large"])
    if options.out:
        document = {
            "command": f"python -m tests.benchmarks.early_exits {' '.join(sys.argv[1:])}",
            "processor": this_machine.processor()[0],
            "versions": installed_versions(),
            "networks": networks,
            "curve": rows,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
