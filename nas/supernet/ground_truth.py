"""Ground truth for a supernet's scores: networks of its space, each trained standalone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from nas.data import ImageDataset
from nas.display.progress import Advance, part_of
from nas.errors import RequestError
from nas.files import jsonl
from nas.machine.torch_device import resolve_device
from nas.pretrained import PublishedWeights
from nas.space import Architecture, SearchSpace
from nas.supernet.evaluation import evaluate, evaluate_network
from nas.supernet.pretrained import published_state
from nas.supernet.ranking_records import RankedNetworkRecord
from nas.supernet.recipe import Recipe
from nas.supernet.records import STANDALONE, STANDALONE_SCHEMA
from nas.supernet.standalone import train_standalone
from nas.supernet.weights import Supernet

Judges = Literal["search", "holdout"]
"""A split whose images judge networks that were trained standalone."""

JUDGES: tuple[Judges, ...] = get_args(Judges)

STANDALONE_FILE = "standalone.jsonl"
"""Name of the file with a line for each network that was trained standalone, in a run's folder."""

NUM_BUDGETS = 5
"""Latency budgets of a matched draw, evenly spaced in the logarithm."""

BUDGET_TOLERANCE = 0.05
"""Largest relative difference of the latency of a matched network from its budget."""

_BUDGET_QUANTILES = 0.05, 0.95
"""Smallest and largest budget, as quantiles of the latencies of random networks.

Few networks are faster or slower, and a search that starts from random networks meets few of them.
"""

_MAX_UNMATCHED_DRAWS = 5000
"""Draws in a row that match no budget, after which the budgets have no further networks."""

_POOL_SIZE = 2048
"""Random architectures whose costs give the budgets."""

_MAX_REPEATED_DRAWS = 200
"""Draws in a row that give known networks, after which a space is taken to have no others."""


def draw_matched(
    space: SearchSpace,
    count: int,
    cost: Callable[[Architecture], float | None],
    *,
    seed: int,
) -> list[Architecture]:
    """Draw different architectures that are equally fast within each of a few budgets.

    The budgets are evenly spaced in the logarithm between two quantiles of the costs of random
    architectures, and each is the nearest of these costs. Random architectures have every choice
    drawn uniformly, as those that a search starts from. The architectures come in turns from all
    budgets, so a smaller draw with the same seed is the beginning of a larger one.

    Args:
        space: the search space.
        count: number of architectures, at least 1; fewer are returned if a budget has no more.
        cost: returns the cost of an architecture, such as its predicted latency. Architectures
            whose cost is None are not drawn.
        seed: seed of the draw.

    Raises:
        RequestError: `count` is less than 1, or no cost is known.
    """
    if count < 1:
        raise RequestError(
            f"A ranking needs at least 1 network, not {count}.", remedy="Give --nets 50 or so."
        )
    rng = np.random.default_rng(seed)
    sample = partial(space.sample, rng, uniform_over="choices")
    pool = _draw_distinct(_POOL_SIZE, sample)
    costs = [cost(architecture) for architecture in pool]
    known = np.array([each for each in costs if each is not None])
    if not known.size:
        raise RequestError(
            f"The cost of no architecture of {space.name} is known.",
            remedy="Build a latency table in which their kernels have not failed.",
        )
    low, high = np.quantile(known, _BUDGET_QUANTILES)
    spaced = np.geomspace(low, high, NUM_BUDGETS)
    # In a small space, few costs are possible at all.
    targets = known[np.abs(np.log(known / spaced[:, None])).argmin(axis=1)]
    matched: list[dict[str, Architecture]] = [{} for _ in targets]
    wanted, unmatched = math.ceil(count / NUM_BUDGETS), 0

    def candidates() -> Iterator[tuple[Architecture, float | None]]:
        yield from zip(pool, costs, strict=True)
        # A pool that is not full is taken to hold the whole space.
        while len(pool) == _POOL_SIZE:
            architecture = sample()
            yield architecture, cost(architecture)

    for architecture, own_cost in candidates():
        if unmatched == _MAX_UNMATCHED_DRAWS or all(len(group) == wanted for group in matched):
            break
        unmatched += 1
        if own_cost is None:
            continue
        differences = np.abs(own_cost / targets - 1)
        group = matched[int(differences.argmin())]
        has_room = len(group) < wanted and architecture.digest not in group
        if has_room and differences.min() <= BUDGET_TOLERANCE:
            group[architecture.digest] = architecture
            unmatched = 0
    alternating = [
        architecture
        for one_of_each in zip_longest(*(group.values() for group in matched))
        for architecture in one_of_each
        if architecture is not None
    ]
    return alternating[:count]


def _draw_distinct(count: int, sample: Callable[[], Architecture]) -> list[Architecture]:
    """Return architectures whose graphs differ, `count` or as many as the space has."""
    architectures: dict[str, Architecture] = {}
    repeats = 0
    while len(architectures) < count and repeats < _MAX_REPEATED_DRAWS:
        architecture = sample()
        digest = architecture.digest
        repeats = repeats + 1 if digest in architectures else 0
        architectures[digest] = architecture
    return list(architectures.values())


def compare_with_standalone(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    data: ImageDataset,
    folder: Path,
    recipe: Recipe,
    *,
    seed: int,
    repeated: int = 0,
    published: PublishedWeights | None = None,
    progress: Advance | None = None,
) -> dict[Judges, list[RankedNetworkRecord]]:
    """Score architectures with a supernet and train each of them standalone.

    The supernet scores on the search split, as in a search.

    Args:
        supernet: supernet that was trained on `data`.
        architectures: architectures of the supernet's space.
        data: data for training and evaluation.
        folder: folder with `STANDALONE_FILE`; networks in it that were trained with the same
            recipe are not trained again.
        recipe: how the networks are trained.
        seed: seed of the standalone training.
        repeated: number of architectures, from the first, that are trained standalone once more,
            with the next seed, for what a second training of all would reach.
        published: published weights from which the standalone trainings start; None starts from
            random ones.
        progress: called after every training step.

    Returns:
        The networks by the split that judges their standalone trainings. On the hold-out, these do
        not share the errors of one sample of images with the scores; what a search reads is judged
        on its own split.

    Raises:
        TrainingError: a standalone training diverges.
        CheckpointError: `STANDALONE_FILE` has a line that is not a record.
    """
    seeds = [seed] * len(architectures) + [seed + 1] * len(architectures[:repeated])
    trained = [*architectures, *architectures[:repeated]]
    identity = {
        "space_digest": supernet.space.digest,
        "data_digest": data.digest,
        "training": standalone_recipe(recipe, published),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STANDALONE_FILE
    jsonl.repair(path)
    accuracies: dict[tuple[str, int], dict[Judges, float]] = {
        (row.digest, row.seed): {"search": row.search_accuracy, "holdout": row.holdout_accuracy}
        for row in jsonl.read(path, STANDALONE)
        if row.model_dump(include=set(identity)) == identity
    }
    for number, (architecture, own_seed) in enumerate(zip(trained, seeds, strict=True)):
        if (architecture.digest, own_seed) in accuracies:
            continue
        started, start = time.monotonic(), None
        text = f"network {number + 1} of {len(trained)}"
        if published is not None:
            device = resolve_device(recipe.device)
            start = published_state(architecture, published, data, seed=own_seed, device=device)
        network = train_standalone(
            architecture.graph,
            data,
            recipe,
            seed=own_seed,
            start=start,
            progress=part_of(progress, number, len(trained), text),
        )
        own: dict[Judges, float] = {part: evaluate_network(network, data, part) for part in JUDGES}
        accuracies[architecture.digest, own_seed] = own
        row = {
            "schema": STANDALONE_SCHEMA,
            "space": architecture.space.name,
            "digest": architecture.digest,
            "architecture": architecture.to_json(),
            "search_accuracy": own["search"],
            "holdout_accuracy": own["holdout"],
            "seconds": round(time.monotonic() - started, 3),
        }
        jsonl.append(path, {**row, **identity, "seed": own_seed})
    scores = evaluate(supernet, architectures, data)
    return {
        part: [
            RankedNetworkRecord.of_architecture(
                architecture,
                supernet_accuracy=score,
                standalone_accuracy=accuracies[architecture.digest, seed][part],
                repeated_accuracy=(
                    accuracies[architecture.digest, seed + 1][part] if number < repeated else None
                ),
            )
            for number, (architecture, score) in enumerate(zip(architectures, scores, strict=True))
        ]
        for part in JUDGES
    }


def standalone_recipe(recipe: Recipe, published: PublishedWeights | None) -> dict[str, Any]:
    """Return what decides the weights of a standalone training, beside its network and seed."""
    start = {} if published is None else {"published": published.digest}
    return recipe.identity(from_scratch=published is None) | start
