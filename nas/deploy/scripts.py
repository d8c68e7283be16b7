"""`run.py` of a model folder: a script that classifies image files without this package."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nas.data import image_reading
from nas.errors import ExportError
from nas.files import foreign

RUN_LIMIT_SECONDS = 300.0
"""How long the script may take for a few dozen images; importing a runtime takes seconds."""

_TITLE = '"""Classify images: python run.py IMAGE... [--model FILE] [--json]"""\n\n'

_SCRIPT = '''\


# Above: reading of images, as in training, and of other files. Below: the network.

import argparse
import atexit
import json
import shutil
import sys
import tempfile

try:
    import pillow_heif
except ImportError:  # HEIC photos of phones cannot be read without it.
    pass
else:
    pillow_heif.register_heif_opener()


def read_file(path, read):
    """Return what a function reads from a file, or end with one line that names the file."""
    problem = file_problem(path)
    if not problem:
        try:
            return read(path)
        except Exception as error:  # Runtimes raise nearly anything.
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            problem = f"it cannot be read ({type(error).__name__}: {lines[0].strip()[:300]})"
    sys.exit(f"{path}: {problem}")


FOLDER = Path(__file__).resolve().parent
PREPROCESSING = read_file(
    FOLDER / "preprocessing.json", lambda path: json.loads(path.read_text(encoding="utf-8"))
)


def network_input(path):
    """Return an image file as the input of the network, 1 x channels x height x width."""
    how, channels = PREPROCESSING["reading"], PREPROCESSING["channels"]
    for name, value in RULES.items():
        if how.get(name) != value:
            sys.exit(f"preprocessing.json has {name} {how.get(name)!r}; expected {value!r}")
    size = how["decoded_size"]
    with open_image(Path(path), size, how["formats"]) as image:
        pixels = read_pixels(image, size, how["background"], channels)
    pixels = pixels.reshape(1, size, size, channels)
    return normalise(
        pixels, PREPROCESSING["image_size"], PREPROCESSING["mean"], PREPROCESSING["std"]
    )


@LOADERS@

def main():
    parser = argparse.ArgumentParser(description="Classify images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", default=str(FOLDER / "@MODEL@"), help="file of the network")
    parser.add_argument("--json", action="store_true", help="print the logits as JSON")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # Not every terminal shows every name.
    load = LOADERS.get(Path(options.model).suffix)
    if load is None:
        sys.exit(f"{options.model}: expected a file with the suffix {', '.join(LOADERS)}")
    logits_of = read_file(Path(options.model), lambda path: load(str(path)))
    results = []
    for path in options.images:
        try:
            values = network_input(path)
        except UnreadableImageError as error:
            results.append({"image": path, "error": str(error)})
            if not options.json:
                print(f"{path}: {error}", file=sys.stderr)
            continue
        logits = read_file(Path(options.model), lambda _: logits_of(values))
        confidence = np.exp(logits.astype(np.float64) - logits.max())
        confidence /= confidence.sum()
        unsure = bool(confidence.max() < (PREPROCESSING.get("min_confidence") or 0))
        results.append({"image": path, "logits": logits.tolist(), "unsure": unsure})
        if not options.json:
            if len(options.images) > 1:
                print(path)
            if unsure:
                print("unsure")
                continue
            for position in confidence.argsort()[::-1][:5]:
                print(f"{confidence[position]:6.1%}  {PREPROCESSING['classes'][position]}")
    if options.json:
        print(json.dumps(results))
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
'''

_LOADERS = '''\
def load_onnx(path):
    """Return a function from the input of the network to its logits."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Read when ONNX Runtime is imported.
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = PREPROCESSING["output_name"], PREPROCESSING["input_name"]
    return lambda images: session.run([names[0]], {names[1]: images})[0][0]


def load_tflite(path):
    """Return a function from the input of the network to its logits."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits_of(images):
        values = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        if entry["dtype"] == np.int8:
            scale, zero = entry["quantization"]
            values = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], values)
        interpreter.invoke()
        logits = interpreter.get_tensor(result["index"])[0].astype(np.float32)
        if result["dtype"] == np.int8:
            scale, zero = result["quantization"]
            logits = (logits - zero) * scale
        return logits

    return logits_of


def load_tvm(path):
    """Return a function from the input of the network to its logits."""
    if os.path.expanduser("~") == "~":  # TVM needs a home folder, which some containers lack.
        os.environ["HOME"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    import tvm

    network = tvm.relax.VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())

    def logits_of(images):
        values = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        return network["main"](tvm.runtime.tensor(values)).numpy()[0]

    return logits_of


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".so": load_tvm}
'''

REQUIREMENTS = {
    "onnx": "onnxruntime numpy pillow",
    "onnx-int8": "onnxruntime numpy pillow",
    "tflite": "ai-edge-litert numpy pillow",
    "tflite-int8": "ai-edge-litert numpy pillow",
    "tvm": "apache-tvm numpy pillow",
}
"""Packages that the script imports, by the format of the file that it runs."""


def script_format(formats: Collection[str]) -> str | None:
    """Return the first format that the script runs; None if it runs none of them."""
    return next((name for name in formats if name in REQUIREMENTS), None)


def run_script(default: str) -> str:
    """Return the text of `run.py`.

    Args:
        default: file of the network that it runs if no other is named.
    """
    start = "from __future__ import annotations\n"
    sources = [
        inspect.getsource(module).partition(start)[2].rstrip()
        for module in (image_reading, foreign)
    ]
    script = _SCRIPT.replace("@LOADERS@", _LOADERS).replace("@MODEL@", default)
    return _TITLE + start + "\n\n".join(sources) + script


def script_logits(script: Path, model: Path, images: Sequence[str], folder: Path) -> list[Any]:
    """Run a script as a user would, and return the logits that it computes for image files.

    Args:
        script: path of the `run.py`.
        model: file of the network.
        images: names of the image files in `folder`.
        folder: working directory of the script.

    Returns:
        The logits of each image, or a text that says why the script does not read it.

    Raises:
        ExportError: the script does not run.
    """
    # The script imports packages from where this process has them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(script.absolute()), "--json"]
    try:
        done = subprocess.run(
            [*command, "--model", str(model.absolute()), *images],
            cwd=folder,
            env=environment,
            capture_output=True,
            check=False,
            timeout=RUN_LIMIT_SECONDS,
        )
        results = json.loads(done.stdout)
        return [result.get("logits") or result["error"] for result in results]
    except subprocess.TimeoutExpired:
        reason = f"did not answer within {RUN_LIMIT_SECONDS:.0f} s"
    except ValueError:  # It printed no JSON.
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        reason = f"ended with status {done.returncode} and wrote: {lines[-1][:300]}"
    raise ExportError(f"{script.name} {reason}.", remedy="Use the file of the network without it.")
