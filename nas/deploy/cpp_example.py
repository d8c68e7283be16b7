"""C++ programs beside `run.py` that classify an image with the runtimes of the exported files."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import jinja2
from PIL import ImageColor

from nas.deploy.folder import ModelFolder
from nas.errors import ExportError, RequestError, RunFolderError
from nas.run.model_card import Preprocessing

_SOURCES = Path(__file__).with_name("cpp")

_PROGRAMS = {
    name: f"classify_{name.removesuffix('-int8')}.cpp"
    for name in ("c", "onnx", "onnx-int8", "tflite", "tflite-int8", "tvm")
}
"""The program that runs a file, by format."""

_CONSTANTS = "preprocessing.h"

FILES = frozenset({"CMakeLists.txt", "classify.h", _CONSTANTS, *_PROGRAMS.values()})
"""Names of all files of the example in a model folder."""


def require_program(language: str, formats: Collection[str]) -> None:
    """Raise RequestError for another language than "cpp", or if no format has a program."""
    if language != "cpp":
        raise RequestError(f"There is no example in {language!r}.", remedy="Give cpp.")
    if not any(name in _PROGRAMS for name in formats):
        raise RequestError(
            f"None of the formats {', '.join(formats)} has an example in C++.",
            remedy=f"Formats with one: {', '.join(_PROGRAMS)}.",
        )


def is_in(folder: ModelFolder) -> bool:
    """Return whether an export wrote an example into a model folder."""
    try:
        return _CONSTANTS in folder.sums()
    except (RunFolderError, ExportError):  # There was no export, or its list is damaged.
        return False


def write_example(folder: Path, formats: Collection[str], preprocessing: Preprocessing) -> None:
    """Write the programs for exported formats with what they share; nothing if they have none.

    Args:
        folder: folder for the files.
        formats: names of the formats.
        preprocessing: how an image becomes the input.
    """
    programs = {_PROGRAMS[name] for name in formats if name in _PROGRAMS}
    if not programs:
        return
    for name in (*programs, "CMakeLists.txt", "classify.h"):
        (folder / name).write_bytes((_SOURCES / name).read_bytes())
    background = ImageColor.getrgb(preprocessing.reading.background)
    write_source(_SOURCES / f"{_CONSTANTS}.j2", folder, how=preprocessing, background=background)


def write_source(template: Path, folder: Path, **values: object) -> None:
    """Write a source in C or C++ from its template, whose name it has without `.j2`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["literal"] = _literal
    text = environment.get_template(template.name).render(values)
    (folder / template.stem).write_text(text, encoding="utf-8")


def _literal(text: str) -> str:
    """Return a text as a literal of C and C++."""
    escaped = re.sub(r'[\x00-\x1f\x7f"\\?]', lambda match: f"\\{ord(match[0]):03o}", text)
    return f'"{escaped}"'
