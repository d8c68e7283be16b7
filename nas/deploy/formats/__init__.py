"""The file formats that a model is exported to, by name.

A format is a subclass of `nas.deploy.formats.base.ModelFormat`, named in the entry point group
`nas.formats`. Its module imports the package that the format needs only inside its methods, so that
all formats can be listed without any of them. A runtime that compiles ONNX models brings one, too.
"""

from __future__ import annotations

from contextlib import suppress

from nas.deploy.formats.base import LoadedModel, ModelFormat
from nas.deploy.formats.runtime import RuntimeFormat
from nas.errors import RequestError
from nas.latency import installed_runtimes
from nas.plugins import PlugInPoint, is_subclass_of
from nas.runtimes.model_files import ModelFileRuntime

FORMATS = PlugInPoint(
    "nas.formats",
    "format",
    is_subclass_of(ModelFormat),
    "subclass of nas.deploy.formats.ModelFormat",
)

__all__ = [
    "LoadedModel",
    "ModelFormat",
    "all_formats",
    "find_format",
    "format_names",
    "model_format",
]


def format_names() -> list[str]:
    """Return the names of all formats."""
    return sorted({*FORMATS.names, *_runtime_formats()})


def all_formats() -> list[ModelFormat]:
    """Return all formats, whether their packages are installed or not.

    A plug-in that does not load is left out, with a warning.
    """
    return [*(each() for each in FORMATS.load_all().values()), *_runtime_formats().values()]


def model_format(name: str) -> ModelFormat:
    """Return a format by its name.

    Raises:
        RequestError: there is no such format, or its package is not installed. The remedy is the
            command that installs the package.
    """
    result = find_format(name)
    result.require_packages()
    return result


def find_format(name: str) -> ModelFormat:
    """Return a format, whether its package is installed or not. Raises RequestError."""
    own = None if name in FORMATS.names else _runtime_formats().get(name)
    found: ModelFormat = own or FORMATS.load(name)()
    return found


def _runtime_formats() -> dict[str, ModelFormat]:
    """Return the formats of runtimes, by name; `nas.formats` may have another of the name."""
    formats: dict[str, ModelFormat] = {}
    for name in installed_runtimes.RUNTIMES.names:
        with suppress(RequestError):  # Its package does not load, as `nas doctor` says.
            runtime = installed_runtimes.runtime_class(name)
            if issubclass(runtime, ModelFileRuntime):
                own = (RuntimeFormat(runtime, each) for each in runtime.capabilities.targets)
                formats |= {each.name: each for each in own if each.name not in FORMATS.names}
    return formats
