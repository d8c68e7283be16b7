"""Reads JSON files into checked records.

Every kind of file has a record class, a subclass of `Document`, and a `Format`. A file that is
missing, unreadable, too large, damaged or of another kind raises one `NasError` that names the
file, the line if there are lines, and the field.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nas.errors import NasError, printable, shortened_text
from nas.files.foreign import foreign_kind, without_mark

MAX_BYTES = 256 << 20
"""Largest file that is read: a journal of 10,000 trials has 40 MB, a large latency table 2 MB."""

MAX_REASON_CHARACTERS = 300
"""Longest explanation in a message: some explanations of pydantic repeat the whole value."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number of things, which fits into 64 bits."""

Positive = Annotated[float, Field(gt=0)]
"""A latency, a ratio or a limit."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""An accuracy, an error or a share, from 0 to 1."""


SCHEMA: Final = 1
"""Version of the files' formats; a file of another version is refused."""


def _check_file_name(name: str) -> str:
    if name != Path(name).name or name in ("", ".", "..") or not name.isprintable():
        raise ValueError("it should be the name of a file, without its folder")
    return name


Name = Annotated[str, AfterValidator(_check_file_name), Field(max_length=200)]
"""The name of a space or a file. It cannot lead out of the run folder."""


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]
"""A digest in hexadecimal digits, or its beginning."""


NetworkDigest = Annotated[str, Field(pattern=r"^[g-z][0-9a-f]{3,63}$")]
"""The digest of a network's graph, or its beginning; see `nas.graph.DIGEST_LETTERS`."""


Seconds = Annotated[float, Field(ge=0)]


class ForeignFileError(OSError):
    """A file is of a kind that takes the place of others; its text says how to get the file."""


class Document(BaseModel):
    """Base class of the records in files.

    Types are not converted, numbers are finite, and unknown fields are ignored.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


DocumentType = TypeVar("DocumentType", bound=BaseModel)


@dataclass(frozen=True)
class Format(Generic[DocumentType]):
    """A kind of file: its record class, and the error that a bad file raises.

    Args:
        model: record class of the whole file, or of each line of a JSON Lines file.
        name: name of the file in messages, with its article: "a latency table".
        error: class of the error for a bad file.
        remedy: what the user can do about a bad file.
        max_bytes: size of the largest file that is read.
    """

    model: type[DocumentType]
    name: str
    error: type[NasError]
    remedy: str = ""
    max_bytes: int = MAX_BYTES

    def read(self, path: Path) -> DocumentType:
        """Return the record in a JSON file. Raises `error` for a bad file."""
        return self.parse(self.content(path), str(path))

    def content(self, path: Path) -> bytes:
        """Return the text of a file. Raises `error` if it cannot be read (`read_text_bytes`)."""
        try:
            return read_text_bytes(path, self.max_bytes)
        except ForeignFileError as error:
            # The remedy is for a damaged file; the file itself may be intact.
            raise self.error(f"{path} is not {self.name}: {error.strerror}.") from None
        except OSError as error:
            raise self.failure(f"{path} cannot be read: {error.strerror}") from None

    def parse(self, content: bytes, where: str) -> DocumentType:
        """Return the record in a JSON text. Raises `error`; its message starts with `where`."""
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
            if problem["loc"][-1:] == ("schema",) and problem["type"] == "literal_error":
                return (
                    f"{where} has schema {shortened(problem['input'])}; this version reads schema "
                    f"{problem['ctx']['expected']}"
                )
        return f"{where} is not {self.name}: {explain(problems[0])}"


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises OSError if the file cannot be read, is not a regular file, or has more than `limit`
    bytes, and for a path that no file can have; ForeignFileError for a pointer, a web page and the
    like in its place.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a path with a null character
        raise OSError(0, str(error), str(path)) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise OSError(0, f"it is {kind}", str(path))
    content = b""
    if status.st_size <= limit:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    if max(status.st_size, len(content)) > limit:
        raise OSError(0, f"it has more than {limit >> 20} MiB", str(path))
    if kind := foreign_kind(content):
        raise ForeignFileError(0, f"it is {kind}", str(path))
    return content


def read_text_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file of text, without the byte order mark that Windows writes.

    Raises OSError as `read_bytes` does; text in UTF-16 is of a foreign kind.
    """
    return without_mark(read_bytes(path, limit))


def explain(problem: Any) -> str:
    """Return a problem that pydantic reports as a clause: field, actual and expected value."""
    reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
    reason = reason[0].lower() + reason[1:MAX_REASON_CHARACTERS]
    field = field_name(problem["loc"])
    if not field:
        return reason
    if problem["type"] == "missing":
        return f"{field} is missing"
    return f"{field} is {shortened(problem['input'])}: {reason}"


def field_name(location: Sequence[int | str]) -> str:
    """Return the path of a field in its record: `front[2].macs`."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return printable(shortened_text(name.removeprefix(".")))


def shortened(value: Any) -> str:
    """Return the `repr` of a value, without its middle if it is long."""
    return shortened_text(repr(value))


def to_json(record: Document) -> str:
    """Return a record as the text of its file."""
    value = record.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
