"""Checks the names of spaces, published networks and jobs, which become names of files."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.errors import RequestError, RunFolderError
from nas.files.documents import shortened

MAX_NAME_CHARACTERS = 64
"""Longest name: with a suffix it fits into a file name, and it fits into a column of a table."""

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARACTERS - 1}}}")

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows reserves for devices, with any suffix."""


def check_name(name: Any) -> str:
    """Return a name, after checking that it is valid on every file system and in every report.

    Raises ValueError for an invalid name; the message says what is allowed.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name[-1] == ".":
        raise ValueError(
            f"use 1 to {MAX_NAME_CHARACTERS} of the characters A-Z, a-z, 0-9, '.', '_' and '-', "
            "a letter or digit first and no dot last"
        )
    if _RESERVED.fullmatch(name):
        raise ValueError("use a name that Windows does not reserve for a device")
    return name


def name_like(text: str) -> str:
    """Return a valid name that resembles a text: "My job" becomes "My-job".

    Accents are left out, and a hyphen takes the place of other characters that a name cannot have.

    Raises ValueError for a text of which no name can be made.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-][^A-Za-z0-9._]*", "-", plain)[:MAX_NAME_CHARACTERS]
    return check_name(name.lstrip("._-").rstrip(".-"))


def require_utf8(path: Path) -> None:
    """Raise RunFolderError for a folder whose path is not valid UTF-8: torch's files need that.

    Python reads other names in a UTF-8 locale, and valid ones where the locale has no UTF-8, as
    with LC_ALL=C outside of its UTF-8 mode.
    """
    whole = str(path.absolute())
    try:
        whole.encode("utf-8")
    except UnicodeEncodeError:
        is_utf8 = sys.getfilesystemencoding() == "utf-8"
        raise RunFolderError(
            f"The path {shortened(whole)} is not valid UTF-8, which torch's files need."
            if is_utf8
            else f"The locale has no UTF-8, so Python cannot read the path {shortened(whole)}.",
            remedy="Rename the folder." if is_utf8 else "Start Python with PYTHONUTF8=1.",
        ) from None


def require_name(name: object, what: str, error: type[RequestError] = RequestError) -> str:
    """Return a name, after checking that it is valid.

    Args:
        name: any value.
        what: start of the message: "The name of a space".
        error: class of the error.

    Raises `error` for an invalid name; the message says what came and what is allowed.
    """
    try:
        return check_name(name)
    except ValueError as problem:
        raise error(f"{what} is {shortened(name)}: {problem}.") from None


def require_choice(
    value: object, choices: Sequence[str], what: str, error: type[RequestError] = RequestError
) -> None:
    """Raise `error` unless a value is one of some words; the message starts with `what`."""
    if value not in choices:
        *first, last = map(repr, choices)
        raise error(f"{what} is {shortened(value)}.", remedy=f"Give {', '.join(first)} or {last}.")


def require_identifier(name: object, where: str, error: type[RequestError] = RequestError) -> str:
    """Return a name, after checking that it can be a part of a dotted name.

    Args:
        name: any value.
        where: start of the message: "Space mobilenet".
        error: class of the error.

    Raises `error` for anything but an identifier of at most `MAX_NAME_CHARACTERS` characters.
    """
    if isinstance(name, str) and name.isidentifier() and len(name) <= MAX_NAME_CHARACTERS:
        return name
    raise error(
        f"{where}: {shortened(name)} is not a name.",
        remedy=f"Use a word of at most {MAX_NAME_CHARACTERS} characters, like stage1.",
    )
