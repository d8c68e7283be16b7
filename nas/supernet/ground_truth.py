"""What a supernet's scores are held against: networks drawn from a space and trained alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nas import jsonl
from nas.data import ImageDataset
from nas.errors import RequestError
from nas.records import SCHEMA, STANDALONE
from nas.space import Architecture, SearchSpace
from nas.supernet.evaluation import evaluate, evaluate_network
from nas.supernet.ranking import RankedNetwork
from nas.supernet.settings import TrainingSettings
from nas.supernet.standalone import train_alone
from nas.supernet.weights import Supernet

FILE = "alone.jsonl"
"""In a run's folder: a line for every network that was trained alone."""

Draw = Literal["spread", "uniform"]
"""Evenly over the range of multiply-accumulates, or every network of the space equally likely."""

_POOL = 2048
"""Networks from which those that are spread are chosen."""

_MOST_MISSES = 200
"""Networks in a row that were drawn before: then a space is taken to have no more."""

Step = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is being done)."""


def draw(space: SearchSpace, nets: int, *, seed: int, how: Draw = "spread") -> list[Architecture]:
    """Different networks; the first ones of a larger draw are those of a smaller one.

    Spread ones lie at the positions of van der Corput's sequence between the smallest and the
    largest of a pool, by the logarithm of their multiply-accumulates. Fewer where the space has no
    more.
    """
    if nets < 1:
        raise RequestError("A ranking needs networks.", remedy="Give --nets 20 or so.")
    rng = np.random.default_rng(seed)
    if how == "uniform":
        return _distinct(nets, lambda: space.sample(rng))
    pool = _distinct(max(_POOL, 4 * nets), lambda: space.sample(rng, uniform_over="choices"))
    sizes = np.log([each.macs for each in pool])
    found: list[Architecture] = []
    free = np.ones(len(pool), bool)
    for position in range(min(nets, len(pool))):
        target = sizes.min() + van_der_corput(position) * (sizes.max() - sizes.min())
        nearest = int(np.argmin(np.where(free, np.abs(sizes - target), np.inf)))
        free[nearest] = False
        found.append(pool[nearest])
    return found


def van_der_corput(position: int) -> float:
    """The binary digits of `position`, mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    value, step = 0.0, 0.5
    while position:
        value += step * (position & 1)
        position >>= 1
        step /= 2
    return value


def _distinct(count: int, sample: Callable[[], Architecture]) -> list[Architecture]:
    found: dict[str, Architecture] = {}
    misses = 0
    while len(found) < count and misses < _MOST_MISSES:
        architecture = sample()
        digest = architecture.digest
        misses = misses + 1 if digest in found else 0
        found[digest] = architecture
    return list(found.values())


def compare(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    data: ImageDataset,
    folder: Path,
    settings: TrainingSettings,
    *,
    seed: int,
    progress: Step | None = None,
) -> list[RankedNetwork]:
    """Scores networks with a supernet, and trains each alone.

    The supernet's scores are those of a search: on its validation images. What a network reaches
    alone is measured on the hold-out, other images, so that both do not err alike.

    Args:
        supernet: trained, on `data`.
        architectures: of its space.
        folder: keeps `FILE`; networks that are in it with the same recipe are not trained again.
        settings, seed: the recipe of training alone.
        progress: see `Step`.

    Raises TrainingError if a network alone diverges.
    """
    space = supernet.space
    alone = train_each_alone(
        space, architectures, data, folder, settings, seed=seed, progress=progress
    )
    scores = evaluate(supernet, architectures, data)
    return [
        ranked(architecture, score, reached)
        for architecture, score, reached in zip(architectures, scores, alone, strict=True)
    ]


def ranked(architecture: Architecture, score: float, alone: float) -> RankedNetwork:
    """A network with both its accuracies, and what can be counted on it."""
    graph = architecture.graph
    counts = graph.macs, graph.params, graph.depth
    return RankedNetwork(architecture.to_json(), graph.digest, *counts, score, alone)


def train_each_alone(
    space: SearchSpace,
    architectures: Sequence[Architecture],
    data: ImageDataset,
    folder: Path,
    settings: TrainingSettings,
    *,
    seed: int,
    progress: Step | None = None,
) -> list[float]:
    """What each network reaches on the hold-out when it is trained alone; see `compare`."""
    recipe = {
        "space_digest": space.digest,
        "data_digest": data.digest,
        "training": settings.identity(),
        "seed": seed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    jsonl.repair(folder / FILE)
    known = {
        row.digest: row.holdout_accuracy
        for row in jsonl.read(folder / FILE, STANDALONE)
        if all(getattr(row, key) == value for key, value in recipe.items())
    }
    found = []
    for number, architecture in enumerate(architectures):
        digest = architecture.digest
        if digest not in known:
            told = _within(number, len(architectures), progress)
            row = _trained(architecture, data, settings, seed, told)
            jsonl.append(folder / FILE, {"schema": SCHEMA, **row, **recipe})
            known[digest] = float(row["holdout_accuracy"])
        found.append(known[digest])
    return found


def _trained(
    architecture: Architecture,
    data: ImageDataset,
    settings: TrainingSettings,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    begun = time.monotonic()
    graph = architecture.graph
    network = train_alone(graph, data, settings, seed=seed, progress=progress)
    return {
        "space": architecture.space.name,
        "digest": graph.digest,
        "architecture": architecture.to_json(),
        "search_accuracy": evaluate_network(network, data, "search"),
        "holdout_accuracy": evaluate_network(network, data, "holdout"),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _within(number: int, count: int, progress: Step | None) -> Callable[[int, int], None] | None:
    """Steps of one network among those of all."""
    if progress is None:
        return None
    name = f"network {number + 1} of {count}"
    return lambda done, steps: progress(number * steps + done, count * steps, name)
