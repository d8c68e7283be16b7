"""What the scripts of exported models do with an image file, up to the classes that they print.

Each script holds a copy of this text, so that it runs without this package.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from nas.data.image_reading import (
    RESIZES,
    RULES,
    UnreadableImageError,
    normalise,
    open_image,
    read_pixels,
)
from nas.deploy.script_log import ImageLog
from nas.files.foreign import NOTHING_RUNS, file_problem, may_run_from

try:
    import pillow_heif
except ImportError:  # HEIC photos of phones cannot be read without it.
    pass
else:
    pillow_heif.register_heif_opener()

LogitsOf = Callable[[np.ndarray], np.ndarray]
"""Returns the logits of an image, from the input of the network."""

NOT_FINITE = "the network's answer has values that are not finite"
"""Why an image has no class: numbers that are none would pass as a sure answer."""

OutputsOf = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Returns the outputs of a file, each with one row, the logits first."""


def use_file(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function makes of a file, or end with one line that names the file."""
    problem = file_problem(path)
    if not problem:
        try:
            return function(*arguments)
        except Exception as error:  # Runtimes raise nearly anything.
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            problem = f"it cannot be read ({type(error).__name__}: {lines[0].strip()[:300]})"
            if path.suffix == ".so" and not may_run_from(path):
                problem = f"{NOTHING_RUNS}: copy the folder to another disk"
    sys.exit(f"{path}: {problem}")


def plain_output() -> None:
    """Write escapes for characters that the terminal does not show, such as those of a name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_quietly(main: Callable[[], int]) -> int:
    """Return the status of a script; 1 if nobody reads its output to the end, such as `head`."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def decoded(file: Path | IO[bytes], preprocessing: dict[str, Any]) -> np.ndarray:
    """Return the pixels of an image file, 1 x height x width x channels (uint8)."""
    how, channels = preprocessing["reading"], preprocessing["channels"]
    for name, value in RULES.items():
        if how.get(name) != value:
            sys.exit(f"preprocessing.json has {name} {how.get(name)!r}; expected {value!r}")
    if (resize := how.get("resize")) not in RESIZES:
        sys.exit(f"preprocessing.json has resize {resize!r}; expected {' or '.join(RESIZES)}")
    size = how["decoded_size"]
    with open_image(file, size, how["formats"]) as image:
        pixels = read_pixels(image, size, how["background"], channels, resize)
    return pixels.reshape(1, size, size, channels)


def as_input(pixels: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    """Return decoded pixels as the input of the network, 1 x channels x height x width."""
    size, mean, std = (preprocessing[name] for name in ("image_size", "mean", "std"))
    return normalise(pixels, size, mean, std)


def network_input(path: Path, preprocessing: dict[str, Any]) -> np.ndarray:
    """Return an image file as the input of the network, 1 x channels x height x width."""
    return as_input(decoded(path, preprocessing), preprocessing)


def open_onnx(path: Path) -> OutputsOf:
    """Load a file for ONNX Runtime, which may have several outputs."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Read when ONNX Runtime is imported.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})


def load_onnx(path: Path) -> LogitsOf:
    """Load a network for ONNX Runtime."""
    outputs_of = open_onnx(path)
    return lambda image: outputs_of(image)[0][0]


def classify(
    names: Sequence[str],
    model: Path,
    logits_of: LogitsOf,
    preprocessing: dict[str, Any],
    as_json: bool,
    log: ImageLog | None = None,
) -> int:
    """Print the classes of image files, or their logits as JSON.

    Args:
        names: paths of the files.
        model: file of the network, for messages.
        logits_of: returns the logits.
        preprocessing: what `preprocessing.json` holds.
        as_json: whether to print the logits.
        log: gets a line for each file, after its answer is printed.

    Returns:
        0, or 1 if a file is no image that can be read, or the network gives it no class.
    """
    plain_output()
    results: list[dict[str, Any]] = []
    for name in names:
        try:
            pixels = decoded(Path(name), preprocessing)
            logits = use_file(model, logits_of, as_input(pixels, preprocessing))
            problem = "" if np.isfinite(logits).all() else NOT_FINITE
        except UnreadableImageError as error:
            problem = str(error)
        if problem:
            results.append({"image": name, "error": problem})
            if log is not None:
                log.note(name, error=problem)
        else:
            confidence = probabilities_of(logits)
            unsure = bool(confidence.max() < (preprocessing.get("min_confidence") or 0))
            results.append({"image": name, "logits": logits.tolist(), "unsure": unsure})
            if log is not None:
                log.note(name, pixels, confidence)
        if not as_json:
            try:
                print_answer(results[-1], preprocessing["classes"], has_name=len(names) > 1)
            finally:
                if log is not None:
                    log.write()
    if as_json:
        try:
            print(json.dumps(results))
        finally:
            if log is not None:
                log.write()
    return int(any("error" in result for result in results))


def print_answer(result: dict[str, Any], classes: Sequence[str], *, has_name: bool) -> None:
    """Print the most probable classes of an image file, or why there are none."""
    if "error" in result:
        print(f"{result['image']}: {result['error']}", file=sys.stderr)
        return
    if has_name:
        print(result["image"])
    if result["unsure"]:
        print("unsure")
        return
    probabilities = probabilities_of(np.array(result["logits"]))
    for position in probabilities.argsort()[::-1][:5]:
        print(f"{probabilities[position]:6.1%}  {classes[position]}")


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classes."""
    values = np.exp(logits.astype(np.float64) - logits.max())
    return values / values.sum()
