"""LiteRT's interpreter with its inputs in place, in which networks and kernels run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.latency import timing

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # The images of some boards have LiteRT under its former name.
    from tflite_runtime.interpreter import Interpreter


class Session:
    """A loaded file, whose inputs hold random values.

    Args:
        data: contents of the file.
        threads: number of threads that run one operator.
        batch: number of images that run at once.
        delegate: delegate that runs what it can; XNNPACK takes the rest.

    Attributes:
        operators: number of operators of the file by name.
        delegated: number of those operators that the delegate runs.
    """

    def __init__(self, data: bytes, threads: int, batch: int = 1, delegate: Any = None) -> None:
        # The threads of XNNPACK stay on the cores on which the thread that made them was.
        with timing.pinned(threads):
            self._interpreter = Interpreter(
                model_content=data,
                num_threads=threads,
                experimental_delegates=None if delegate is None else [delegate],
            )
            # XNNPACK takes its operators later.
            self.operators, self.delegated = _count_operators(self._interpreter)
            for each in self._interpreter.get_input_details():
                shape = (batch, *each["shape"][1:])
                if tuple(each["shape"]) != shape:
                    self._interpreter.resize_tensor_input(each["index"], shape, strict=True)
            self._interpreter.allocate_tensors()
        rng = np.random.default_rng(0)
        for each in self._interpreter.get_input_details():
            self._interpreter.set_tensor(each["index"], _random(each["dtype"], each["shape"], rng))

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the first output for a batch of images `N x H x W x C`."""
        self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], images)
        self._interpreter.invoke()
        output = self._interpreter.get_output_details()[0]["index"]
        result: NDArray[np.float32] = self._interpreter.get_tensor(output)
        return result

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time runs on inputs that are already in place. See `timing.Evaluate`."""
        return timing.call_seconds(self._interpreter.invoke, calls, samples)


def _random(
    dtype: type[np.generic], shape: Sequence[int], rng: np.random.Generator
) -> NDArray[Any]:
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
