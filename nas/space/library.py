"""Finding a space: by the name of one that ships, or by the path of a Python file."""

from __future__ import annotations

import runpy
from pathlib import Path

from nas import resources
from nas.errors import SpaceError
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

    Raises:
        SpaceError: there is no such space, the file does not run, or it defines no `SPACE`.
    """
    path = path_of(name_or_path)
    try:
        space = runpy.run_path(str(path)).get("SPACE")
    except SyntaxError as error:
        raise SpaceError(f"{path}, line {error.lineno}: {error.msg}.") from error
    except SpaceError:
        raise
    except Exception as error:
        raise SpaceError(f"{path} does not run: {type(error).__name__}: {error}.") from error
    if not isinstance(space, SearchSpace):
        raise SpaceError(f"{path} defines no SPACE.", remedy="Add SPACE = SearchSpace(...).")
    return space
