"""Finding a space or a published network: by the name of one that ships, or in a Python file."""

from __future__ import annotations

import runpy
from pathlib import Path

from nas import resources
from nas.errors import SpaceError
from nas.space.reference import Reference, no_reference
from nas.space.space import SearchSpace


def names() -> list[str]:
    """The spaces that ship with the package."""
    return sorted(path.stem for path in resources.folder("search_spaces").glob("*.py"))


def path_of(name_or_path: str | Path) -> Path:
    """The file of a space. Raises SpaceError, naming the spaces there are."""
    text = str(name_or_path)
    if text.endswith(".py"):
        path = Path(text)
        if path.is_file():
            return path
        raise SpaceError(f"There is no space file {text}.")
    if text in names():
        return resources.folder("search_spaces") / f"{text}.py"
    raise SpaceError(
        f"There is no space {text!r}.",
        remedy=f"Spaces: {', '.join(names())}; or give the path of a Python file.",
    )


def load(name_or_path: str | Path) -> SearchSpace:
    """Loads a space by its name or from a Python file that defines `SPACE`.

    A space file is code and is run: load only files that you trust.

    Raises SpaceError where there is no such space, the file does not run or defines no `SPACE`, or
    the table makes no network; the message names the file.
    """
    path = path_of(name_or_path)
    try:
        space = runpy.run_path(str(path)).get("SPACE")
    except SyntaxError as error:
        raise SpaceError(f"{path}, line {error.lineno}: {error.msg}.") from error
    except SpaceError as error:
        raise SpaceError(f"{path}: {error.message}", remedy=error.remedy) from error
    except Exception as error:
        raise SpaceError(
            f"{path}{_line(error, path)} does not run: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(space, SearchSpace):
        raise SpaceError(f"{path} defines no SPACE.", remedy="Add SPACE = SearchSpace(...).")
    return space


def references() -> list[tuple[str, Reference]]:
    """The published networks of the spaces that ship, each with its space's name."""
    return [(space.name, each) for space in map(load, names()) for each in space.references]


def find_reference(name: str) -> tuple[SearchSpace, Reference]:
    """A published network of any space that ships, and the space.

    Raises SpaceError for an unknown name; the message has those that are spelled alike.
    """
    spaces = [load(each) for each in names()]
    for space in spaces:
        for reference in space.references:
            if reference.name == name:
                return space, reference
    raise no_reference("", name, [each.name for space in spaces for each in space.references])


def _line(error: Exception, path: Path) -> str:
    """Where in a file an error came up: the innermost of its lines that was running."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            found = f", line {trace.tb_lineno},"
        trace = trace.tb_next
    return found
