"""Networks as shared libraries, which TVM loads and runs in any process.

import tvm

library = tvm.runtime.load_module("model.so")
network = tvm.relax.VirtualMachine(library, tvm.cpu())
logits = network["main"](tvm.runtime.tensor(image)).numpy()  # image: 1 x H x W x C, float32
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nas.latency.timing import Evaluate
from nas.runtimes.tvm.device import use_threads


class Library:
    """A network in a shared library.

    Args:
        path: the library.
        threads: number of threads that run one kernel, if the library was made for several.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        use_threads(threads)
        self._device = tvm.cpu()
        self._vm = relax.VirtualMachine(tvm.runtime.load_module(str(path)), self._device)

    def text(self, name: str) -> str:
        """Return a text that was written into the library."""
        return str(self._vm[name]())

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs `1 x classes` for an image `1 x C x H x W`."""
        output: NDArray[np.float32] = self._vm["main"](self._tensor(image)).numpy()
        return output

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """Return a function that runs the network on an image `1 x C x H x W`."""
        self._vm.set_input("main", self._tensor(image))
        return lambda: self._vm.invoke_stateful("main")

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """Return a function that times the network on an image `1 x C x H x W`, without Python."""
        self._vm.set_input("main", self._tensor(image))

        def evaluate(calls: int, samples: int) -> list[float]:
            timer = self._vm.time_evaluator(
                "invoke_stateful", self._device, number=calls, repeat=samples
            )
            return [float(value) for value in timer("main").results]

        return evaluate

    def _tensor(self, image: NDArray[np.float32]) -> tvm.runtime.Tensor:
        return tvm.runtime.tensor(np.ascontiguousarray(image.transpose(0, 2, 3, 1)), self._device)
