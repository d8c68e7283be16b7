"""Compares what a job makes of a few hundred photos with a linear probe.

A folder of photos is divided: some are for the job, of which half are for training, and all others
are its test images. For each number of images and seed, a line of a file has the accuracies and
latencies of the trained networks, and of the probe on the published network. The most accurate
network of the front with at most half of its latency is trained after the job, like its finalists,
if it is none of them.

    python -m tests.benchmarks.few_photos PHOTOS efficientnet-lite0-57934424.pth --out few.jsonl
    python -m tests.benchmarks.few_photos --report few.jsonl
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import nas
from nas.job import load_job, run_job
from nas.job.folder import installed_versions
from nas.opened_run import open_run
from nas.space.library import find_reference
from nas.supernet.evaluation import predict_network
from nas.supernet.pretrained import probed_network

JOB = """
seed = {seed}
budget = "{budget}"
[data]
source = "{source}"
image_size = {image_size}
validation_fraction = 0.5
metric = "accuracy"
[device]
runtime = "onnxruntime"
tables = "{tables}"
[[space]]
name = "{space}"
pretrained = "{weights}"
[finish]
references = []
{finish}
"""

MAX_TEST_IMAGES = 1000


def divide(photos: Path, images: int, seed: int, folder: Path) -> None:
    """Copy photos: for each class an equal share of twice `images` to `train`, others to `test`."""
    rng = np.random.default_rng(seed)
    classes = sorted(each for each in photos.iterdir() if each.is_dir())
    for each in classes:
        files = sorted(each.iterdir())
        order = [files[at] for at in rng.permutation(len(files))]
        own = min(2 * images // len(classes), round(0.8 * len(files)))
        most = own + MAX_TEST_IMAGES // len(classes)
        for part, chosen in (("train", order[:own]), ("test", order[own:most])):
            (folder / part / each.name).mkdir(parents=True)
            for file in chosen:
                shutil.copy(file, folder / part / each.name)


def run(arguments: argparse.Namespace, images: int, seed: int) -> dict[str, Any]:
    """Run a job, and return what its networks and the probe reach."""
    begin = time.monotonic()
    published = nas.read_weights(arguments.weights)
    network = published.reference.name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        divide(arguments.photos, images, seed, folder / "photos")
        text = JOB.format(
            seed=seed,
            budget=arguments.budget,
            source=folder / "photos",
            image_size=arguments.image_size,
            tables=arguments.tables.absolute(),
            space=find_reference(network)[0].name,
            weights=arguments.weights.absolute(),
            finish="\n".join(arguments.finish),
        )
        (folder / "job.toml").write_text(text)
        run_job(load_job(folder / "job.toml"), folder / "run")
        seconds = time.monotonic() - begin
        job = open_run(folder / "run")
        (space,) = job.spaces.values()
        architecture = space.reference(network)
        data = job.data
        probe = probed_network(architecture, published, data, seed=seed, device=torch.device("cpu"))
        accuracy = data.score(predict_network(probe, data, data.test), data.test.labels)
        measured_us = job.measured_us
        half_ms = measured_us[architecture.digest] / 2000
        half = job.pick(max_latency_ms=half_ms, most_accurate=True)
        if half.digest not in job.trained:
            job.retrain(half.id, progress=False)
        return {
            "photos": arguments.photos.name,
            "images": len(data.train),
            "image_size": arguments.image_size,
            "seed": seed,
            "budget": arguments.budget,
            "seconds": round(seconds),
            "test_images": len(data.test),
            "probe": accuracy,
            "probe_us": measured_us[architecture.digest],
            "sizes": job.record.probes[space.name].model_dump()["sizes"],
            "networks": [
                {
                    "id": record.id,
                    "is_probe": record.is_probe,
                    "epochs": record.epochs,
                    "latency_us": measured_us[digest],
                    "holdout": record.holdout.accuracy,
                    "test": record.test.accuracy,
                    "choices": record.architecture.model_dump()["choices"],
                }
                for digest, record in job.trained.items()
            ],
            "versions": installed_versions(),
        }


def report(path: Path) -> None:
    """Print a table: accuracies on the test images, means of the seeds."""
    print("| photos | images | probe | best | at most half of the latency |")
    print("|---|---|---|---|---|")
    cases: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        cases.setdefault((row["photos"], row["images"]), []).append(row)
    for (photos, images), rows in sorted(cases.items()):
        best, half = [], []
        for row in rows:
            networks = sorted(row["networks"], key=lambda each: -each["holdout"])
            best.append(networks[0]["test"])
            small = [each for each in networks if each["latency_us"] <= row["probe_us"] / 2]
            half.append(small[0]["test"] if small else float("nan"))
        probe = mean(row["probe"] for row in rows)
        print(f"| {photos} | {images:,} | {probe:.1%} | {mean(best):.1%} | {mean(half):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("few_photos.jsonl"))
    parser.add_argument("--report", type=Path, help="a file that a benchmark wrote")
    parser.add_argument("--images", type=int, nargs="+", default=[200])
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="12m")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    parser.add_argument("--finish", nargs="*", default=[], help="lines of [finish]")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.report)
    elif arguments.weights is None:
        parser.error("give the photos and the weights, or --report")
    else:
        for images in arguments.images:
            for seed in arguments.seeds:
                row = run(arguments, images, seed)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
