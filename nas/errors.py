"""The error tree: what was expected, what came, and what to do about it.

Every error a person can meet is a `NasError`. Its text is one short message with the remedy;
`exit_status` is what the command line exits with: 2 for a wrong request, 1 for a failed job.
"""

from __future__ import annotations


class NasError(Exception):
    """Something failed; `str(error)` is the message followed by the remedy.

    Args:
        message: what was expected and what came.
        remedy: what the person can do about it.
    """

    exit_status = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


def first_line(error: BaseException) -> str:
    """Any error in a line: its kind, and the first line of what it says, at most 500 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]


def printable(text: str) -> str:
    """Return a text whose control characters are written as escapes, all but the line feed.

    Text from files must not move the cursor of a terminal, or change its title.
    """
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


class RequestError(NasError):
    """The request itself is wrong: an unknown name, a bad value, a file that is not there."""

    exit_status = 2


class JobFileError(RequestError):
    """A job file that cannot be used; the message names the key, the line and what is allowed."""


class SpaceError(RequestError):
    """A search space, or a choice made in one, that makes no network."""


class DataError(RequestError):
    """A data source that is missing, unreadable or too small for what was asked."""


class RunFolderError(RequestError):
    """A folder that is not a run, or belongs to another job, or is in use."""


class DeviceError(NasError):
    """A device or runtime that is missing, or is not the one that was expected."""


class BoardLostError(DeviceError):
    """A device elsewhere that does not answer, or no longer; it may come back."""


class TableError(NasError):
    """A latency table that cannot be read or trusted."""


class TableDeviceError(TableError):
    """A latency table that was measured on another device, runtime, dtype or thread count."""

    exit_status = 2


class KernelError(NasError):
    """A kernel without a usable latency; architectures that need it are infeasible, not fast."""


class MissingKernelError(KernelError):
    """The table has no row for a kernel."""


class FailedKernelError(KernelError):
    """The table's row for a kernel says that it could not be compiled or timed."""


class MeasurementError(NasError):
    """Compiling or timing on the device failed."""


class TrainingError(NasError):
    """A supernet could not be trained."""


class CheckpointError(NasError):
    """A checkpoint that cannot be read, or belongs to another space, data set or version."""


class SearchError(NasError):
    """The search cannot go on."""


class StorageError(SearchError):
    """The database or journal with a search's trials is damaged, or does not answer."""


class InfeasibleError(SearchError):
    """No architecture meets the limits; the message names the nearest."""
