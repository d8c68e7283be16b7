"""What published weights gain when there are few images.

    python -m tests.benchmarks.pretrained ../shared/data/cifar10 efficientnet-lite0-57934424.pth \
        latency_tables/TABLE.jsonl --out results/pretrained.jsonl
    python -m tests.benchmarks.pretrained --report results/pretrained.jsonl --picture docs/X.png

Trains, with equal epochs on equal images:

- `scratch`: a supernet from random weights, and the best of the networks that are within a share of
  the published network's latency, from the supernet's weights and with its largest network as the
  teacher;
- `pretrained`: the same from published weights;
- `fine-tuned`: the published network itself, at some widths and image sizes.

Each line of the file is one network with its accuracy on test images, so that a benchmark that was
stopped continues. The table needs the kernels of all image sizes (of 96 pixels: 96 and 80):
`nas table build --space efficientnet_lite --image-size 96 --classes 10`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

import nas
from nas.data import ImageDataset, Images
from nas.job.folder import installed_versions
from nas.latency import LatencyTable
from nas.machine import this_machine
from nas.machine.torch_device import resolve_device
from nas.space import Architecture
from nas.space.variation import mutate
from nas.supernet.distillation import Teacher
from nas.supernet.evaluation import calibrated_state, evaluate, evaluate_network
from nas.supernet.pretrained import published_state
from nas.supernet.recipe import FINE_TUNING_RATE, Recipe, scaled_learning_rate
from nas.supernet.standalone import train_standalone
from nas.supernet.training import train
from nas.supernet.weights import Supernet
from tests.supernet.scrambled_supernet import space_on

STARTS = ("scratch", "pretrained", "fine-tuned")
SHARES = (1.0, 0.7, 0.5, 0.35)
"""Latency budgets of the found networks, over the latency of the published network."""

NETWORKS = 16
"""Random networks within a budget, of which the supernet chooses, and variants of the best ones."""

RIVALS = ((1.0, 1.0), (1.0, 5 / 6), (0.75, 1.0), (0.75, 5 / 6), (0.5, 1.0))
"""Width and image size of the fine-tuned networks, over those of the published one."""

SEARCH_IMAGES, TEST_IMAGES = 500, 5000


class Case(NamedTuple):
    """One training of a supernet and its networks, or of the published network at its sizes."""

    start: str
    images: int
    image_size: int
    seed: int


def subset(data: ImageDataset, images: int, seed: int) -> ImageDataset:
    """Return the dataset with some training images, and fewer to search and to test with."""
    chosen = np.random.default_rng(seed).permutation(len(data.train))[:images]
    search = data.search.take(slice(0, SEARCH_IMAGES))
    test = data.test.take(slice(0, TEST_IMAGES))
    return replace(data, train=data.train.take(chosen), search=search, holdout=test, test=test)


def resized(data: ImageDataset, size: int) -> ImageDataset:
    """Return the dataset with images of another size."""

    def smaller(images: Images) -> Images:
        pixels = torch.from_numpy(np.asarray(images.pixels)).permute(0, 3, 1, 2).float()
        parts = [
            F.interpolate(part, (size, size), mode="bilinear", antialias=True).round()
            for part in pixels.split(500)
        ]
        return Images(torch.cat(parts).byte().permute(0, 2, 3, 1).numpy(), images.labels)

    parts = {name: smaller(getattr(data, name)) for name in ("train", "search", "test")}
    return replace(data, **parts, holdout=parts["test"])


def at_width(published: Architecture, width: float) -> Architecture:
    """Return a published network with the widths that are nearest to a share of its own."""
    space = published.space
    choices = dict(published.choices)
    for name, value in choices.items():
        if name.endswith("width"):
            options = [each for each in space.parameters[name] if isinstance(each, int)]
            choices[name] = min(options, key=lambda each, own=value: abs(each - width * own))
    return space.architecture(choices)


def shrunk(
    rng: np.random.Generator, start: Architecture, fits: Callable[[Architecture], bool]
) -> Architecture:
    """Return a random network that fits, by random steps to smaller options of the choices."""
    space, choices = start.space, dict(start.choices)
    network = start
    while not fits(network):
        name = str(rng.choice(sorted(choices)))
        options = sorted(space.parameters[name])
        position = options.index(choices[name])
        if position:
            choices[name] = options[position - 1]
            network = space.architecture(choices)
    return network


def find(
    supernet: Supernet,
    data: ImageDataset,
    published: Architecture,
    latency: Callable[[Architecture], float],
    share: float,
    networks: int = NETWORKS,
) -> Architecture:
    """Return the most accurate network that a supernet knows within a share of a latency.

    It tries so many random networks, and as many variants of the best ones.
    """
    rng = np.random.default_rng(0)
    limit = share * latency(published)

    def fits(network: Architecture) -> bool:
        return latency(network) <= limit

    scores: dict[Architecture, float] = {}

    def score(networks: Iterable[Architecture]) -> None:
        new = [each for each in dict.fromkeys(networks) if each not in scores]
        scores.update(zip(new, evaluate(supernet, new, data), strict=True))

    score(shrunk(rng, published, fits) for _ in range(networks))
    best = sorted(scores, key=lambda each: -scores[each])[:4]
    drawn = (mutate(each, rng, changes=2) for each in itertools.cycle(best))
    score(itertools.islice((each for each in drawn if fits(each)), networks))
    return max(scores, key=lambda each: scores[each])


def train_case(
    case: Case, weights: Path, table: Path, folder: Path, epochs: float, batch: int
) -> Iterator[dict[str, Any]]:
    """Train the networks of a case, and yield what is known of each."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    data: ImageDataset = pickle.loads(_pickle_path(folder, case).read_bytes())
    published = nas.read_weights(weights)
    latency_table, device = LatencyTable.open(table), resolve_device("auto")
    rate = scaled_learning_rate(batch)
    if case.start != "scratch":
        rate *= FINE_TUNING_RATE
    settings = Recipe(epochs=epochs, batch_size=batch, learning_rate=rate, progressive_resizing=0.0)

    def latency(network: Architecture) -> float:
        return latency_table.predict(network).latency_us

    def trained(
        network: Architecture,
        images: ImageDataset,
        start: Mapping[str, torch.Tensor],
        teacher: Teacher | None = None,
    ) -> dict[str, Any]:
        alone = train_standalone(
            network.graph, images, settings, seed=case.seed, start=start, teacher=teacher
        )
        return {
            **case._asdict(),
            "size": images.image_size,
            "choices": dict(network.choices),
            "macs": network.macs,
            "latency_us": latency(network),
            "accuracy": evaluate_network(alone, images, "holdout"),
            "epochs": epochs,
            "batch": batch,
            "device": device.type,
            "seconds": round(time.monotonic() - begin),
        }

    if case.start == "fine-tuned":
        for width, size in RIVALS:
            images = data if size == 1 else resized(data, round(size * case.image_size))
            space = space_on(images, published.architecture.space.name)
            network = at_width(space.reference(published.reference.name), width)
            state = published_state(network, published, images, seed=case.seed, device=device)
            yield {"width": width, **trained(network, images, state)}
        return
    space = space_on(data, published.architecture.space.name)
    own = space.reference(published.reference.name)
    start = published if case.start == "pretrained" else None
    with tempfile.TemporaryDirectory() as files:
        supernet = train(
            space, data, files, settings, seed=case.seed, published=start, progress=False
        )
    teacher = Teacher.of_supernet(supernet.to(device), data)
    for share in SHARES:
        network = own if share == 1 else find(supernet, data, own, latency, share)
        (before,) = evaluate(supernet, [network], data, "holdout")
        row = trained(network, data, calibrated_state(supernet, network.graph, data), teacher)
        yield {"share": share, "supernet_accuracy": before, **row}


def _pickle_path(folder: Path, case: Case) -> Path:
    return folder / f"{case.images}-{case.image_size}-{case.seed}.pickle"


def _run_case(case: Case, out: Path, **arguments: Any) -> None:
    """Append the networks of a case to a file together, so that none of a stopped case is there."""
    rows = []
    for row in train_case(case, **arguments):
        rows.append(json.dumps(row) + "\n")
        print(
            f"{' '.join(map(str, case))}: {row['macs'] / 1e6:.1f} M MACs, "
            f"{row['latency_us']:.0f} us, "
            f"{row['accuracy']:.1%} after {row['seconds']} s",
            flush=True,
        )
    with out.open("a") as file:
        file.writelines(rows)


def read_rows(path: Path) -> dict[Case, list[dict[str, Any]]]:
    """Return the rows of a file by case. Its first line says where they come from."""
    rows: dict[Case, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines()[1:] if path.is_file() else ():
        row = json.loads(line)
        rows.setdefault(Case(*(row[name] for name in Case._fields)), []).append(row)
    return rows


def measure(arguments: argparse.Namespace) -> None:
    """Train the networks of the cases that the file lacks."""
    if not arguments.out.is_file():
        command = f"python -m tests.benchmarks.pretrained {' '.join(sys.argv[1:])}"
        name, _ = this_machine.processor()
        header = {"command": command, "processor": name, "versions": installed_versions()}
        arguments.out.write_text(json.dumps(header) + "\n")
    known = read_rows(arguments.out)
    cases = [
        case
        for seed in range(arguments.seeds)
        for image_size in arguments.image_size
        for images in arguments.images
        for start in arguments.starts
        if (case := Case(start, images, image_size, seed)) not in known
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for image_size in {case.image_size for case in cases}:
            data = nas.load_dataset(arguments.data, image_size=image_size, metric="accuracy")
            for case in cases:
                path = _pickle_path(folder, case)
                if case.image_size == image_size and not path.is_file():
                    path.write_bytes(pickle.dumps(subset(data, case.images, case.seed)))
        run = partial(
            _run_case,
            out=arguments.out,
            weights=arguments.weights,
            table=arguments.table,
            folder=folder,
            epochs=arguments.epochs,
            batch=arguments.batch,
        )
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            list(pool.map(run, cases))


def at_latency(rows: Sequence[dict[str, Any]], latency_us: float) -> float:
    """Return the accuracy of the front of some networks at a latency, in [0, 1].

    It is interpolated in the logarithm of the latency between the members of the front.
    """
    front: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row["latency_us"]):
        if not front or row["accuracy"] > front[-1][1]:
            front.append((math.log(row["latency_us"]), row["accuracy"]))
    return float(np.interp(math.log(latency_us), *zip(*front, strict=True)))


def _text(values: Sequence[float]) -> str:
    return f"{mean(values):.1%}" + (f" ± {stdev(values):.1%}" if len(values) > 1 else "")


def report(rows: dict[Case, list[dict[str, Any]]]) -> None:
    """Print a table: accuracies at each share of the published network's latency, by data."""
    print("| images | pixels | share | latency | scratch | pretrained | fine-tuned |")
    print("|---|---|---|---|---|---|---|")
    for images, image_size in sorted({(case.images, case.image_size) for case in rows}):
        own = {case: each for case, each in rows.items() if case[1:3] == (images, image_size)}
        for share in SHARES:
            cells = []
            times = []
            for start in STARTS[:2]:
                networks = [
                    row
                    for case, each in own.items()
                    if case.start == start
                    for row in each
                    if row["share"] == share
                ]
                times += [row["latency_us"] for row in networks]
                cells.append(_text([row["accuracy"] for row in networks]) if networks else "")
            rivals = [each for case, each in own.items() if case.start == STARTS[2]]
            if times:
                cells.append(_text([at_latency(each, mean(times)) for each in rivals]))
                time_text = f"{mean(times) / 1000:.2f} ms"
                print(
                    f"| {images} | {image_size} | {share:g} | {time_text} | {' | '.join(cells)} |"
                )


def draw(rows: dict[Case, list[dict[str, Any]]], path: Path) -> None:
    """Draw accuracies over latencies, a panel for each number of images and each size."""
    from matplotlib import pyplot

    panels = sorted({(case.images, case.image_size) for case in rows})
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True, squeeze=False, layout="tight"
    )
    for axis, (images, image_size) in zip(axes[0], panels, strict=True):
        for start, marker in zip(STARTS, "sox", strict=True):
            points = [
                (row["latency_us"] / 1000, 100 * row["accuracy"])
                for case, each in rows.items()
                if case[:3] == (start, images, image_size)
                for row in each
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker, label=start, alpha=0.7)
        axis.set(title=f"{images:,} images, {image_size} pixels", xlabel="latency, ms")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy on test images, %")
    axes[0][-1].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("table", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("pretrained.jsonl"))
    parser.add_argument("--report", type=Path, help="a file that a benchmark wrote")
    parser.add_argument("--picture", type=Path, help="also draw it into this .png file")
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000, 10_000])
    parser.add_argument("--image-size", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--starts", nargs="+", default=STARTS, choices=STARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    arguments = parser.parse_args()
    if arguments.report:
        rows = read_rows(arguments.report)
        report(rows)
        if arguments.picture:
            draw(rows, arguments.picture)
    elif arguments.table is None:
        parser.error("give the data, the weights and the table, or --report")
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
