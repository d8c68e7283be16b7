"""`ModelFormat`: what every file format of an exported model provides."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nas.deploy.model import TrainedModel
from nas.deploy.quantisation import QuantisedNetwork
from nas.errors import RequestError


class LoadedModel(ABC):
    """An exported file, loaded by the runtime that it is made for."""

    @property
    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the packages that run the file, by name."""

    @abstractmethod
    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits `N x classes` of normalised images `N x C x H x W`."""

    @abstractmethod
    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """Return a function that classifies one image, `1 x C x H x W`, and does nothing else.

        Conversions of the input that a deployed application would not need, such as one of the
        layout, are done before, so that the duration of a call is the latency of the network.
        """

    def quantised_layers(self) -> tuple[int, int] | None:
        """Return how many of how many convolutions and linear layers run in int8.

        The runtime's own optimised model is counted where the runtime shows it; None if it shows
        nothing.
        """
        return None


class ModelFormat(ABC):
    """A file format: it writes a trained model to a file, and loads the file again.

    Attributes:
        name: name of the format on the command line.
        file_name: name of the file in a model folder.
        precision: type of weights and activations.
        packages: packages to import, by the name that `import` takes.
        extra: optional dependency of this package that installs them; empty if they are always
            installed.
        runs_here: whether `load` works on this operating system.
        tolerance: largest difference between the logits of the file and those of torch, as a share
            of the standard deviation of torch's logits. For int8, the difference from the logits of
            the quantised network is compared.
    """

    name: ClassVar[str]
    file_name: ClassVar[str]
    precision: ClassVar[Literal["float32", "int8"]] = "float32"
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-3

    @property
    def runs_here(self) -> bool:
        """Whether the runtime of the format exists for this operating system."""
        return True

    def require_packages(self) -> None:
        """Raise RequestError with the command that installs what is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise RequestError(
                f"Format '{self.name}' needs {', '.join(missing)}, which is not installed.",
                remedy=f"pip install 'hardware-nas[{self.extra}]'",
            )

    @abstractmethod
    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """Write a model to a file.

        Args:
            model: the trained model.
            quantised: its int8 version, for formats of precision int8; None otherwise.
            path: path of the file; the caller renames it when it was verified.

        Raises:
            ExportError: the format has no counterpart of an op; the message names the op and a
                format that has one.
        """

    @abstractmethod
    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        """Load a file that `write` wrote.

        Raises:
            ExportError: the runtime refuses the file.
        """
