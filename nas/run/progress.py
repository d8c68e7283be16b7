"""The interface through which a running job reports its progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class JobProgress(Protocol):
    """Receive the progress of a job. The command line draws progress bars from it."""

    def begin(self, stage: str, unit: str) -> None:
        """Begin a stage whose work is counted in `unit`s. It lasts until the next stage begins."""
        ...

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """Set the progress of the current stage to `done` of `total`, with a text beside it.

        The total is None if it is not known.
        """
        ...

    def note(self, text: str) -> None:
        """Show a line to the user, such as a result or a warning."""
        ...


class SilentProgress:
    """A `JobProgress` that shows nothing."""

    def begin(self, stage: str, unit: str) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@contextmanager
def shown(progress: JobProgress | bool | None) -> Iterator[JobProgress]:
    """Yield what receives the progress of a job or an export.

    Args:
        progress: what the caller gave: an object of its own, True for bars where
            `nas.display.console.is_watched`, None or False for nothing.
    """
    from nas.display import console

    if progress is True and console.is_watched():
        with console.ProgressBars() as bars:
            yield bars
    else:
        yield SilentProgress() if isinstance(progress, bool) or progress is None else progress
