"""Formats of runtimes that compile ONNX models: each such runtime brings one of its own."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import LoadedModel, ModelFormat
from nas.deploy.formats.onnx import Onnx
from nas.errors import RequestError
from nas.latency.timing import Evaluate
from nas.runtimes.model_files import ModelFileNetwork, ModelFileRuntime

_LOADER = """
def load_{name}(path: Path) -> LogitsOf:
{functions}
    handle = compile_model(path.read_bytes())
    return lambda image: np.asarray(run_model(handle, image), np.float32).reshape(-1)


LOADERS["{file}"] = load_{name}"""


class RuntimeFormat(Onnx):
    """An ONNX file for one image, which the package of a runtime compiles and runs.

    Args:
        runtime: the runtime.
        target: one of its targets. The format of the first one has the name of the runtime; those
            of the others have their target in their name.
    """

    batch = 1

    def __init__(self, runtime: type[ModelFileRuntime], target: str) -> None:
        self._runtime, self._target, self.tolerance = runtime, target, runtime.tolerance
        is_first = target == runtime.capabilities.targets[0]
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", target).strip("-")
        self.name = runtime.name if is_first else f"{runtime.name}-{slug}"
        self.file_name, self.packages = f"model-{self.name}.onnx", (runtime.package,)
        self.runtimes = (runtime.name,)
        self.script_loader = self._loader()
        self.requirements = (runtime.package,) if self.script_loader else ()

    @property
    def runs_here(self) -> bool:
        """Whether the runtime has outputs. Otherwise, the file is neither verified nor timed."""
        return self._runtime.run_model is not ModelFileRuntime.run_model

    def check_device(self, runtime: str, target: str, dtype: str, threads: int = 1) -> None:
        """See `ModelFormat.check_device`. The file is verified and timed on its target."""
        super().check_device(runtime, target, dtype, threads)
        if runtime in self.runtimes and target != self._target:
            raise RequestError(
                f"Format '{self.name}' is for target '{self._target}'; the run is for '{target}'.",
                remedy="`nas doctor` lists the formats of its other targets.",
            )

    @property
    def install_command(self) -> str:
        """See `ModelFormat`."""
        return f"pip install {self._runtime.package}"

    load_on = ModelFormat.load_on  # The package of a vendor is not on another device.

    def _loader(self) -> str:
        """Return a function made of those of the runtime; "" if a script cannot have their text."""
        names = ("compile_model", "run_model")
        own = [inspect.getattr_static(self._runtime, name) for name in names]
        if not (self.runs_here and all(isinstance(each, staticmethod) for each in own)):
            return ""
        try:
            # What the module of the runtime imports or defines is not in the script.
            if any(inspect.getclosurevars(each.__func__).globals for each in own):
                return ""
            texts = [textwrap.dedent(inspect.getsource(each.__func__)) for each in own]
            functions = "\n".join(text[text.index("def ") :] for text in texts)
        except (TypeError, ValueError, OSError):  # It is a function without text, or a lambda.
            return ""
        name = re.sub(r"\W", "_", self.name)
        functions = textwrap.indent(functions, "    ")
        return _LOADER.format(name=name, functions=functions, file=self.file_name).strip()

    def load(self, path: Path, threads: int = 1) -> RuntimeModel:
        """See `ModelFormat.load`."""
        runtime = self._runtime(target=self._target, threads=threads)
        runtime.open()
        return RuntimeModel(runtime, runtime.compile_model(path.read_bytes()))


class RuntimeModel(ModelFileNetwork, LoadedModel):
    """A file that the package of a runtime compiled. Its arguments are those of the base class."""

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        return np.stack([self.run(image) for image in images])

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        return partial(self.run, image[0])

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """See `LoadedModel.evaluator`. The package times by itself, as in a search."""
        return self.evaluate
