"""How near copies of a network are to it, and networks that are no copies.

    python -m tests.benchmarks.copies results/example

Each exported model of a run is compared, on the test images, with its int8 network, with itself
after five further epochs, and with all others. Two figures tell copies: the mean of the largest
difference of the logits of an image, as a share of their standard deviation, and how many of the
mistakes of the two, by all images that either gets wrong, are the same wrong class.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import onnxruntime

from nas.data import ImageDataset
from nas.deploy.model import TrainedModel, normalised
from nas.deploy.networks import load_trained
from nas.opened_run import open_run
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_standalone

FURTHER = Recipe(epochs=5, learning_rate=0.02, device="cpu")
"""The further training of a copy."""


def trained_further(model: TrainedModel, data: ImageDataset) -> TrainedModel:
    """Return a copy of a model that was trained further, with a low learning rate."""
    graph, start = model.network.graph, model.network.state_dict()
    network = train_standalone(graph, data, FURTHER, seed=0, start=start)
    return TrainedModel(model.architecture, network, model.preprocessing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = open_run(parser.parse_args().run)
    test = run.data.test
    names = [each.record.id for each in run.models if each.card is not None]
    models = {name: load_trained(run, name) for name in names}
    logits = {name: model.pixel_logits(test.pixels) for name, model in models.items()}
    rows = defaultdict(list)

    def compare(kind: str, name: str, others: np.ndarray) -> None:
        own, other = logits[name].argmax(1), others.argmax(1)
        difference = np.abs(logits[name] - others).max(1).mean() / logits[name].std()
        wrong = (own != test.labels) | (other != test.labels)
        rows[kind].append((difference, (own == other)[wrong].mean()))

    for name, model in models.items():
        inputs = normalised(test, model.preprocessing)
        for file in ("model.onnx", "model-int8.onnx"):
            session = onnxruntime.InferenceSession(run.path / "models" / name / file)
            single = [session.run(None, {"image": each[None]})[0] for each in inputs]
            compare(file, name, np.concatenate(single))
        further = trained_further(model, run.data)
        compare(f"after {FURTHER.epochs} further epochs", name, further.pixel_logits(test.pixels))
    for one, other in combinations(names, 2):
        compare("another network of the run", one, logits[other])
    print("| compared with | difference of logits | same wrong class |\n|---|---|---|")
    for kind, values in rows.items():
        (low, least), (high, most) = np.min(values, 0), np.max(values, 0)
        print(f"| {kind} | {low:.2g} to {high:.2g} | {least:.0%} to {most:.0%} |")


if __name__ == "__main__":
    main()
