"""Classify images with a server: python device.py IMAGE... --server HOST:PORT [--json]

The first part of the network runs here, and `server.py` runs the rest. The `device.py` of a split
network is this file with the texts of the modules of `nas` that it imports.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from nas.deploy.script_steps import classify, load_onnx, run_quietly, use_file
from nas.plans.split_wire import connected, pack, receive, seconds, send, unpack

FOLDER = Path(__file__).resolve().parent


def main() -> int:
    """Print the classes of the images that the command line names."""
    parser = argparse.ArgumentParser(description="Classify images with a server.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--server", default="127.0.0.1:8765", help="address of server.py")
    parser.add_argument(
        "--answer-seconds", type=seconds, default=30.0, help="how long to wait for the server"
    )
    parser.add_argument("--json", action="store_true", help="print the logits as JSON")
    options = parser.parse_args()
    preprocessing, split = (
        use_file(path, lambda path=path: json.loads(path.read_bytes()))
        for path in (FOLDER / "preprocessing.json", FOLDER / "split.json")
    )
    model = FOLDER / "device.onnx"
    first_part = use_file(model, load_onnx, model)
    host, _, port = options.server.rpartition(":")
    limit_s = options.answer_seconds
    try:
        server = connected((host.strip("[]"), int(port)), limit_s)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"{options.server}: no server.py answers there ({error})")

    def logits_of(image: np.ndarray) -> np.ndarray:
        values = first_part(image)
        try:
            send(server, pack(values, split["transfer"]), limit_s)
            return unpack(receive(server, len(preprocessing["classes"]), limit_s))
        except (OSError, ValueError) as error:
            sys.exit(f"{options.server}: it does not answer ({error})")

    with server:
        return classify(options.images, model, logits_of, preprocessing, options.json)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
