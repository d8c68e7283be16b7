"""Compares parts of a published network by linear probes: what of its weights is worth keeping.

Nothing is trained but the probes, so that a table takes two minutes.

    python -m tests.benchmarks.probes PHOTOS efficientnet-lite0-57934424.pth --images 200
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import nas
from nas.data import ImageDataset
from nas.pretrained import PublishedWeights
from nas.space import Architecture, SearchSpace
from nas.supernet.evaluation import calibrated_state, predict_network
from nas.supernet.pretrained import start_from
from nas.supernet.probe import probed_state
from nas.supernet.weights import Supernet
from nas.torch_network import Network
from tests.benchmarks.few_photos import divide

RESOLUTION = 0.75


def parts(space: SearchSpace, published: Architecture) -> Iterator[tuple[str, Architecture]]:
    """Yield networks that a published one contains, and what they lack."""

    def with_choices(text: str, change: Any) -> tuple[str, Architecture]:
        choices = {name: change(name, value) for name, value in published.choices.items()}
        return text, space.architecture(choices)

    def smallest(end: str, *, least: float = 0.0) -> Any:
        def change(name: str, value: Any) -> Any:
            if not name.endswith(end):
                return value
            own = [each for each in space.parameters[name] if each >= least * value]
            return min(own)

        return change

    yield "nothing", published
    for count in (1, 2):
        yield with_choices(
            f"{count} block{'s' * (count > 1)} of each stage",
            lambda name, value, n=count: max(1, value - n) if name.endswith("depth") else value,
        )
    yield with_choices("half of the expansion", smallest("expand"))
    yield with_choices("the outer ring of 5x5 kernels", smallest("kernel"))
    yield with_choices("a quarter of the widths", smallest("width", least=0.7))
    yield with_choices(f"{1 - RESOLUTION:.0%} of the resolution", smallest("resolution"))


def probed(supernet: Supernet, architecture: Architecture, data: ImageDataset) -> float:
    """Return the accuracy of a part with a probe, on the test images."""
    graph = architecture.graph
    network = Network(graph, torch.Generator()).eval()
    network.load_state_dict(probed_state(graph, calibrated_state(supernet, graph, data), data))
    return data.score(predict_network(network, data, data.test), data.test.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    weights: PublishedWeights = nas.read_weights(arguments.weights)
    with tempfile.TemporaryDirectory() as name:
        divide(arguments.photos, 2 * arguments.images, arguments.seed, Path(name))
        data = nas.load_dataset(
            name,
            image_size=arguments.image_size,
            validation_fraction=0.5,
            metric="accuracy",
            seed=arguments.seed,
            write_cache=False,
        )
    whole = nas.load_space(
        weights.architecture.space.name, image_size=data.image_size, classes=len(data.classes)
    )
    space = replace(whole, resolutions=(RESOLUTION, 1.0))
    published = space.reference(weights.reference.name)
    supernet = Supernet(space, torch.Generator().manual_seed(0))
    start_from(supernet, weights, data)
    print(f"| without | operations | {len(data.train)} photos of {arguments.photos.name} |")
    print("|---|---|---|")
    for text, architecture in parts(space, published):
        accuracy = probed(supernet, architecture, data)
        print(f"| {text} | {architecture.macs / published.macs:.2f} | {accuracy:.1%} |", flush=True)


if __name__ == "__main__":
    main()
