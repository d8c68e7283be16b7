"""Classify images: python run.py IMAGE... [--model FILE] [--json]

The `run.py` of a model folder is this file with the texts of the modules of `nas` that it imports.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from nas.deploy.script_steps import LogitsOf, classify, load_onnx, use_file

FOLDER = Path(__file__).resolve().parent

DEFAULT_MODEL = "model.onnx"


def load_tflite(path: Path) -> LogitsOf:
    """Load a network for LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits_of(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry["index"], np.ascontiguousarray(image.transpose(0, 2, 3, 1)))
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])[0]

    return logits_of


def load_tvm(path: Path) -> LogitsOf:
    """Load a library that TVM compiled."""
    if os.path.expanduser("~") == "~":  # TVM needs a home folder, which some containers lack.
        os.environ["HOME"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    import tvm

    network = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())

    def logits_of(image: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        return network["main"](tvm.runtime.tensor(values)).numpy()[0]

    return logits_of


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".so": load_tvm}


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
    load = LOADERS.get(model.suffix)
    if load is None:
        sys.exit(f"{model}: expected a file with the suffix {', '.join(LOADERS)}")
    logits_of = use_file(model, load, model)
    return classify(options.images, model, logits_of, preprocessing, options.json)


if __name__ == "__main__":
    sys.exit(main())
