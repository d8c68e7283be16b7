"""How well supernets order networks whose standalone accuracy is known.

    python -m tests.benchmarks.ranking results/truth/ranking-units.json \
        --data ../shared/data/cifar10 --minutes 6 --seeds 2 --out FOLDER

Each file names a space, images of CIFAR-10, and networks for five sizes or latencies that were
trained standalone. For each seed, trains a supernet on the images for some minutes of one core,
scores the networks with it, and prints Kendall's tau with the standalone accuracies among networks
of equal size and over all sizes, for the scores, the corrected scores and MACs. `--set`
changes training settings. Supernets in FOLDER are not trained again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from nas.data import ImageDataset, Images, load_dataset
from nas.supernet.correction import correct_for_size
from nas.supernet.evaluation import evaluate
from nas.supernet.ranking import compute_ranking
from nas.supernet.ranking_records import ORDER_NAMES, RankedNetworkRecord
from nas.supernet.recipe import Recipe
from nas.supernet.training import train
from tests.benchmarks.truth import split_images
from tests.supernet.scrambled_supernet import space_on


def load_images(truth: dict, source: str) -> ImageDataset:
    """Return the data of a ground truth, with all images that it does not use in the hold-out."""
    data = load_dataset(source, image_size=truth["image_size"])
    train_images, unused_train = split_images(data.train, truth["images"])
    search, unused_search = split_images(data.search, truth["validation"])
    parts = [data.holdout, unused_train, unused_search]
    pixels = np.concatenate([np.asarray(part.pixels[: len(part)]) for part in parts])
    holdout = Images(pixels, np.concatenate([part.labels for part in parts]))
    return replace(data, train=train_images, search=search, holdout=holdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path, nargs="+", help="files results/truth/ranking-*.json")
    parser.add_argument("--data", required=True, help="the images that the files name")
    parser.add_argument("--minutes", type=float, default=6, help="training time of each supernet")
    parser.add_argument("--seeds", type=int, default=1, help="supernets of each file")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="a setting")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {name: json.loads(value) for name, value in (each.split("=") for each in options.set)}
    settings = Recipe(**{"seconds": 60 * options.minutes, **changes})
    for file in options.truth:
        truth = json.loads(file.read_text())
        data = load_images(truth, options.data)
        space = space_on(data, truth["space"])
        networks = [space.from_json(each["architecture"]) for each in truth["networks"]]
        for seed in range(options.seeds):
            folder = options.out / f"{space.name}-{seed}"
            supernet = train(space, data, folder, settings, seed=seed)
            scores = evaluate(supernet, networks, data)
            ranking = compute_ranking(
                [
                    RankedNetworkRecord.of_architecture(
                        network,
                        supernet_accuracy=score,
                        standalone_accuracy=row["holdout_accuracy"],
                        repeated_accuracy=row["repeated_accuracy"],
                        latency_us=row["latency_us"],
                    )
                    for network, score, row in zip(networks, scores, truth["networks"], strict=True)
                ]
            )
            print(f"{space.name}, seed {seed}, scores {min(scores):.3f} to {max(scores):.3f}")
            for order, tau in ranking.kendall_tau.items():
                text = "undefined" if tau is None else tau.text()
                print(f"  {ORDER_NAMES[order]:<38} at equal size {text}", flush=True)
            accuracies = [row["holdout_accuracy"] for row in truth["networks"]]
            orders = {
                "supernet": scores,
                "corrected": correct_for_size(ranking.networks),
                "macs": [network.macs for network in networks],
            }
            for order, values in orders.items():
                tau = kendalltau(values, accuracies).statistic
                print(f"  {ORDER_NAMES[order]:<38} over all sizes {tau:.2f}", flush=True)


if __name__ == "__main__":
    main()
