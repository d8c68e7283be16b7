"""Whether layers of low rank make published networks faster than narrower layers do.

    python -m tests.benchmarks.low_rank --networks mobilenet_v2_1.0 squeezenet_1.1
    python -m tests.benchmarks.low_rank --data ../shared/data/cifar10 --out low_rank.json

The heaviest pointwise layers, which have `--share` of the multiply-accumulates of all, become two
layers without an activation between them, at the rank that halves their multiply-accumulates. So
does the classifier, if it has a tenth of the parameters. The network of low rank is timed as a
whole, in turns with the original; if it is faster, also with the original at the width at which a
latency table predicts the same latency.

Without images, the networks have their published image sizes and 1,000 classes, and only latencies
are printed. With images, the original and the narrower network are trained from newly drawn
weights. The network of low rank starts from the singular value decomposition of the trained
original (Denton et al. 2014, "Exploiting linear structure within convolutional networks"). Then all
three are fine-tuned for equal epochs. Accuracies are those on all images that no training uses,
with 95% intervals; `after SVD` is before fine-tuning, and `low rank - it` the difference in points.
`--quick` shows in three minutes that it works.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data.dataset import joined
from nas.display.console import print_table
from nas.graph import WEIGHTED_KINDS, Channels, Graph, Op, Slot
from nas.job.folder import installed_versions
from nas.latency import LatencyTable, Runtime, build_table, open_runtime
from nas.latency.networks import measure_networks
from nas.latency.worker_process import timers_for
from nas.machine import this_machine
from nas.space import Architecture
from nas.space.library import find_reference
from nas.statistics import paired_difference, wilson_interval
from nas.supernet.evaluation import predict_network
from nas.supernet.recipe import FINE_TUNING_RATE, Recipe
from nas.supernet.standalone import train_standalone
from nas.torch_network import Network, to_torch
from tests.benchmarks.early_exits import load_data

VARIANTS = ("original", "low rank", "narrower")

MIN_CLASSIFIER_SHARE = 0.1
"""Share of the parameters from which the classifier is factorised; that of ten classes has less."""

VECTOR = 8
"""Ranks and widths are multiples of it where they are larger, as those of published networks."""

MAX_WIDTHS = 4
"""Most widths that are tried for equal latency."""

CLOSE = 0.02
"""Relative difference of predicted latencies that counts as equal."""


def rank_of(graph: Graph, op: Op) -> int:
    """Return the largest rank with at most half of a layer's multiply-accumulates."""
    outputs, inputs = op.shape[0], graph.input_channels(op)
    rank = outputs * inputs // (2 * (outputs + inputs))
    return max(1, rank if rank < VECTOR else rank // VECTOR * VECTOR)


def heaviest(graph: Graph, share: float) -> list[Op]:
    """Return the layers to factorise."""
    weighted = [op for op in graph.ops if op.kind in WEIGHTED_KINDS]
    classifier = weighted.pop()
    pointwise = [
        op for op in weighted if op.kind == "conv" and op.kernel == op.stride == op.groups == 1
    ]
    pointwise.sort(key=graph.op_macs, reverse=True)
    left = share * sum(map(graph.op_macs, pointwise))
    chosen = []
    for op in pointwise:
        if left > 0:
            chosen.append(op)
            left -= graph.op_macs(op)
    if graph.op_params(classifier) >= MIN_CLASSIFIER_SHARE * graph.params:
        chosen.append(classifier)
    return chosen


def factorised(graph: Graph, share: float) -> Graph:
    """Return a network with some layers as two, of which the first one has a slot `<slot>_low`."""
    names = {op.slot_name for op in heaviest(graph, share)}
    positions: list[int] = []
    ops: list[Op] = []
    for op in graph.ops:
        op = op._replace(inputs=tuple(positions[each] for each in op.inputs))
        if op.slot is not None and op.slot.name in names and op.kind in WEIGHTED_KINDS:
            rank = rank_of(graph, graph.ops[len(positions)])
            middle = Channels.prefix(rank, rank)
            slot = Slot(f"{op.slot.name}_low", middle, op.slot.inputs)
            shape = (rank, *op.shape[1:])
            ops.append(op._replace(shape=shape, bias=False, slot=slot))
            op = op._replace(inputs=(len(ops) - 1,), slot=op.slot._replace(inputs=middle))
        positions.append(len(ops))
        ops.append(op)
    return Graph(tuple(ops))


def decomposed(network: Network, graph: Graph) -> dict[str, Tensor]:
    """Return the weights of a factorised network that are closest to those of the original."""
    state = network.tensors()
    for op in graph.ops:
        if op.slot is not None and op.slot.name.endswith("_low"):
            name = op.slot.name.removesuffix("_low")
            weight = state[f"{name}.weight"]
            u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            root, window = s[: op.shape[0]].sqrt(), weight.shape[2:]
            state[f"{name}.weight"] = (u[:, : op.shape[0]] * root).reshape(
                len(u), op.shape[0], *window
            )
            state[f"{name}_low.weight"] = (root[:, None] * v[: op.shape[0]]).reshape(
                op.shape[0], -1, *window
            )
    return state


def at_width(architecture: Architecture, share: float) -> Graph:
    """Return a network with a share of all widths but that of the head, as MobileNetV2 has it."""
    choices, stages = dict(architecture.choices), []
    for stage in architecture.space.stages:
        width = choices.get(f"{stage.name}.width", stage.width)
        if isinstance(width, int) and stage.name != "head":
            choices.pop(f"{stage.name}.width", None)
            width = max(VECTOR, VECTOR * round(share * width / VECTOR))
            stage = replace(stage, width=width)
        stages.append(stage)
    space = replace(architecture.space, stages=tuple(stages), references=())
    return Graph(space.architecture(choices).graph.ops)


def narrower(
    architecture: Architecture, target_us: float, latency_us: Callable[[Graph], float]
) -> tuple[float, Graph]:
    """Return the width at which a network has a latency, and the network; 1 if it is as fast."""
    own = Graph(architecture.graph.ops)
    tried = {1.0: (latency_us(own), own)}
    power = 1.4  # of the width in the latency, between that of a dense and a depthwise network
    for _ in range(MAX_WIDTHS):
        closest = min(tried, key=lambda each: abs(math.log(tried[each][0] / target_us)))
        us = tried[closest][0]
        if abs(us / target_us - 1) <= CLOSE or (closest == 1 and us <= target_us):
            break
        width = closest * (target_us / us) ** (1 / power)
        graph = at_width(architecture, width)
        if graph.digest in [each.digest for _, each in tried.values()]:
            break
        tried[width] = (latency_us(graph), graph)
    width = min(tried, key=lambda each: abs(math.log(tried[each][0] / target_us)))
    return width, tried[width][1]


def latency_of(table: LatencyTable, runtime: Runtime, quick: bool) -> Callable[[Graph], float]:
    """Return the function that predicts a network, and times the kernels that it needs for that."""

    def latency_us(graph: Graph) -> float:
        missing = table.missing(runtime.kernels(graph))
        if missing:
            with timers_for(runtime) as timers:
                build_table(table, missing, timers, seconds=0 if quick else None)
        return table.predict(graph).latency_us

    return latency_us


def measure(
    architecture: Architecture, options: argparse.Namespace
) -> tuple[list[Graph], list[dict[str, Any]]]:
    """Return the graphs of `VARIANTS`, and what is known of each without training it.

    There is no narrower one where the network of low rank is not faster than the original.
    """
    runtime = open_runtime(options.runtime, threads=1)
    table = LatencyTable.open_or_create(options.tables, runtime)
    latency_us = latency_of(table, runtime, options.quick)
    original = Graph(architecture.graph.ops)
    low_rank = factorised(original, options.share)
    width, other = narrower(architecture, latency_us(low_rank), latency_us)
    graphs = [original, low_rank, *([other] if width < 1 else [])]
    timings = measure_networks(
        graphs,
        runtime,
        table.schedules(),
        together=True,
        seconds=1 if options.quick else None,
        full_us=table.full_us,
    )
    rows = [
        {
            "variant": variant,
            "width": width if variant == "narrower" else 1.0,
            "macs": graph.macs,
            "params": graph.params,
            "predicted_us": latency_us(graph),
            "measured_us": timing.fastest_us,
            "interval_us": timing.interval_us,
        }
        # Without a narrower network there are only two.
        for variant, graph, timing in zip(VARIANTS, graphs, timings, strict=False)
    ]
    rows[1]["layers"] = [op.slot_name for op in heaviest(original, options.share)]
    return graphs, rows


def train(
    original: Graph, low_rank: Graph | None, seed: int, options: argparse.Namespace
) -> list[NDArray[np.bool_]]:
    """Train a network, and fine-tune it and its variant of low rank, if there is one.

    Returns which unseen images each network classifies correctly: the fine-tuned one, that of low
    rank after the decomposition, and the fine-tuned one of low rank.
    """
    torch.set_num_threads(1)
    data = load_data(options.data, options.image_size, options.quick)
    unseen = joined([data.search, data.holdout, data.test])

    def right(network: Network) -> NDArray[np.bool_]:
        return predict_network(network.eval(), data, unseen) == unseen.labels

    def fine_tuned(graph: Graph, start: dict[str, Tensor]) -> NDArray[np.bool_]:
        rate = FINE_TUNING_RATE * Recipe.learning_rate
        settings = Recipe(epochs=options.fine_tuning, learning_rate=rate)
        return right(train_standalone(graph, data, settings, seed=seed, start=start))

    settings = Recipe(epochs=options.epochs)
    network = train_standalone(original, data, settings, seed=seed)
    results = [fine_tuned(original, network.tensors())]
    if low_rank is not None:
        state = decomposed(network, low_rank)
        copy = to_torch(low_rank)
        copy.load_state_dict(state)
        results += [right(copy), fine_tuned(low_rank, state)]
    return results


def add_accuracies(
    rows: list[dict[str, Any]],
    own: list[list[NDArray[np.bool_]]],
    rival: list[list[NDArray[np.bool_]]],
) -> None:
    """Add the accuracies of all seeds to the rows of a network.

    Args:
        rows: the rows of its variants.
        own: what `train` returned for the original, by seed.
        rival: what it returned for the narrower network, if there is one.
    """
    original, decomposed_only, low_rank = map(list, zip(*own, strict=True))
    rights = [original, low_rank, *([[each[0] for each in rival]] if rival else [])]
    strata = [len(each) for each in original]

    def text(right: list[NDArray[np.bool_]]) -> str:
        return wilson_interval(float(np.mean(right)), strata).text(1, scale=100)

    for row, right in zip(rows, rights, strict=True):
        row["accuracies"] = [float(each.mean()) for each in right]
        row["accuracy_text"] = text(right)
        if right is not low_rank:
            difference = paired_difference(np.concatenate(low_rank), np.concatenate(right), strata)
            row["low_rank_minus_text"] = difference.text(1, scale=100, sign="+")
    rows[1]["after_svd"] = [float(each.mean()) for each in decomposed_only]
    rows[1]["after_svd_text"] = text(decomposed_only)


def print_rows(known: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table."""
    cells = []
    for name, rows in known.items():
        for row in rows:
            share = row["measured_us"] / rows[0]["measured_us"]
            cells.append(
                (
                    name,
                    row["variant"] + (f" x {row['width']:.2f}" if row["width"] < 1 else ""),
                    f"{row['macs'] / 1e6:.2f}",
                    f"{row['params'] / 1e6:.3f}",
                    f"{row['predicted_us']:.1f}",
                    f"{row['measured_us']:.1f} ({share:.0%})",
                    row.get("after_svd_text"),
                    row.get("accuracy_text"),
                    row.get("low_rank_minus_text"),
                )
            )
    print_table(
        [
            *("network", "variant", "million MACs", "million parameters"),
            *("predicted us", "measured us", "after SVD, %", "fine-tuned, %", "low rank - it"),
        ],
        cells,
        left=["variant"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2_0.35", "squeezenet_1.1"])
    parser.add_argument("--data", type=Path, help="images; without them nothing is trained")
    parser.add_argument("--image-size", type=int, default=24, help="of images, in pixels")
    parser.add_argument("--share", type=float, default=0.5, help="of the pointwise MACs")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--fine-tuning", type=float, default=1, help="epochs of fine-tuning")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--runtime", default="tvm")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    parser.add_argument("--quick", action="store_true", help="one network and few images")
    options = parser.parse_args()
    if options.quick:
        options.networks = options.networks[-1:]
        options.epochs = options.fine_tuning = options.seeds = 1
    known, trainings = {}, {}
    for name in options.networks:
        space = find_reference(name)[0]
        architecture = space.published(name)
        if options.data:
            data = load_data(options.data, options.image_size, options.quick)
            sizes = {"image_size": data.image_size, "channels": data.channels}
            architecture = space.adapt(**sizes, classes=len(data.classes)).reference(name)
        graphs, known[name] = measure(architecture, options)
        for seed in range(options.seeds) if options.data else ():
            trainings[name, seed, "own"] = (graphs[0], graphs[1], seed, options)
            if len(graphs) > 2:
                trainings[name, seed, "rival"] = (graphs[2], None, seed, options)
    if options.data:
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            outcomes = pool.map(train, *zip(*trainings.values(), strict=True))
            results = dict(zip(trainings, outcomes, strict=True))
        for name in options.networks:
            own, rival = (
                [right for key, right in results.items() if key[0] == name and key[2] == kind]
                for kind in ("own", "rival")
            )
            add_accuracies(known[name], own, rival)
    print_rows(known)
    if options.out:
        document = {
            "command": f"python -m tests.benchmarks.low_rank {' '.join(sys.argv[1:])}",
            "processor": this_machine.processor()[0],
            "versions": installed_versions(),
            "networks": known,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
