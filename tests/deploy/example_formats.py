"""Formats without a package: a file holds a matrix, and its runtime is NumPy in several moods."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nas.deploy.formats import LoadedModel, ModelFormat
from nas.errors import ExportError

CLASSES = 3


class LoadedMatrix(LoadedModel):
    """Logits are products of the flat image with a matrix."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix

    def logits(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) @ self.matrix

    def runner(self, image: np.ndarray) -> Callable[[], object]:
        return lambda: self.logits(image)


class Matrix(ModelFormat):
    name = "matrix"
    file_name = "model.npy"
    packages = ("numpy",)

    def write(self, model, quantised, path: Path) -> None:
        raise NotImplementedError

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        return LoadedMatrix(np.load(path))


class Printing(Matrix):
    """A runtime that writes to stdout, from Python and from C."""

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        print("loading", flush=True)
        os.write(1, b"still loading\n")
        return super().load(path, threads)


class Large(Matrix):
    """A runtime that needs 64 MiB."""

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        np.ones(8 << 20)
        return super().load(path, threads)


class Refusing(Matrix):
    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        raise ExportError("it is no matrix", remedy="Write one.")


class Raising(Matrix):
    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        raise KeyError("opset")


class Crashing(Matrix):
    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        print("bad instruction", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().load(path, threads)


class Hanging(Matrix):
    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        time.sleep(600)
        return super().load(path, threads)


class Int8Matrix(Matrix):
    name = "matrix-int8"
    precision = "int8"
    quantised = 0

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        return LoadedInt8Matrix(np.load(path), self.quantised)


class FastInt8Matrix(Int8Matrix):
    quantised = 1


class LoadedInt8Matrix(LoadedMatrix):
    def __init__(self, matrix: np.ndarray, quantised: int) -> None:
        super().__init__(matrix)
        self.quantised = quantised

    def quantised_layers(self) -> tuple[int, int]:
        return self.quantised, 1


class Elsewhere(Matrix):
    """A format whose runtime does not exist for this system."""

    name = "elsewhere"

    @property
    def runs_here(self) -> bool:
        return False
