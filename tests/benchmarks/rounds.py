"""Images that a search scores candidates on, and what scoring them in rounds costs the front.

    python -m tests.benchmarks.rounds results/truth/*.json.gz --seeds 10
    python -m tests.benchmarks.rounds --data ../shared/data/cifar10 --space mobilenet_32

With files of `tests.benchmarks.truth`, searches the spaces with and without rounds. Each network
has its known number of correct answers, and a round is a random sample without replacement of its
answers, the hardest case: the answers of real networks to one image are alike. Prints the share of
the images that the search used and the hypervolume of the front, over that of the search without.

With `--data`, times the calibration of the batch norms and the forward passes of a round for random
networks, against a plain forward pass (batch norms not folded) over all images of the search.
"""

import argparse
import time
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

from nas.data import Images, load_dataset
from nas.data.batches import sequential_batches
from nas.search import Objective, run_search
from nas.search.pareto import non_dominated
from nas.space import load_space
from nas.supernet.evaluation import (
    calibrated_state,
    evaluate_in_rounds,
    largest_plausible_accuracy,
    round_ends,
)
from nas.supernet.weights import Supernet
from nas.torch_network import Network
from tests.benchmarks.samplers import read_benchmark


class SampledErrors:
    """Validation errors that are known from random samples of the images.

    Args:
        errors: error on all images by digest.
        images: number of all images.
    """

    def __init__(self, errors, images: int) -> None:
        self._errors, self._images = errors, images
        self.used = []

    def score_in_rounds(self, architecture, is_hopeless) -> float:
        left = self._images
        correct_left = round((1 - self._errors[architecture.digest]) * left)
        rng = np.random.default_rng(int(architecture.digest[1:12], 16))
        correct = 0
        for end in round_ends(self._images):
            drawn = end - (self._images - left)
            new = int(rng.hypergeometric(correct_left, left - correct_left, drawn))
            correct, correct_left, left = correct + new, correct_left - new, left - drawn
            if is_hopeless(1 - largest_plausible_accuracy(correct, end, self._images)):
                break
        self.used.append(end / self._images)
        return 1 - correct / end

    def score(self, batch):
        return [self.score_in_rounds(each, lambda error: False) for each in batch]


def search_known_problem(path: Path, seeds: int, trials: int, images: int) -> None:
    """Print the share of the images and the ratio of the hypervolumes."""
    benchmark = read_benchmark(path, is_latency_cheap=True)
    error, latency = benchmark.names
    rounded = {
        digest: round(values[0] * images) / images for digest, values in benchmark.values.items()
    }
    shares, ratios = [], []
    for seed in range(seeds):
        volumes = []
        for in_rounds in (False, True):
            sampled = SampledErrors(rounded, images)
            objectives = [
                Objective(
                    error,
                    sampled.score,
                    score_in_rounds=sampled.score_in_rounds if in_rounds else None,
                ),
                next(each for each in benchmark.objectives() if each.name == latency),
            ]
            result = run_search(benchmark.spaces, objectives, trials=trials, seed=seed)
            done = [trial for trial in result.trials if trial.state == "complete"]
            points = np.array([[trial.values[name] for name in benchmark.names] for trial in done])
            front = non_dominated(points)
            # The front is what the search says it is; its volume is that of the true values.
            true = np.array([benchmark.values[done[at].digest] for at in front])
            volumes.append(benchmark.hypervolume(true))
        shares.append(mean(sampled.used))
        ratios.append(volumes[1] / volumes[0])
    low, high = np.quantile(ratios, [0.025, 0.975])
    print(
        f"{path.name.split('.')[0]:<14}{trials} trials, {seeds} seeds: {mean(shares):.2f} of the "
        f"images; hypervolume {100 * (mean(ratios) - 1):+.3f}% (95% of the seeds "
        f"{100 * (low - 1):+.2f} to {100 * (high - 1):+.2f}%)",
        flush=True,
    )


def time_scores(source: str, space_name: str, networks: int) -> None:
    """Print the times of the parts of a score, over that of a plain forward pass."""
    data = load_dataset(source)
    space = load_space(
        space_name, image_size=data.image_size, channels=data.channels, classes=len(data.classes)
    )
    supernet = Supernet(space, torch.Generator().manual_seed(0)).eval()
    rng = np.random.default_rng(0)
    total = len(data.search)
    ratios = {"calibration": [], "all images": [], "an eighth": []}
    for _ in range(networks):
        architecture = space.sample(rng, uniform_over="choices")
        plain_s = seconds_of_plain_pass(supernet, architecture.graph, data, data.search)
        calibration_s = seconds_of(
            lambda each=architecture: calibrated_state(supernet, each.graph, data)
        )
        for name, answer in (("all images", False), ("an eighth", True)):
            score_s = seconds_of(
                lambda each=architecture, answer=answer: evaluate_in_rounds(
                    supernet, each, data, lambda accuracy: answer
                )
            )
            ratios[name].append(score_s / plain_s)
        ratios["calibration"].append(calibration_s / plain_s)
    texts = ", ".join(f"{name} {median(values):.2f}" for name, values in ratios.items())
    print(
        f"{space_name}, {total} images, {networks} networks, time over that of a plain forward "
        f"pass over all images (median): {texts}"
    )


def seconds_of_plain_pass(supernet: Supernet, graph, data, images: Images) -> float:
    network = Network(graph, torch.Generator().manual_seed(0)).eval()

    def forward():
        with torch.inference_mode():
            for x, _ in sequential_batches(images, data, 256, torch.device("cpu")):
                network(x)

    return seconds_of(forward)


def seconds_of(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", nargs="*", type=Path, help="files of tests.benchmarks.truth")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--images", type=int, default=5000, help="images of the search")
    parser.add_argument("--data", help="images to time the scores on")
    parser.add_argument("--space", default="mobilenet_32")
    parser.add_argument("--networks", type=int, default=10)
    options = parser.parse_args()
    for path in options.truth:
        search_known_problem(path, options.seeds, options.trials, options.images)
    if options.data:
        time_scores(options.data, options.space, options.networks)


if __name__ == "__main__":
    main()
