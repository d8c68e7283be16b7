"""How a running job is watched: the command line draws bars from it, tests read it."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Told what a job does: a stage begins and advances until another begins."""

    def begin(self, stage: str, unit: str) -> None:
        """A stage starts that counts `unit`s."""
        ...

    def advance(self, done: int, total: int, text: str = "") -> None:
        """The current stage has come to `done` of `total`; `text` is worth showing beside it."""
        ...

    def note(self, text: str) -> None:
        """A line for the person, such as a result or a warning."""
        ...


class Unwatched:
    """Shows nothing."""

    def begin(self, stage: str, unit: str) -> None:
        """Nothing."""

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
