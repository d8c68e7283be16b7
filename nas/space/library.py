"""Loads a search space by name or from a Python file, and finds published networks by name."""

from __future__ import annotations

import os
import runpy
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from nas import files
from nas.errors import SpaceError, printable, shortened_text
from nas.files.documents import read_bytes, shortened
from nas.files.paths import expanded, in_folder
from nas.space.reference import Reference, unknown_reference_error
from nas.space.restriction import AT_WIDTHS, WITHIN
from nas.space.space import SearchSpace
from nas.space.user_code import user_code

MAX_FILE_BYTES = 4 << 20
"""Largest space file that is read: the files that ship with the package have at most 6 kB."""


def space_names() -> list[str]:
    """Return the names of the spaces that ship with the package.

    Example:
        >>> "mobilenet" in space_names()
        True
    """
    return sorted(path.stem for path in files.packaged_folder("search_spaces").glob("*.py"))


def path_of(name_or_path: str | Path) -> Path:
    """Return the path of a space's file. Raises SpaceError, naming the spaces there are."""
    text = expanded(str(name_or_path))
    if text.endswith(".py"):
        if os.path.isfile(text):
            return Path(text)
        if os.path.exists(text):
            raise SpaceError(f"{text} is no regular file.", remedy="Give a Python file.")
        raise SpaceError(
            f"There is no space file {shortened_text(printable(text))}{in_folder(text)}."
        )
    if text in space_names():
        return files.packaged_folder("search_spaces") / f"{text}.py"
    raise _unknown_space_error(text)


def _unknown_space_error(name: str) -> SpaceError:
    return SpaceError(
        f"There is no space {shortened(name)}.",
        remedy=f"Spaces: {', '.join(space_names())}; or give the path of a Python file.",
    )


def ships(name: str) -> bool:
    """Return whether the package has a space of this name, see `load_space`."""
    restriction = _restriction(name)
    if restriction is None:
        return name in space_names()
    spaces = map(load_definition, space_names())
    return any(restriction.network == row.name for space in spaces for row in space.references)


def source_of(
    name_or_path: str | Path,
    restricted: str | None = None,
    resolutions: Sequence[float] | None = None,
    trained: Reference | None = None,
    exit_stage: str | None = None,
) -> bytes:
    """Return the contents of a Python file that defines a space.

    Args:
        name_or_path: see `load_space`.
        restricted: name of a restriction of the space, such as `within_mobilenet_v2_1.0`, which the
            file then makes.
        resolutions: shares of the image size that the file gives the space, see
            `SearchSpace.at_resolutions`; None for its own.
        trained: trained network of a run that the file adds, see `SearchSpace.with_trained`.
        exit_stage: stage behind which its networks have an exit; None for none.

    Raises SpaceError as `load_definition` does, but does not run the space's own file.
    """
    named = _restriction(name_or_path)
    path = path_of(find_reference(named.network)[0].name if named else name_or_path)
    further = _restriction(restricted) if restricted else None
    calls = [named.call if named else ""]
    if resolutions is not None:
        calls.append(f".at_resolutions({tuple(resolutions)})")
    if trained is not None:
        arguments = (trained.name, dict(trained.choices), trained.resolution)
        calls.append(f".with_trained{arguments!r}")
    calls.append(further.call if further else "")
    calls.append(f".with_exit({exit_stage!r})" if exit_stage else "")
    line = f"\n\nSPACE = SPACE{''.join(calls)}\n" if any(calls) else ""
    return path.read_bytes() + line.encode()


class _Restriction(NamedTuple):
    """The arguments of `SearchSpace.within`."""

    network: str
    same_widths: bool

    @property
    def call(self) -> str:
        return f'.within("{self.network}"{", same_widths=True" if self.same_widths else ""})'


def _restriction(name_or_path: str | Path) -> _Restriction | None:
    """Return what a name such as `within_mobilenet_v2_1.0` means; None for other names."""
    text = str(name_or_path)
    for start in (WITHIN, AT_WIDTHS):
        if text.startswith(start) and not text.endswith(".py"):
            return _Restriction(text.removeprefix(start), start == AT_WIDTHS)
    return None


def load_space(
    name_or_path: str | Path,
    *,
    image_size: int | None = None,
    channels: int = 3,
    classes: int = 10,
) -> SearchSpace:
    """Load a search space and adapt it to the images and classes of a dataset.

    Args:
        name_or_path: the name of a space that ships with the package (see `space_names`), or
            `within_` or `at_widths_of_` and the name of a network that they have (see
            `SearchSpace.within`), or the path of a Python file that defines `SPACE`. Such a file is
            run; see `load_definition`.
        image_size: height and width of the images in pixels; by default that of the space's file.
        channels: channels of the images.
        classes: how many classes the networks tell apart.

    Raises SpaceError as `load_definition` does, and for a space without a classifier.

    Example:
        >>> load_space("mobilenet", image_size=32).input_shape
        (3, 32, 32)
    """
    space = load_definition(name_or_path).adapt(
        image_size=image_size, channels=channels, classes=classes
    )
    space.require_classifier()
    return space


def load_shipped(
    name: str, *, image_size: int | None = None, channels: int = 3, classes: int = 10
) -> SearchSpace:
    """Load a search space that ships with the package, by a name that stands in a file.

    Whatever the name is, no other code runs. See `load_space` for the arguments.

    Raises SpaceError for another name.
    """
    if not ships(name):
        raise _unknown_space_error(name)
    return load_space(name, image_size=image_size, channels=channels, classes=classes)


def load_definition(name_or_path: str | Path) -> SearchSpace:
    """Load a search space as its file defines it, with the file's own input size and classes.

    A space file is code and is run: load only files that you trust, which also holds for the copies
    in a run folder that somebody else made. If a file equals the one of its name that ships with
    the package, the shipped one is run instead. What a file prints goes to stderr.

    Args:
        name_or_path: see `load_space`.

    Raises SpaceError where there is no such space, the file does not run or defines no `SPACE`, or
    the table makes no network; the message names the file.

    Example:
        >>> load_definition("mobilenet").classes
        1000
    """
    restriction = _restriction(name_or_path)
    if restriction is not None:
        whole = find_reference(restriction.network)[0]
        return whole.within(restriction.network, same_widths=restriction.same_widths)
    path = path_of(name_or_path)
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
    except OSError as error:
        raise SpaceError(f"{path} cannot be read: {error.strerror}.") from error
    shipped = files.packaged_folder("search_spaces") / path.name
    if shipped.is_file() and shipped.read_bytes() == content:
        return _shipped(shipped)
    return _run(path)


@cache
def _shipped(path: Path) -> SearchSpace:
    """Return the space of a file that ships, the same one each time: a space caches a lot."""
    return _run(path)


def _run(path: Path) -> SearchSpace:
    """Return the space that a file defines. Raises SpaceError if it defines none."""
    with user_code(str(path)), _same_working_folder():
        try:
            space = runpy.run_path(str(path)).get("SPACE")
        except SpaceError as error:
            raise SpaceError(f"{path}: {error.message}", remedy=error.remedy) from error
    if not isinstance(space, SearchSpace):
        came = "defines no SPACE" if space is None else f"defines SPACE as {shortened(space)}"
        raise SpaceError(f"{path} {came}.", remedy="Add SPACE = SearchSpace(...).")
    return space


@contextmanager
def _same_working_folder() -> Iterator[None]:
    """Return to the working folder afterwards, which the relative paths of a command refer to."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # the folder was deleted, so there are no relative paths
        yield
        return
    with chdir(folder):
        yield


def find_reference(name: str) -> tuple[SearchSpace, Reference]:
    """Return a published network of any space that ships, with the space as its file defines it.

    Raises SpaceError for an unknown name; the message has known names that are spelled alike.

    Example:
        >>> space, reference = find_reference("mobilenet_v2_1.0")
        >>> space.name, reference.params
        ('mobilenet', 3504872)
    """
    spaces = [load_definition(each) for each in space_names()]
    for space in spaces:
        for reference in space.references:
            if reference.name == name:
                return space, reference
    known = [each.name for space in spaces for each in space.references]
    raise unknown_reference_error("", name, known)
