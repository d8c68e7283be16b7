"""Classify images: python run.py IMAGE... [--model FILE] [--json] [--log FILE]

With --check in place of images, it says whether it answers here as it did at its export. `card.md`
names the packages that it needs, with their versions.

The `run.py` of a model folder is this file with the texts of the modules of `nas` that it imports.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nas.deploy.script_check import check
from nas.deploy.script_loaders import load_network
from nas.deploy.script_log import ImageLog
from nas.deploy.script_steps import classify, run_quietly, use_file

FOLDER = Path(__file__).resolve().parent

DEFAULT_MODEL = "model.onnx"


def main() -> int:
    """Print the classes of the images that the command line names."""
    parser = argparse.ArgumentParser(description="Classify images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument("--model", default=str(FOLDER / DEFAULT_MODEL), help="file of the network")
    parser.add_argument("--json", action="store_true", help="print the logits as JSON")
    parser.add_argument("--log", type=Path, help="append a line for each image, for nas drift")
    parser.add_argument("--log-paths", action="store_true", help="with the paths of the images")
    parser.add_argument(
        "--check", action="store_true", help="compare the answers here with those of the export"
    )
    options = parser.parse_args()
    if bool(options.images) == options.check:
        parser.error("expected images, or --check without them")
    model = Path(options.model)
    if options.log_paths and not options.log:
        parser.error("--log-paths needs --log")
    if options.log and model.resolve().parent != FOLDER:
        parser.error("--log needs a file of this folder, whose weights each line names")
    preprocessing = read_json("preprocessing.json")
    log = None
    if options.log:
        digest = read_json("reference.json")["weights_digest"]
        log = ImageLog(options.log, digest, options.log_paths)
    logits_of = load_network(model)
    if options.check:
        samples = FOLDER / "verification.safetensors"
        return check(read_json("card.json"), samples, model, logits_of, preprocessing)
    return classify(options.images, model, logits_of, preprocessing, options.json, log)


def read_json(name: str) -> dict:
    """Return the contents of a JSON file of the folder."""
    path = FOLDER / name
    return use_file(path, lambda: json.loads(path.read_bytes()))


if __name__ == "__main__":
    sys.exit(run_quietly(main))
