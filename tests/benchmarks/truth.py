"""Scores every architecture of a few spaces, so that the true front of a search is known.

    python -m tests.benchmarks.truth --space tests/benchmarks/known/cells.py --data digits \
        --image-size 8 --epochs 60 --out results/truth/cells.json.gz

Trains a supernet a space, scores all architectures with it, times the spaces' kernels on this
machine and predicts every latency. What is in the working folder (`--work`) is not done again.
`tests.benchmarks.samplers` reads the file.
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
from nas.console import Bars
from nas.data import load_dataset
from nas.job.folder import versions
from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.worker_process import timers_for
from nas.search import non_dominated
from nas.space import load_space
from nas.supernet import TrainingSettings, evaluate, train
from tests.benchmarks.recipes import some

SCHEMA = 1


def all_of(space):
    """Every architecture of a space, and a digest of them in this order."""
    found = list(space.enumerate())
    text = "".join(each.digest for each in found)
    return found, hashlib.sha256(text.encode()).hexdigest()[:16]


def scored(space, data, settings, folder, bars):
    """The share of the validation images that each architecture gets wrong."""
    everyone, digest = all_of(space)
    kept = folder / f"{space.name}-{digest}.errors.json"
    if not kept.is_file():
        bars.begin(f"supernet {space.name}", "step")
        supernet = train(
            space,
            data,
            folder / space.name,
            settings,
            seed=0,
            progress=lambda p: bars.advance(p.step, p.steps, f"loss {p.loss:.3f}"),
        )
        bars.begin(f"scores of {space.name}", "network")
        errors = []
        for start in range(0, len(everyone), 50):
            some = evaluate(supernet, everyone[start : start + 50], data)
            errors += [round(1 - each, 6) for each in some]
            bars.advance(len(errors), len(everyone))
        files.replace(kept, json.dumps(errors))
    return json.loads(kept.read_text())


def timed(spaces, folder, bars):
    """Predicted microseconds of every architecture, by space, from one new table."""
    runtime = open_runtime("tvm", target="cpu", threads=1, dtype="float32")
    table = LatencyTable.open_or_create(folder / "tables", runtime)
    kernels = list({kernel: None for space in spaces for kernel in space_kernels(space, "tvm")})
    bars.begin("kernels", "kernel")
    with timers_for(runtime) as timers:
        build_table(table, kernels, timers, progress=lambda p: bars.advance(p.done, p.total))
    found = {}
    for space in spaces:
        everyone, _ = all_of(space)
        found[space.name] = [round(table.predict(each.graph).latency_us, 3) for each in everyone]
    return found, runtime.fingerprint.to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", action="append", required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, help="of the training split; all by default")
    parser.add_argument("--validation", type=int, help="images that score; all by default")
    parser.add_argument("--validation-fraction", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--work", type=Path, required=True, help="folder of what lies between")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = load_dataset(
        given.data, image_size=given.image_size, validation_fraction=given.validation_fraction
    )
    data = replace(
        data, train=some(data.train, given.images), search=some(data.search, given.validation)
    )
    sizes = {
        "image_size": data.image_size,
        "channels": data.channels,
        "classes": len(data.classes),
    }
    spaces = [load_space(name, **sizes) for name in given.space]
    given.work.mkdir(parents=True, exist_ok=True)
    settings = TrainingSettings(epochs=given.epochs)
    with Bars() as bars:
        errors = {s.name: scored(s, data, settings, given.work, bars) for s in spaces}
        latencies, device = timed(spaces, given.work, bars)
    points = np.array(
        [
            point
            for space in spaces
            for point in zip(errors[space.name], latencies[space.name], strict=True)
        ]
    )
    document = {
        "schema": SCHEMA,
        "command": {**vars(given), "out": None, "work": None, "data": Path(given.data).name},
        "versions": versions(),
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
                "digest": all_of(space)[1],
                "validation_error": errors[space.name],
                "predicted_us": latencies[space.name],
            }
            for name, space in zip(given.space, spaces, strict=True)
        ],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, separators=(",", ":"))
    files.replace(given.out, gzip.compress(text.encode(), mtime=0))
    print(
        f"{len(points)} architectures, {document['front']} on the true front, errors "
        f"{points[:, 0].min():.3f} to {points[:, 0].max():.3f}, latencies "
        f"{points[:, 1].min():.1f} to {points[:, 1].max():.1f} us; {given.out}"
    )


if __name__ == "__main__":
    main()
