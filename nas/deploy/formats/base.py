"""`ModelFormat`: what every file format of an exported model provides."""

from __future__ import annotations

import logging
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nas.errors import ExportError, NasError, RequestError, first_line
from nas.files.foreign import NOTHING_RUNS, may_run_from
from nas.latency.timing import Evaluate, call_seconds, pinned

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel
    from nas.graph import Op
    from nas.quantisation.network import QuantisedNetwork
    from nas.run.settings import DeviceSettings

PREPROCESSING_KEY = "preprocessing"
"""Name under which formats with metadata keep `nas.run.model_card.Preprocessing.embedded`."""


class LoadedModel(ABC):
    """An exported file, loaded by the runtime that it is made for."""

    @abstractmethod
    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits `N x classes` of a batch of normalised images, `N x C x H x W`."""

    @abstractmethod
    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """Return a function that classifies one image, `1 x C x H x W`, and does nothing else.

        Conversions of the input that a deployed application would not need, such as one of the
        layout, are done before, so that the duration of a call is the latency of the network.
        """

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """Return a function that times `runner` as a search times networks of the runtime.

        Override it if the runtime times by itself, without what a call from Python takes.
        """
        return partial(call_seconds, self.runner(image))

    def timing_context(self, threads: int) -> AbstractContextManager[None]:
        """Return the context in which `runner` and `evaluator` are used, see `Runtime`."""
        return pinned(threads)

    def reload(self) -> bool:
        """Load the file anew if that needs no file here, see `CompiledNetwork.reloaded`."""
        return False

    @property
    def versions(self) -> Mapping[str, str] | None:
        """Versions of what runs the file, by name; None for those of its format here."""
        return None

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
        file_name: name of the file in a model folder, or of the folder if a model is one.
        companions: names of the files that belong to it and are written beside it.
        device_files: names of the files that `write` made of it for the device of the model, see
            `nas.latency.runtime.Runtime.device_files`; empty before.
        precision: type of weights and activations.
        packages: packages that run the file, by the name that `import` takes.
        runtimes: runtimes, as `[device] runtime` names them, that run its files. A search for one
            of these with a `dtype` of `precision` finds networks for the format.
        device: settings of `[device]` that a run must have for the format; empty if any device
            will do.
        extra: optional dependency of this package that installs them; empty if they are always
            installed.
        requirements: packages with which `run.py` runs its files, as pip takes them; empty if it
            does not run them.
        script_loader: text of a function with which `run.py` loads its files; empty if
            `nas.deploy.script_loaders` has it.
        tolerance: largest difference between the logits of the file and those of torch, as a share
            of the standard deviation of torch's logits. For int8, the difference from the logits of
            the quantised network is compared, on 99% of the images.
    """

    name: str
    file_name: str
    companions: tuple[str, ...] = ()
    precision: Literal["float32", "int8"] = "float32"
    packages: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    device: ClassVar[Mapping[str, str]] = {}
    extra: str = ""
    requirements: tuple[str, ...] = ()
    script_loader: str = ""
    tolerance: float = 1e-3
    device_files: tuple[str, ...] = ()

    @property
    def runs_here(self) -> bool:
        """Whether the runtime of the format exists for this operating system."""
        return True

    def can_run(self, path: Path) -> bool:
        """Return whether this machine runs a file: `runs_here`, and not made for another kind."""
        return self.runs_here

    def runs_on(self, device: str) -> bool:
        """Return whether it can be run on another device; see `load_on` for the argument."""
        return type(self).load_on is not ModelFormat.load_on

    def emulator(self, path: Path) -> str:
        """Return the name of an emulator here that runs a file of another kind of machine.

        Empty without one. The file is then verified, but not timed.
        """
        return ""

    @property
    def missing_packages(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]

    @property
    def install_command(self) -> str:
        """The command that installs the packages."""
        return (
            f"pip install 'hardware-nas[{self.extra}]'"
            if self.extra
            else "pip install hardware-nas"
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that run the file, by name."""
        return package_versions(self.packages)

    def require_packages(self) -> None:
        """Raise RequestError with the command that installs what is missing."""
        if missing := self.missing_packages:
            raise RequestError(
                f"Format '{self.name}' needs {', '.join(missing)}, which is not installed.",
                remedy=self.install_command,
            )

    def is_made_for(self, device: DeviceSettings) -> bool:
        """Return whether an export of a run on a device writes it if no format is named."""
        return device.runtime in self.runtimes and self.precision in device.dtypes

    def check_device(self, runtime: str, target: str, dtype: str, threads: int = 1) -> None:
        """Raise RequestError if no file can be written for a run on this device.

        Args:
            runtime, target, dtype, threads: settings of the device, as `[device]` of a job names
                them.
        """
        given = {"runtime": runtime, "target": target, "dtype": dtype}
        if any(given[name] != value for name, value in self.device.items()):
            needed, came = (
                ", ".join(f"{name} {value}" for name, value in settings.items())
                for settings in (self.device, given)
            )
            raise RequestError(
                f"Format '{self.name}' needs a device with {needed}; the run is for {came}.",
                remedy="Export another format, such as onnx.",
            )

    @abstractmethod
    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """Write a model to a file, and its `companions` to the same folder.

        Args:
            model: the trained model.
            quantised: its int8 version, for formats of precision int8; None otherwise.
            path: path of the file. Its name is `file_name`; its folder is one for new files, from
                which the caller moves them when they were verified.

        Raises:
            ExportError: the format has no counterpart of an op; the message names the op and a
                format that has one.
            Exception: the package cannot write the network.
        """

    @abstractmethod
    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        """Load a file that `write` wrote. Raises any exception if the runtime refuses it."""

    def load_on(self, device: str, path: Path, threads: int = 1) -> LoadedModel:
        """Load a file on another device.

        Args:
            device: the device, a target with an address (`nas.transports`).
            path, threads: see `load`.

        Raises:
            RequestError: the format has no such runtime, or the device lacks it.
            DeviceError: the device is not there.
        """
        raise RequestError(f"Format '{self.name}' is not run on other devices.")

    def open(self, path: Path, threads: int = 1, device: str = "") -> LoadedModel:
        """Load a file here or on another device. Raises ExportError if the runtime refuses it."""
        with silenced():
            try:
                return self.load_on(device, path, threads) if device else self.load(path, threads)
            except (NasError, OSError):
                raise
            # Packages raise errors of any class.
            except Exception as error:
                reason, remedy = first_line(error), "Export the model again."
                if path.suffix == ".so" and not may_run_from(path):
                    reason, remedy = NOTHING_RUNS, "Copy the model to another disk."
                raise ExportError(
                    f"Format '{self.name}' does not load {path}: {reason}.", remedy=remedy
                ) from error


def missing_op(format_name: str, op: Op) -> ExportError:
    """Return the error for an op that a format has no counterpart of."""
    alternative = "onnx" if format_name == "torch" else "torch"
    return ExportError(
        f"Format '{format_name}' has no counterpart of op '{op.kind}' with output "
        f"{'x'.join(map(str, op.shape))}.",
        remedy=f"Format '{alternative}' has one.",
    )


@contextmanager
def silenced() -> Iterator[None]:
    """Silence the warnings and log messages of packages in a block; they are about themselves."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of installed packages, by the name of their distribution.

    Args:
        packages: packages by the name that `import` takes.
    """
    versions: dict[str, str] = {}
    for own in (each for package in packages for each in _distributions(package)):
        versions.setdefault(own.name, own.version)  # Python imports the first of several.
    return versions


@cache
def _distributions(package: str) -> list[metadata.Distribution]:
    """Return the installed distributions that hold a package."""
    # Their lists of files are searched, not parsed, which takes ten times as long.
    holds = re.compile(rf"^{re.escape(package)}(?:[/.]|$)", re.MULTILINE).search
    texts = ("RECORD", "top_level.txt")
    return [
        each
        for each in metadata.distributions()
        if any(holds(each.read_text(name) or "") for name in texts)
    ]
