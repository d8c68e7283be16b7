"""LiteRT's interpreter with its inputs in place, in which networks and kernels run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from nas.latency import timing


class Session:
    """A loaded file, whose inputs hold random values.

    Args:
        data: contents of the file.
        threads: number of threads that run one operator.
        batch: number of images that run at once.
    """

    def __init__(self, data: bytes, threads: int, batch: int = 1) -> None:
        # The threads of XNNPACK stay on the cores on which the thread that made them was.
        with timing.pinned(threads):
            self._interpreter = Interpreter(model_content=data, num_threads=threads)
            for each in self._interpreter.get_input_details():
                shape = (batch, *each["shape"][1:])
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
        invoke = self._interpreter.invoke
        seconds = []
        for _ in range(samples):
            invoke()
            start = time.perf_counter()
            for _ in range(calls):
                invoke()
            seconds.append((time.perf_counter() - start) / calls)
        return seconds


def _random(
    dtype: type[np.generic], shape: Sequence[int], rng: np.random.Generator
) -> NDArray[Any]:
    """Return random values of an input: bytes, or floats around one.

    A chain of kernels multiplies floats; small ones would become denormal, which is slow.
    """
    if dtype is np.int8:
        return rng.integers(-128, 128, shape, np.int8)
    return rng.uniform(0.75, 1.25, tuple(shape)).astype(np.float32)
