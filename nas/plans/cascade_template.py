"""Classify images by a cascade: python run.py IMAGE... [--json]

The `run.py` of a cascade is this file with the texts of the modules of `nas` that it imports. The
first network classifies every image, and each further one those of which none before it was sure.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nas.data.image_reading import UnreadableImageError
from nas.deploy.script_loaders import load_network
from nas.deploy.script_steps import (
    NOT_FINITE,
    OutputsOf,
    network_input,
    open_onnx,
    plain_output,
    probabilities_of,
    run_quietly,
    use_file,
)

FOLDER = Path(__file__).resolve().parent


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return use_file(path, lambda: json.loads(path.read_bytes()))


def main() -> int:
    """Print the classes of the images that the command line names, and which network answered."""
    parser = argparse.ArgumentParser(description="Classify images by a cascade of networks.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--json", action="store_true", help="print the logits as JSON")
    options = parser.parse_args()
    plain_output()
    stages = read_json(FOLDER / "cascade.json")["stages"]
    for stage in stages:
        stage["preprocessing"] = read_json(FOLDER / stage["network"] / "preprocessing.json")
        stage["path"] = FOLDER / stage["network"] / stage["file"]["file"]
        stage["outputs_of"] = load_stage(stage["path"])
    results = [classify_image(name, stages) for name in options.images]
    if options.json:
        print(json.dumps(results))
    else:
        for result in results:
            show(result, stages[0]["preprocessing"]["classes"])
    return int(any("error" in result for result in results))


def load_stage(path: Path) -> OutputsOf:
    """Return what gives the logits of a file, and of a prefix also what the rest reads."""
    if path.name in ("prefix.onnx", "rest.onnx"):
        return use_file(path, open_onnx, path)
    logits_of = load_network(path)
    return lambda image: [logits_of(image)[None]]


def classify_image(name: str, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return which network answers an image file, and the logits of all that classified it."""
    inputs: dict[int, np.ndarray] = {}
    logits: list[list[float]] = []
    features: list[np.ndarray] = []
    for stage in stages:
        size = stage["preprocessing"]["image_size"]
        try:
            if size not in inputs:
                inputs[size] = network_input(Path(name), stage["preprocessing"])
        except UnreadableImageError as error:
            return {"image": name, "error": str(error)}
        values = features[0] if features else inputs[size]
        (own,), *features = use_file(stage["path"], stage["outputs_of"], values)
        if not np.isfinite(own).all():
            return {"image": name, "error": NOT_FINITE}
        logits.append(own.tolist())
        probabilities = probabilities_of(own)
        if probabilities.max() >= (stage["min_confidence"] or 0):
            break
    result = {"image": name, "stage": len(logits), "network": stage["network"], "logits": logits}
    return {**result, "probabilities": probabilities.tolist()}


def show(result: dict[str, Any], classes: list[str]) -> None:
    """Print the answer to an image."""
    if "error" in result:
        print(f"{result['image']}: {result['error']}", file=sys.stderr)
        return
    print(f"{result['image']}: answered by {result['network']}, network {result['stage']}")
    probabilities = np.array(result["probabilities"])
    for position in probabilities.argsort()[::-1][:5]:
        print(f"{probabilities[position]:6.1%}  {classes[position]}")


if __name__ == "__main__":
    sys.exit(run_quietly(main))
