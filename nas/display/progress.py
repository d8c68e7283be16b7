"""`Advance`: how a long task says how much of it is done; `part_of`: how a part of it does."""

from __future__ import annotations

from typing import Protocol, overload


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


@overload
def part_of(progress: None, number: int, count: int, label: str = "") -> None: ...


@overload
def part_of(progress: Advance, number: int, count: int, label: str = "") -> Advance: ...


def part_of(progress: Advance | None, number: int, count: int, label: str = "") -> Advance | None:
    """Return what one of several equally long parts of a task calls to report its steps.

    Args:
        progress: receives the steps of all parts; None if nothing does.
        number: number of the part, from 0.
        count: number of parts.
        label: what to show before the texts of the part.
    """
    if progress is None:
        return None

    def report(done: int, total: int | None, text: str = "") -> None:
        steps = total or 0
        progress(number * steps + done, count * steps, ": ".join(filter(None, (label, text))))

    return report
