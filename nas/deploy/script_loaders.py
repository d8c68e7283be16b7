"""What the scripts of exported models load the file of a network with.

Each script holds a copy of this text, so that it runs without this package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from nas.deploy.script_steps import LogitsOf, load_onnx, use_file
from nas.machine.home import ensure_home


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


def import_tvm() -> ModuleType:
    """Import TVM without torch, and return it.

    TVM imports torch wherever it is installed, for conversions of tensors that a file does not
    need. That takes a second, and 200 MB that would count as memory of the file.
    """
    hides_torch = "torch" not in sys.modules
    if hides_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm
    finally:
        if hides_torch:
            del sys.modules["torch"]
    return tvm


def load_tvm(path: Path) -> LogitsOf:
    """Load a library that TVM compiled."""
    ensure_home()
    tvm = import_tvm()
    network = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())

    def logits_of(image: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        return network["main"](tvm.runtime.tensor(values)).numpy()[0]

    return logits_of


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".so": load_tvm}
"""Functions that load a file, by its suffix or its name. A plug-in's format adds one of its own."""


def load_network(path: Path) -> LogitsOf:
    """Return what gives the logits of a file, or end with one line that names it."""
    load = LOADERS.get(path.name) or LOADERS.get(path.suffix)
    if load is None:
        sys.exit(f"{path}: expected a file with the suffix {', '.join(LOADERS)}")
    return use_file(path, load, path)
