"""The errors that a user can meet, as one tree.

Every error is a `NasError`. Its text says what was expected, what came, and what to do about it.
The command line prints that text and exits with `exit_status`: 2 for a wrong request, 1 for a job
that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_SHOWN_CHARACTERS = 60
"""Longest part of a value that a message repeats."""


class NasError(Exception):
    """Base class of all errors; `str(error)` is the message followed by the remedy.

    Args:
        message: what was expected and what came.
        remedy: what the user can do about it.
    """

    exit_status = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class RequestError(NasError):
    """The request is wrong: an unknown name, an invalid value, or a missing file."""

    exit_status = 2


class JobFileError(RequestError):
    """A job file is invalid; the message names the key and the allowed values."""


class BudgetError(JobFileError):
    """The budget of a job is too short.

    Attributes:
        smallest: the smallest budget that works, such as `8m`.
    """

    def __init__(self, message: str, *, remedy: str = "", smallest: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.smallest = smallest


class SpaceError(RequestError):
    """A search space, or an architecture of one, does not describe a network."""


class WeightsError(RequestError):
    """A file of pretrained weights is damaged, unsafe, or of no known network."""


class DataError(RequestError):
    """A data source is missing, unreadable, or too small for the request."""


class RunFolderError(RequestError):
    """A folder is not a run, belongs to another job, or is used by another process."""


class DeviceError(NasError):
    """A device or runtime is missing, or is not the expected one."""


class DeviceAwaitedError(DeviceError):
    """The user takes a kit to the device; then the same command goes on. It is no failure."""

    exit_status = 0


class BoardLostError(DeviceError):
    """A remote device does not answer; it may come back."""


class TableError(NasError):
    """A latency table cannot be read, written or trusted."""


class TableDeviceError(TableError):
    """A latency table was measured on another device, runtime, dtype or number of threads."""

    exit_status = 2


class KernelError(NasError):
    """A kernel has no usable latency; architectures that need it are infeasible."""


class MissingKernelError(KernelError):
    """The latency table has no row for a kernel."""


class FailedKernelError(KernelError):
    """A kernel could not be compiled or timed, as its row in the latency table says."""


class MeasurementError(NasError):
    """Compiling or timing on the device failed."""


class TrainingError(NasError):
    """A supernet could not be trained."""


class CheckpointError(NasError):
    """A checkpoint cannot be read, or belongs to another space, dataset or version."""


class ExportError(NasError):
    """A model could not be exported, or an exported file does not compute what it should."""


class IncompleteExportError(ExportError):
    """Some formats of a model could not be exported; the files of all others are there.

    Args:
        failed: the error of each format that failed, by its name.
    """

    def __init__(self, failed: Mapping[str, NasError]) -> None:
        super().__init__(
            " ".join(f"{name}: {error.message}" for name, error in failed.items()),
            remedy=" ".join(dict.fromkeys(each.remedy for each in failed.values() if each.remedy)),
        )
        self.failed = failed

    def __reduce__(self) -> tuple[Any, ...]:
        # The text alone, which other errors are made of, does not say which formats failed.
        return type(self), (self.failed,)


class SearchError(NasError):
    """A search cannot continue."""


class StorageError(SearchError):
    """The database or journal of a search is damaged, or does not answer."""


class InfeasibleError(SearchError):
    """No architecture meets the limits; the message names the nearest one."""


def first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its message, at most 500 characters.

    Compilers put a traceback before their message; the last line is the message then.
    """
    try:
        text = str(error)
    except Exception:  # The text of an error of another package is its own code.
        text = ""
    lines = text.strip().splitlines()
    if lines and lines[0].startswith("Traceback"):
        lines = lines[-1:]
    return ": ".join([type(error).__name__, *lines[:1]])[:500]


def as_nas_error(error: Exception, kind: type[NasError]) -> NasError:
    """Return an error if it is a `NasError`, and otherwise one of class `kind` that names it."""
    if isinstance(error, NasError):
        return error
    named = kind(f"{first_line(error)}.")
    named.__cause__ = error
    return named


def printable(text: str) -> str:
    """Return a text whose control characters, except the line feed, are written as escapes.

    Text from files must not move the cursor of a terminal, or change its title.
    """
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shortened_text(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return a text of at most `limit` characters, without its middle if it is longer."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
