"""Classify images: python run.py IMAGE... [--model FILE] [--json]

The `run.py` of a model folder is this file with the texts of the modules of `nas` that it imports.
"""

from __future__ import annotations

import argparse
import atexit
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.data.image_reading import RULES, UnreadableImageError, normalise, open_image, read_pixels
from nas.files.foreign import file_problem

try:
    import pillow_heif
except ImportError:  # HEIC photos of phones cannot be read without it.
    pass
else:
    pillow_heif.register_heif_opener()

FOLDER = Path(__file__).resolve().parent

DEFAULT_MODEL = "model.onnx"

LogitsOf = Callable[[np.ndarray], np.ndarray]
"""Returns the logits of an image, from the input of the network."""


def use_file(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function makes of a file, or end with one line that names the file."""
    problem = file_problem(path)
    if not problem:
        try:
            return function(*arguments)
        except Exception as error:  # Runtimes raise nearly anything.
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            problem = f"it cannot be read ({type(error).__name__}: {lines[0].strip()[:300]})"
    sys.exit(f"{path}: {problem}")


def network_input(path: Path, preprocessing: dict[str, Any]) -> np.ndarray:
    """Return an image file as the input of the network, 1 x channels x height x width."""
    how, channels = preprocessing["reading"], preprocessing["channels"]
    for name, value in RULES.items():
        if how.get(name) != value:
            sys.exit(f"preprocessing.json has {name} {how.get(name)!r}; expected {value!r}")
    size = how["decoded_size"]
    with open_image(path, size, how["formats"]) as image:
        pixels = read_pixels(image, size, how["background"], channels)
    return normalise(
        pixels.reshape(1, size, size, channels),
        preprocessing["image_size"],
        preprocessing["mean"],
        preprocessing["std"],
    )


def load_onnx(path: Path) -> LogitsOf:
    """Load a network for ONNX Runtime."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Read when ONNX Runtime is imported.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0][0]


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Not every terminal shows every name.
    path = FOLDER / "preprocessing.json"
    preprocessing = use_file(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    model = Path(options.model)
    load = LOADERS.get(model.suffix)
    if load is None:
        sys.exit(f"{model}: expected a file with the suffix {', '.join(LOADERS)}")
    logits_of = use_file(model, load, model)
    results: list[dict[str, Any]] = []
    for name in options.images:
        try:
            values = network_input(Path(name), preprocessing)
        except UnreadableImageError as error:
            results.append({"image": name, "error": str(error)})
            if not options.json:
                print(f"{name}: {error}", file=sys.stderr)
            continue
        logits = use_file(model, logits_of, values)
        confidence = np.exp(logits.astype(np.float64) - logits.max())
        confidence /= confidence.sum()
        unsure = bool(confidence.max() < (preprocessing.get("min_confidence") or 0))
        results.append({"image": name, "logits": logits.tolist(), "unsure": unsure})
        if not options.json:
            if len(options.images) > 1:
                print(name)
            if unsure:
                print("unsure")
                continue
            for position in confidence.argsort()[::-1][:5]:
                print(f"{confidence[position]:6.1%}  {preprocessing['classes'][position]}")
    if options.json:
        print(json.dumps(results))
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
