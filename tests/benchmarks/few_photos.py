"""Compares what a job makes of a few hundred photos with linear probes.

Each folder of photos is divided: some are for the job, and all others are its test images. For each
folder and seed, a line of a file has the accuracies and latencies of the trained networks on the
test images, and those of linear probes of the published network: at the image size of the job, and
at the size that is best for probes. The pick is that of `nas select`. The most accurate network of
the front with at most half of the published network's latency is trained after the job, like its
finalists, if it is none of them.

    python -m tests.benchmarks.few_photos efficientnet-lite0-57934424.pth PHOTOS... --out few.jsonl
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

import nas
from nas.job import load_job, run_job
from nas.job.folder import installed_versions
from nas.job.inputs import load_images
from nas.opened_run import open_run
from nas.pretrained import PublishedWeights
from nas.run.progress import SilentProgress
from nas.run.run import Run
from nas.space import SearchSpace
from nas.space.library import find_reference
from nas.supernet.pretrained import published_features
from nas.supernet.probe import fit_probe, probe_images

JOB = """
seed = {seed}
budget = "{budget}"
[data]
source = "{source}"
image_size = {image_size}
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
[training]
{training}
"""

MAX_TEST_IMAGES = 1000


def divide(photos: Path, images: int, seed: int, folder: Path) -> None:
    """Copy photos: for each class an equal share of `images` to `train`, and others to `test`."""
    rng = np.random.default_rng(seed)
    classes = sorted(each for each in photos.iterdir() if each.is_dir())
    for each in classes:
        files = sorted(each.iterdir())
        order = [files[at] for at in rng.permutation(len(files))]
        own = min(images // len(classes), round(0.8 * len(files)))
        most = own + MAX_TEST_IMAGES // len(classes)
        for part, chosen in (("train", order[:own]), ("test", order[own:most])):
            (folder / part / each.name).mkdir(parents=True)
            for file in chosen:
                shutil.copy(file, folder / part / each.name)


def probe_accuracies(job: Run, published: PublishedWeights, space: SearchSpace) -> dict[int, float]:
    """Return the accuracies on the test images of probes that learned the training images, by size.

    The sizes are that of the job, and the best one of the probes that the job measured.
    """
    summary = job.record.probes[space.name]
    best = max(summary.compared, key=lambda each: each.accuracy).image_size
    accuracies = {}
    for size in (summary.image_size, best):
        data = load_images(job.settings, SilentProgress(), image_size=size)
        own = space.adapt(image_size=size)
        learned = probe_images(data)
        probe = fit_probe(published_features(published, own, data, learned), learned, data)
        answers = probe.classify(published_features(published, own, data, data.test))
        accuracies[size] = data.score(answers, data.test.labels)
    return accuracies


def run(arguments: argparse.Namespace, photos: Path, seed: int) -> dict[str, Any]:
    """Run a job, and return what its networks and the probes reach."""
    published = nas.read_weights(arguments.weights)
    network = published.reference.name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        divide(photos, arguments.images, seed, folder / "photos")
        text = JOB.format(
            seed=seed,
            budget=arguments.budget,
            source=folder / "photos",
            image_size=arguments.image_size,
            tables=arguments.tables.absolute(),
            space=find_reference(network)[0].name,
            weights=arguments.weights.absolute(),
            finish="\n".join(arguments.finish),
            training="\n".join(arguments.training),
        )
        (folder / "job.toml").write_text(text)
        begin = time.monotonic()
        run_job(load_job(folder / "job.toml"), folder / "run")
        seconds = time.monotonic() - begin
        job = open_run(folder / "run")
        (space,) = job.spaces.values()
        published_us = job.measured_us[space.reference(network).digest]
        half = job.pick(max_latency_ms=published_us / 2000, most_accurate=True)
        if half.digest not in job.trained:
            job.retrain(half.id, progress=False)
        return {
            "photos": photos.name,
            "images": job.data.refit_count,
            "training_images": len(job.data.train),
            "image_size": job.data.image_size,
            "seed": seed,
            "budget": arguments.budget,
            "seconds": round(seconds),
            "test_images": len(job.data.test),
            "probes": probe_accuracies(job, published, space),
            "published_us": published_us,
            "pick": job.pick().id,
            "half": half.id,
            "networks": [
                {
                    "id": record.id,
                    "is_probe": record.is_probe,
                    "epochs": record.epochs,
                    "latency_us": job.measured_us[digest],
                    "holdout": record.holdout.accuracy,
                    "test": record.test.accuracy,
                    "choices": record.architecture.model_dump()["choices"],
                }
                for digest, record in job.trained.items()
            ],
            "versions": installed_versions(),
        }


def report(path: Path) -> None:
    """Print a table: accuracies on the test images and latencies, means of the seeds."""
    print("| photos | images | probe, own size | probe, best size | pick | half | minutes |")
    print("|---|---|---|---|---|---|---|")
    cases: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        cases.setdefault((row["photos"], row["images"]), []).append(row)
    for (photos, images), rows in sorted(cases.items()):
        cells = []
        for chosen in ("pick", "half"):
            own = [
                next(each for each in row["networks"] if each["id"] == row[chosen]) for row in rows
            ]
            share = mean(
                each["latency_us"] / row["published_us"]
                for each, row in zip(own, rows, strict=True)
            )
            cells.append(f"{mean(each['test'] for each in own):.1%} at {share:.2f}")
        own_size = mean(row["probes"][str(row["image_size"])] for row in rows)
        best_size = mean(list(row["probes"].values())[-1] for row in rows)
        minutes = mean(row["seconds"] for row in rows) / 60
        print(
            f"| {photos} | {images:,} | {own_size:.1%} | {best_size:.1%} | {' | '.join(cells)} "
            f"| {minutes:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=Path("few_photos.jsonl"))
    parser.add_argument("--report", type=Path, help="a file that a benchmark wrote")
    parser.add_argument("--images", type=int, default=250, help="photos for the job")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="12m")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    parser.add_argument("--finish", nargs="*", default=[], help="lines of [finish]")
    parser.add_argument("--training", nargs="*", default=[], help="lines of [training]")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.report)
        return
    if not arguments.photos:
        parser.error("give the weights and folders of photos, or --report")
    for seed in arguments.seeds:
        for photos in arguments.photos:
            row = run(arguments, photos, seed)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
