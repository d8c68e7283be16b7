"""Ranking quality of several scores that one supernet gives.

    python -m tests.benchmarks.scores --data ../shared/data/cifar10 --out FILE \
        --truth results/recipes/mobilenet_tiny-0.json FOLDER/sandwich-no-smoothing ...

The folders have supernets that `tests.benchmarks.recipes` trained with `--truth`, or for the same
networks. Scores each network on the validation images, with batch norms calibrated as in a search:
by its accuracy, by the mean probability of the true class, and by the geometric mean of that
probability, which orders as the cross-entropy does. Prints the figures of `nas supernet rank` for
each score, as it is and corrected for size, and writes all scores to a file. Nothing is trained.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from nas.data.batches import sequential_batches
from nas.job.folder import installed_versions
from nas.space import Architecture
from nas.supernet import Supernet
from nas.supernet.evaluation import CALIBRATION_BATCH_SIZE, calibrated_state
from nas.supernet.matched_ranking import CORRECTED
from nas.this_machine import processor
from nas.torch_network import FoldedWeights, fold_norms, run_graph
from tests.benchmarks.recipes import Experiment, describe, take_shared_options

SCORES = ("accuracy", "probability", "geometric mean")
"""Names of the scores."""


@torch.inference_mode()
def score(supernet: Supernet, architecture: Architecture, experiment: Experiment) -> list[float]:
    """Return the scores of an architecture on the validation images, in the order of `SCORES`."""
    data, graph = experiment.data, architecture.graph
    weights = FoldedWeights(fold_norms(graph, calibrated_state(supernet, graph, data)))
    correct, logarithms = [], []
    for images, labels in sequential_batches(
        data.search, data, CALIBRATION_BATCH_SIZE, torch.device("cpu")
    ):
        logits = run_graph(graph.folded, images, weights).flatten(1)
        correct.append(logits.argmax(1) == labels)
        logarithms.append(logits.log_softmax(1).gather(1, labels[:, None].long())[:, 0])
    own = torch.cat(logarithms)
    means = torch.cat(correct).float().mean(), own.exp().mean(), own.mean().exp()
    return [round(each.item(), 6) for each in means]


def print_figures(experiment: Experiment, scores: Sequence[Sequence[float]]) -> None:
    """Print how well each score orders the networks."""
    for name, own in zip(SCORES, zip(*scores, strict=True), strict=True):
        ranking = experiment.ranking(own, experiment.standalone)
        for order in ("supernet", CORRECTED):
            label = name if order == "supernet" else f"{name}, corrected"
            print(f"{label:<28}{describe(ranking, order)}", flush=True)
    assert ranking.matched is not None
    for order in ranking.matched.kendall_tau:
        if order not in ("supernet", CORRECTED):
            print(f"{order:<28}{describe(ranking, order)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("supernets", nargs="+", type=Path, help="folders of trained supernets")
    parser.add_argument("--truth", type=Path, required=True, help="comparison with networks")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    unused = {"epochs": None, "nets": None, "seed": 0, "training_seed": None, "minutes": None}
    vars(options).update(unused)
    take_shared_options(options)
    experiment = Experiment(options)
    rows = {}
    for folder in options.supernets:
        supernet = Supernet.load(folder, experiment.space)
        name = "/".join(folder.resolve().parts[-2:])
        rows[name] = [score(supernet, each, experiment) for each in experiment.drawn]
        print(f"{name}, {len(experiment.drawn)} networks of {options.truth.name}")
        print_figures(experiment, rows[name])
    document = {
        "truth": options.truth.name,
        "versions": installed_versions(),
        "machine": {"processor": processor()[0], "cores": os.cpu_count()},
        "scores": list(SCORES),
        "supernets": rows,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
