"""Files that LiteRT's interpreter has loaded, in which networks and kernels run.

It is a module of `nas.runtimes.files`, and needs nothing of this package.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate
except ImportError:  # The images of some boards have LiteRT under its former name.
    from tflite_runtime.interpreter import Interpreter, load_delegate


class Session:
    """A loaded file, whose inputs hold random values.

    The threads of XNNPACK stay on the cores on which the thread that made them was.

    Args:
        data: contents of the file.
        threads: number of threads that run one operator.
        batch: number of images that run at once.
        delegate: `library` and `options` of one that runs what it can; XNNPACK takes the rest.

    Attributes:
        facts: number of operators of the file by name, and of those that the delegate runs.
    """

    def __init__(self, data: bytes, threads: int, batch: int = 1, delegate: Any = None) -> None:
        self._interpreter = Interpreter(
            model_content=data,
            num_threads=threads,
            experimental_delegates=None if delegate is None else [load_delegate(**delegate)],
        )
        # XNNPACK takes its operators later.
        operators, delegated = _count_operators(self._interpreter)
        self.facts = {"operators": operators, "delegated": delegated}
        for each in self._interpreter.get_input_details():
            shape = (batch, *each["shape"][1:])
            if tuple(each["shape"]) != shape:
                self._interpreter.resize_tensor_input(each["index"], shape, strict=True)
        self._interpreter.allocate_tensors()
        rng = np.random.default_rng(0)
        for each in self._interpreter.get_input_details():
            self._interpreter.set_tensor(each["index"], _random(each["dtype"], each["shape"], rng))
        self.call = self._interpreter.invoke

    def run(self, inputs: Any) -> Any:
        """Return the first output for a batch of images `N x H x W x C`, the only input."""
        (images,) = inputs.values()
        self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], images)
        self.call()
        return self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])


def check_delegate(data: Any, delegate: Any) -> None:
    """Load a delegate. Raises any exception if it does not load."""
    load_delegate(**delegate)


FUNCTIONS = {"check_delegate": check_delegate}


def _random(dtype: Any, shape: Any, rng: Any) -> Any:
    """Return random values of an input: bytes, or floats around one.

    A chain of kernels multiplies floats; small ones would become denormal, which is slow.
    """
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(np.uint8 if dtype is np.uint8 else np.int8)
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return rng.uniform(0.75, 1.25, tuple(shape)).astype(np.float32)


def _count_operators(interpreter: Interpreter) -> tuple[dict[str, int], dict[str, int]]:
    """Return the number of operators by name, of the file and of those that a delegate took.

    The interpreter keeps the operators that a delegate took beside an operator that runs them.
    """
    nodes = interpreter._get_ops_details()
    own = [node for node in nodes if node["op_name"] != "DELEGATE"]
    producers = {tensor: node for node in own for tensor in node["outputs"]}
    taken: dict[int, str] = {}
    for part in nodes:
        if part["op_name"] != "DELEGATE":
            continue
        waiting, begins = list(part["outputs"]), set(part["inputs"])
        while waiting:
            node = producers.get(tensor := waiting.pop())
            if tensor not in begins and node is not None and node["index"] not in taken:
                taken[node["index"]] = node["op_name"]
                waiting.extend(node["inputs"])
    return dict(Counter(node["op_name"] for node in own)), dict(Counter(taken.values()))


open_file = Session
