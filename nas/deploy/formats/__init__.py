"""The file formats that a model is exported to, by name.

A format is a subclass of `nas.deploy.formats.base.ModelFormat`, named in the entry point group
`nas.formats`. Its module imports the package that the format needs only inside its methods, so that
all formats can be listed without any of them.
"""

from __future__ import annotations

from nas.deploy.formats.base import LoadedModel, ModelFormat
from nas.plugins import PlugInPoint, is_subclass_of

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
    return FORMATS.names


def all_formats() -> list[ModelFormat]:
    """Return all formats, whether their packages are installed or not.

    A plug-in that does not load is left out, with a warning.
    """
    return [each() for each in FORMATS.load_all().values()]


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
    found: ModelFormat = FORMATS.load(name)()
    return found
