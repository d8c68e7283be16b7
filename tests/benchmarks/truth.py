"""Score every architecture of some spaces, so that the true Pareto front is known.

    python -m tests.benchmarks.truth --space tests/benchmarks/known/cells.py --data digits \
        --image-size 8 --epochs 60 --out results/truth/cells.json.gz

Trains a supernet for each space, scores all architectures with it, times the kernels of the spaces
on this machine, and predicts the latency of each architecture. Results in the working folder
(`--work`) are used again. `tests.benchmarks.samplers` reads the output file.
"""

import argparse
import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from nas import files
from nas.data import Images, load_dataset
from nas.job.folder import installed_versions
from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.worker_process import timers_for
from nas.search import non_dominated
from nas.space import load_space
from nas.supernet.evaluation import evaluate
from nas.supernet.recipe import Recipe
from nas.supernet.training import train

SCHEMA = 1


def split_images(images: Images, count: int | None) -> tuple[Images, Images]:
    """Return a random sample of images, always the same one, and the others.

    All images are in the sample if `count` is None.
    """
    order = np.random.default_rng(0).permutation(len(images))
    chosen, others = order[:count], order[len(order) if count is None else count :]
    return images.take(chosen), images.take(others)


def enumerate_space(space):
    """Return every architecture of a space, and a digest of them in this order."""
    architectures = list(space.enumerate())
    text = "".join(architecture.digest for architecture in architectures)
    return architectures, hashlib.sha256(text.encode()).hexdigest()[:16]


def score_all(space, data, settings, folder):
    """Return the validation error of each architecture, a fraction."""
    architectures, digest = enumerate_space(space)
    cache = folder / f"{space.name}-{digest}.errors.json"
    if not cache.is_file():
        supernet = train(space, data, folder / space.name, settings, seed=0)
        accuracies = evaluate(supernet, architectures, data)
        files.replace(cache, json.dumps([round(1 - each, 6) for each in accuracies]))
    return json.loads(cache.read_text())


def predict_latencies(spaces, folder):
    """Return the predicted latencies in microseconds by space, from one new table."""
    runtime = open_runtime("tvm", target="cpu", threads=1, dtype="float32")
    table = LatencyTable.open_or_create(folder / "tables", runtime)
    kernels = [kernel for space in spaces for kernel in space_kernels(space, "tvm")]
    with timers_for(runtime) as timers:
        build_table(table, kernels, timers)
    latencies = {}
    for space in spaces:
        architectures, _ = enumerate_space(space)
        latencies[space.name] = [
            round(table.predict(architecture.graph).latency_us, 3) for architecture in architectures
        ]
    return latencies, runtime.fingerprint.to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", action="append", required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="number of training images; all by default")
    parser.add_argument("--validation", type=int, help="number of validation images")
    parser.add_argument("--validation-fraction", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate results")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = load_dataset(
        options.data, image_size=options.image_size, validation_fraction=options.validation_fraction
    )
    data = replace(
        data,
        train=split_images(data.train, options.images)[0],
        search=split_images(data.search, options.validation)[0],
    )
    sizes = {
        "image_size": data.image_size,
        "channels": data.channels,
        "classes": len(data.classes),
    }
    spaces = [load_space(name, **sizes) for name in options.space]
    options.work.mkdir(parents=True, exist_ok=True)
    settings = Recipe(epochs=options.epochs)
    errors = {s.name: score_all(s, data, settings, options.work) for s in spaces}
    latencies, device = predict_latencies(spaces, options.work)
    points = np.array(
        [
            point
            for space in spaces
            for point in zip(errors[space.name], latencies[space.name], strict=True)
        ]
    )
    document = {
        "schema": SCHEMA,
        "command": {**vars(options), "out": None, "work": None, "data": Path(options.data).name},
        "versions": installed_versions(),
        "device": device,
        "cores": os.cpu_count(),
        "images": data.counts,
        "sizes": sizes,
        "objectives": ["validation_error", "predicted_us"],
        "best": points.min(axis=0).tolist(),
        "reference": points.max(axis=0).tolist(),
        "normalised": "each objective from 0 (the best of all) to 1 (the reference: the worst)",
        "front": len(non_dominated(points)),
        "spaces": [
            {
                "space": name,
                "digest": enumerate_space(space)[1],
                "validation_error": errors[space.name],
                "predicted_us": latencies[space.name],
            }
            for name, space in zip(options.space, spaces, strict=True)
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, separators=(",", ":"))
    files.replace(options.out, gzip.compress(text.encode(), mtime=0))
    print(
        f"{len(points)} architectures, {document['front']} on the true front, errors "
        f"{points[:, 0].min():.3f} to {points[:, 0].max():.3f}, latencies "
        f"{points[:, 1].min():.1f} to {points[:, 1].max():.1f} us; {options.out}"
    )


if __name__ == "__main__":
    main()
