"""Reads JSON files into checked records, whatever the files hold.

Every file that the tool reads has one record class, a `Document`. A file that is missing,
unreadable, too large, damaged or of another kind becomes one `NasError` that names the file, the
line where there are lines, and the field.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas.errors import NasError, printable

MAX_BYTES = 256 << 20
"""Largest file that is read. A journal of 10,000 trials has 40 MB, a large table 2 MB."""

MAX_SHOWN_CHARACTERS = 60
"""Longest part of a value that a message repeats."""

MAX_REASON_CHARACTERS = 300
"""Longest explanation in a message: some repeat the whole value that came."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number of things: it fits into 64 bits."""

Positive = Annotated[float, Field(gt=0)]

Fraction = Annotated[float, Field(ge=0, le=1)]
"""An accuracy, an error or a share."""


class Document(BaseModel):
    """Base class of the records in files.

    Types are strict, numbers are finite, and fields that this version does not know are ignored.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


D = TypeVar("D", bound=BaseModel)


@dataclass(frozen=True)
class Format(Generic[D]):
    """A kind of file: its record class, and the error that a bad file becomes.

    Args:
        model: record class of the whole file, or of each line of a JSON Lines file.
        name: what the file is called in messages, with its article: "a latency table".
        error: raised for a file that is not of this kind.
        remedy: what the person can do about a bad file.
        max_bytes: largest file that is read.
    """

    model: type[D]
    name: str
    error: type[NasError]
    remedy: str = ""
    max_bytes: int = MAX_BYTES

    def read(self, path: Path) -> D:
        """Return the record of a JSON file. Raises `error`."""
        return self.parse(self.content(path), str(path))

    def content(self, path: Path) -> bytes:
        """Return the content of a file. Raises `error` if it cannot be read; see `read_bytes`."""
        try:
            return read_bytes(path, self.max_bytes)
        except OSError as error:
            raise self.failure(f"{path} cannot be read: {error.strerror}") from None

    def parse(self, content: bytes, where: str) -> D:
        """Return the record in a JSON text. Raises `error`; the message starts with `where`."""
        try:
            return self.model.model_validate_json(content)
        except ValidationError as error:
            raise self.failure(self._problem(error, where)) from None

    def failure(self, message: str) -> NasError:
        """Return the error for a bad file."""
        return self.error(f"{message}.", remedy=self.remedy)

    def _problem(self, error: ValidationError, where: str) -> str:
        problems = error.errors(include_url=False)
        for problem in problems:
            if problem["loc"] == ("schema",) and problem["type"] == "literal_error":
                return (
                    f"{where} has schema {shortened(problem['input'])}; this version reads schema "
                    f"{problem['ctx']['expected']}"
                )
        return f"{where} is not {self.name}: {explain(problems[0])}"


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises OSError with a message of its own for a path that is no regular file or no path at all,
    or a file of more than `limit` bytes.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a path with a null character
        raise OSError(0, str(error), str(path)) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise OSError(0, f"it is {kind}", str(path))
    content = b""
    if status.st_size <= limit:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    if max(status.st_size, len(content)) > limit:
        raise OSError(0, f"it has more than {limit >> 20} MiB", str(path))
    return content


def explain(problem: Any) -> str:
    """Return one of pydantic's problems as a clause: the field, what came, what was expected."""
    reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
    reason = reason[0].lower() + reason[1:MAX_REASON_CHARACTERS]
    field = field_name(problem["loc"])
    if not field:
        return reason
    if problem["type"] == "missing":
        return f"{field} is missing"
    return f"{field} is {shortened(problem['input'])}: {reason}"


def field_name(location: Sequence[int | str]) -> str:
    """Return where a field stands: `front[2].macs`."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return printable(shortened_text(name.removeprefix(".")))


def shortened(value: Any) -> str:
    """Return a value as Python writes it, without its middle where it is long."""
    try:
        return shortened_text(repr(value))
    except ValueError:  # an integer of more digits than Python converts
        return f"a {type(value).__name__} of very many digits"


def shortened_text(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return a text of at most `limit` characters, without its middle where it is longer."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
