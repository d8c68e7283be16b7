"""Measure how much another program on one core slows the training of a supernet.

    python -m tests.benchmarks.busy_core --data ../shared/data/cifar10 --space mobilenet_tiny

Trains a supernet for the same time on the quiet machine and beside a process that uses a core, both
with threads that have a shard of the batch each, and with threads that share each op. Each is in a
process of its own.
"""

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path

from nas import jsonl
from nas.data import load_dataset
from nas.records import TRAINING, TRAINING_LOG
from nas.space import load_space
from nas.supernet import TrainingSettings, sharding, train

CASES = {
    "quiet": (0, True),
    "busy": (1, True),
    "quiet, threads that share each op": (0, False),
    "busy, threads that share each op": (1, False),
}
"""Number of other processes, and whether threads have shards, by name."""


def use_a_core() -> None:
    """Compute for ever."""
    while True:
        pass


def count_steps(
    options: argparse.Namespace, shards: bool, results: "multiprocessing.Queue[int]"
) -> None:
    """Put the number of steps of a training into a queue."""
    if not shards:
        sharding.MULTITHREADING_MIN_MACS = sys.maxsize
    data = load_dataset(options.data, image_size=options.image_size)
    space = load_space(
        options.space,
        image_size=data.image_size,
        channels=data.channels,
        classes=len(data.classes),
    )
    with tempfile.TemporaryDirectory() as folder:
        train(space, data, folder, TrainingSettings(seconds=options.seconds), seed=0)
        results.put(max(row.step for row in jsonl.read(Path(folder, TRAINING_LOG), TRAINING)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--space", default="mobilenet_tiny")
    parser.add_argument("--seconds", type=float, default=60, help="of each training")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    steps: dict[str, int] = {}
    for name, (others, shards) in CASES.items():
        busy = [context.Process(target=use_a_core, daemon=True) for _ in range(others)]
        for process in busy:
            process.start()
        results = context.Queue()
        training = context.Process(target=count_steps, args=(options, shards, results))
        training.start()
        steps[name] = results.get()
        training.join()
        for process in busy:
            process.kill()
        slower = steps[name.replace("busy", "quiet")] / steps[name]
        print(
            f"{name}: {steps[name]} steps, {slower:.2f} times as long a step as quiet", flush=True
        )


if __name__ == "__main__":
    main()
