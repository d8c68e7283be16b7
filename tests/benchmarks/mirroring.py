"""How often the experiment about mirroring decides correctly, and what it takes.

python -m tests.benchmarks.mirroring --data ../shared/data/cifar10 --seeds 3

Digits and arrows lose their class when they are mirrored; rings, discs and the photos of `--data`
do not. Training images are drawn anew for each seed.
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from nas.data import ImageDataset, load_dataset
from nas.supernet.mirroring import run_mirroring_experiment
from tests.supernet.drawings import make_data


def draw(data: ImageDataset, images: int, seed: int) -> ImageDataset:
    """Return a dataset of which only some of the training images are left."""
    chosen = np.random.default_rng(seed).permutation(len(data.train))[:images]
    return replace(data, train=data.train.take(np.sort(chosen)))


def report(name: str, datasets: list[ImageDataset]) -> None:
    """Print the mean accuracies on one kind of data, and how often mirroring is switched off."""
    begin = time.process_time()
    results = [run_mirroring_experiment(data, seed=seed) for seed, data in enumerate(datasets)]
    seconds = (time.process_time() - begin) / len(results)
    plain = np.mean([each.accuracy for each in results])
    mirrored = np.mean([each.mirrored_accuracy for each in results])
    off = sum(each.changes_class for each in results)
    undecided = sum(not each.is_reliable for each in results)
    print(
        f"{name:28} {plain:6.1%} correct, mirrored {mirrored:6.1%}; off {off} of {len(results)}, "
        f"undecided {undecided}; {seconds:.1f} s of one core",
        flush=True,
    )


def main() -> None:
    """Report on every kind of data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="photos: a folder or parquet files")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    for classes in (("left", "right"), ("left", "right", "ring", "disc"), ("ring", "disc")):
        for images in (40, 200):
            own = [make_data(classes, images, size=24, seed=seed) for seed in seeds]
            report(f"{images} of {', '.join(classes)}", own)
    sources = {"digits": (100, 300, 1000)}
    if arguments.data:
        sources[arguments.data] = (300, 1000, 6000)
    for source, counts in sources.items():
        data = load_dataset(source)
        for images in counts:
            report(f"{images} of {data.source}", [draw(data, images, seed) for seed in seeds])


if __name__ == "__main__":
    main()
