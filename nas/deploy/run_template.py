"""Classify images: python run.py IMAGE... [--model FILE] [--json]

The `run.py` of a model folder is this file with the texts of the modules of `nas` that it imports.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nas.deploy.script_loaders import load_network
from nas.deploy.script_steps import classify, use_file

FOLDER = Path(__file__).resolve().parent

DEFAULT_MODEL = "model.onnx"


def main() -> int:
    """Print the classes of the images that the command line names."""
    parser = argparse.ArgumentParser(description="Classify images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", default=str(FOLDER / DEFAULT_MODEL), help="file of the network")
    parser.add_argument("--json", action="store_true", help="print the logits as JSON")
    options = parser.parse_args()
    path = FOLDER / "preprocessing.json"
    preprocessing = use_file(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    model = Path(options.model)
    logits_of = load_network(model)
    return classify(options.images, model, logits_of, preprocessing, options.json)


if __name__ == "__main__":
    sys.exit(main())
