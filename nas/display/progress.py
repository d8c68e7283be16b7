"""`Advance`: how a long task says how much of it is done."""

from __future__ import annotations

from typing import Protocol


class Advance(Protocol):
    """A function that a long task calls after each step, such as `JobProgress.advance`."""

    def __call__(self, done: int, total: int | None, text: str = "") -> None:
        """Receive how much is done, of how much, and what to show beside it.

        Args:
            done: number of steps done.
            total: number of all steps; None if it is not known.
            text: what was done last, or its result.
        """
        ...
