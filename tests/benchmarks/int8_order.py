"""Whether int8 orders networks of equal latency as float32 does.

    python -m tests.benchmarks.int8_order results/mine [--spaces mobilenet_32 ...] [--table FILE] \
        [--nets 50] [--images 4000] [--epochs 4] [--out FILE.json]

Draws ten networks for each of five latency budgets, as `nas supernet rank` does, and classifies the
same search images with each network in float32 and in simulated int8. Int8 is that of the exports:
weights of eight bits, and ranges of activations on 256 training images. The weights are those of
the run's supernets, or with `--epochs` those of networks that are trained standalone so long.
Without `--table`, networks of equal multiply-accumulates take the place of those of equal latency.

The figures are given for each method that chooses the ranges:

    loss              accuracy of float32 less that of int8, in points: mean, standard deviation
                      among the networks of a budget, and largest
    float, int8       Kendall's tau between the two accuracies on all images
    float A, float B  the same between two halves of the images, which is the most that any score
                      can reach; mean of random halves
    float A, int8 B   how well float32 on one half tells the order of int8 on the other half
    int8 A, int8 B    how well int8 on one half tells it
    gained by int8    tau of the last row less that of the row before
    lost by float32   accuracy of int8 on half B that is lost in each budget by picking the best
                      network by float32 on half A instead of int8 on half A, in points

Taus are over the pairs within 10% of latency, and over all pairs. Intervals are bootstrap intervals
over the networks. Everything runs on one thread.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nas import statistics
from nas.console import print_table
from nas.data import ImageDataset
from nas.deploy.int8 import CALIBRATION_IMAGES
from nas.deploy.model import normalised, preprocessing_of
from nas.errors import KernelError
from nas.graph import Graph
from nas.job.supernets import load_supernet, open_job
from nas.latency import LatencyTable
from nas.quantisation.post_training import assemble
from nas.quantisation.ranges import activations, least_squares, measure, min_max
from nas.quantisation.simulation import run_batches, simulate
from nas.space import Architecture
from nas.statistics import Interval
from nas.supernet import Supernet, train_standalone
from nas.supernet.evaluation import calibrated_state, choose_calibration_images
from nas.supernet.ground_truth import draw_matched
from nas.supernet.matched_ranking import matched_pairs
from nas.supernet.quick_evaluation import stratified_sample
from nas.torch_network import FoldedWeights, fold_norms

RANGES = {"min-max": min_max, "least squares": least_squares}

SPLITS = 10
"""Random halves of the images over which a figure is averaged."""

GAIN_RESAMPLES = 500

Correct = NDArray[np.bool_]
"""Whether each network classifies each image correctly, `networks x images`."""


def classify(
    graph: Graph,
    state: Mapping[str, torch.Tensor],
    images: NDArray[np.float32],
    calibration: NDArray[np.float32],
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield the classes of images in float32, and in int8 with each of `RANGES`."""
    tensors = fold_norms(graph, state)
    folded = graph.folded
    yield "float32", run_batches(folded, images, FoldedWeights(tensors)).argmax(1)
    weights = {name: each.detach().contiguous().numpy() for name, each in tensors.items()}
    histograms = measure(folded, weights, calibration)
    for name, method in RANGES.items():
        affines = activations(folded, histograms, method)
        network = assemble(folded, weights, affines, calibration, 8)
        yield name, simulate(network, images).argmax(1)


def classify_each(
    architectures: list[Architecture],
    data: ImageDataset,
    count: int,
    state_of: Callable[[Graph], Mapping[str, torch.Tensor]],
) -> tuple[dict[str, Correct], dict[str, float]]:
    """Return which images each network classifies correctly, and the mean seconds that it took."""
    preprocessing = preprocessing_of(data)
    chosen = data.search.take(stratified_sample(data.search, count))
    images = normalised(chosen, preprocessing)
    calibration = normalised(
        choose_calibration_images(data.train, CALIBRATION_IMAGES), preprocessing
    )
    correct: dict[str, list[NDArray[np.bool_]]] = {}
    seconds: dict[str, float] = {}
    for number, architecture in enumerate(architectures, 1):
        state = state_of(architecture.graph)
        started = time.perf_counter()
        for name, classes in classify(architecture.graph, state, images, calibration):
            ended = time.perf_counter()
            seconds[name] = seconds.get(name, 0.0) + (ended - started) / len(architectures)
            started = ended
            correct.setdefault(name, []).append(classes == chosen.labels)
        accuracies = "  ".join(f"{name} {each[-1].mean():.4f}" for name, each in correct.items())
        print(f"{number:>4}  {architecture.macs / 1e6:6.2f} million MACs  {accuracies}", flush=True)
    return {name: np.array(each) for name, each in correct.items()}, seconds


class Comparison:
    """Figures of several ways of classification of the same networks.

    Args:
        correct: which images are classified correctly, by the name of the way.
        costs: latency of each network.
        budgets: number of the budget of each network.
    """

    def __init__(
        self, correct: Mapping[str, Correct], costs: NDArray[np.float64], budgets: NDArray[np.intp]
    ) -> None:
        rng = np.random.default_rng(0)
        images = next(iter(correct.values())).shape[1]
        orders = [rng.permutation(images) for _ in range(SPLITS)]
        self.accuracy = {name: each.mean(1) for name, each in correct.items()}
        self._halves = {
            name: [
                (each[:, order[: images // 2]].mean(1), each[:, order[images // 2 :]].mean(1))
                for order in orders
            ]
            for name, each in correct.items()
        }
        self.pairs = {
            "equal latency": matched_pairs(costs),
            "all": np.ones((len(costs), len(costs)), bool),
        }
        self._resamples = statistics.bootstrap_indices(len(costs), rng)
        self._groups = [np.flatnonzero(budgets == each) for each in np.unique(budgets)]
        self._rng = rng

    def _tau(
        self, first: NDArray[np.float64], second: NDArray[np.float64], pairs: str
    ) -> NDArray[np.float64]:
        """Return Kendall's tau, followed by that of each resample."""
        indices = np.concatenate([np.arange(len(first))[None], self._resamples])
        return statistics.kendall_taus(first, second, indices, self.pairs[pairs])

    def _half_tau(self, first: str, second: str, pairs: str) -> NDArray[np.float64]:
        """Return the mean tau of one way on one half and the other way on the other half."""
        taus = [
            self._tau(one[at], two[1 - at], pairs)
            for one, two in zip(self._halves[first], self._halves[second], strict=True)
            for at in (0, 1)
        ]
        return np.mean(taus, axis=0)

    def taus(self, int8: str, pairs: str) -> dict[str, Interval]:
        """Return the taus between float32 and a way of int8, and what int8 gains."""
        predicted = self._half_tau("float32", int8, pairs)
        ceiling = self._half_tau(int8, int8, pairs)
        samples = {
            "float, int8": self._tau(self.accuracy["float32"], self.accuracy[int8], pairs),
            "float A, float B": self._half_tau("float32", "float32", pairs),
            "float A, int8 B": predicted,
            "int8 A, int8 B": ceiling,
            "gained by int8": ceiling - predicted,
        }
        return {name: _interval(each) for name, each in samples.items()}

    def losses(self, int8: str) -> dict[str, float]:
        """Return the mean, the deviation within budgets and the largest loss, in points."""
        loss = 100 * (self.accuracy["float32"] - self.accuracy[int8])
        within = np.concatenate([loss[own] - loss[own].mean() for own in self._groups])
        deviation = np.sqrt((within**2).sum() / (len(loss) - len(self._groups)))
        return {"mean": loss.mean(), "deviation": deviation, "largest": loss.max()}

    def lost_by_float(self, int8: str) -> tuple[Interval, list[float]]:
        """Return what picking by float32 loses in int8: its mean, and that of each budget."""
        per_budget = []
        for own in self._groups:
            drawn = statistics.bootstrap_indices(len(own), self._rng, GAIN_RESAMPLES)
            indices = own[np.concatenate([np.arange(len(own))[None], drawn])]
            rows = np.arange(len(indices))
            lost = [
                two[1 - at][indices[rows, two[at][indices].argmax(1)]]
                - two[1 - at][indices[rows, one[at][indices].argmax(1)]]
                for one, two in zip(self._halves["float32"], self._halves[int8], strict=True)
                for at in (0, 1)
            ]
            per_budget.append(100 * np.mean(lost, axis=0))
        return _interval(np.mean(per_budget, axis=0)), [float(each[0]) for each in per_budget]


def _interval(samples: NDArray[np.float64]) -> Interval:
    return Interval.from_resamples(float(samples[0]), samples[1:])


def show(comparison: Comparison, seconds: Mapping[str, float]) -> dict[str, object]:
    """Print the figures of each method of int8, and return them."""
    figures: dict[str, object] = {"seconds": dict(seconds)}
    for int8 in RANGES:
        taus = {pairs: comparison.taus(int8, pairs) for pairs in comparison.pairs}
        print(f"\nint8 with ranges by {int8}")
        print_table(
            ["Kendall's tau", *(f"{pairs}, 95% interval" for pairs in taus)],
            [
                (name, *(_text(each[name], 3) for each in taus.values()))
                for name in taus["equal latency"]
            ],
        )
        loss = comparison.losses(int8)
        lost, per_budget = comparison.lost_by_float(int8)
        print("loss in points: " + ", ".join(f"{k} {v:.2f}" for k, v in loss.items()))
        budgets = ", ".join(f"{each:+.2f}" for each in per_budget)
        print(f"lost by float32: {_text(lost, 2)} points; by budget {budgets}")
        figures[int8] = {
            "kendall_tau": {
                pairs: {name: tau.to_json() for name, tau in each.items()}
                for pairs, each in taus.items()
            },
            "loss_points": loss,
            "lost_by_float_points": {**lost.to_json(), "budgets": per_budget},
        }
    print("seconds a network: " + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items()))
    return figures


def _text(interval: Interval, digits: int) -> str:
    low, high = (f"{each:.{digits}f}" for each in (interval.low, interval.high))
    return f"{interval.value:.{digits}f} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of `nas supernet train` or `nas run`")
    parser.add_argument("--spaces", nargs="+", help="spaces of the run; all by default")
    parser.add_argument("--table", type=Path, help="latency table by which networks are matched")
    parser.add_argument("--nets", type=int, default=50)
    parser.add_argument("--images", type=int, default=4000, help="number of search images")
    parser.add_argument("--epochs", type=int, help="train each network standalone for so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    job = open_job(options.run)
    table = LatencyTable.open(options.table) if options.table else None

    def cost(architecture: Architecture) -> float | None:
        try:
            return table.predict(architecture).latency_us if table else float(architecture.macs)
        except KernelError:
            return None

    document = {}
    for name in options.spaces or job.spaces:
        supernet = load_supernet(job, options.run, name)
        drawn = draw_matched(supernet.space, options.nets, cost, seed=options.seed)
        architectures = [each for _, each in drawn]

        def state_of(graph: Graph, supernet: Supernet = supernet) -> Mapping[str, torch.Tensor]:
            if options.epochs is None:
                return calibrated_state(supernet, graph, job.data)
            settings = job.training_settings(options.epochs)
            return train_standalone(graph, job.data, settings, seed=options.seed).state_dict()

        weights = "the supernet" if options.epochs is None else f"{options.epochs} epochs alone"
        print(f"{name}: {len(drawn)} networks, weights of {weights}", flush=True)
        correct, seconds = classify_each(architectures, job.data, options.images, state_of)
        costs = np.array([cost(each) for each in architectures], float)
        comparison = Comparison(correct, costs, np.array([budget for budget, _ in drawn]))
        document[name] = {
            **show(comparison, seconds),
            "networks": [
                {
                    "architecture": each.to_json(),
                    "budget": budget,
                    "cost": costs[at],
                    **{way: accuracy[at] for way, accuracy in comparison.accuracy.items()},
                }
                for at, (budget, each) in enumerate(drawn)
            ],
        }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
