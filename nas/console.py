"""What the command line shows a person: progress bars, tables and short messages."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from nas.errors import printable

out = Console()
"""Results; silent where a command prints JSON."""

err = Console(stderr=True)
"""Progress, warnings and errors."""

_LONGEST_TEXT = 48

_WIDEST = 1000


class Bars:
    """Draws work on stderr, one bar a stage with its ETA; a `nas.job.Watch`.

    Where stderr is no terminal there are no bars but a line when a stage begins and one when it
    ends, so that a log stays readable.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[text]}"),
            console=err,
            disable=not err.is_terminal,
        )
        self._stage = self._unit = ""
        self._done = 0
        self._begun = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._progress.stop()
        # A stage that was stopped before its first step was not done already.
        if kind is None or self._done:
            self._end()

    def begin(self, stage: str, unit: str) -> None:
        """Starts a bar."""
        self._end()
        self._stage, self._unit, self._done, self._begun = stage, unit, 0, time.monotonic()
        self._progress.add_task(escape(stage), total=None, unit=f"{unit}s", text="")
        if not err.is_terminal:
            self.note(f"{stage} ...")

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Moves the current bar."""
        self._done = done
        shown = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
        shown = escape(printable(shown))
        task = self._progress.task_ids[-1]
        self._progress.update(task, completed=done, total=total, text=shown)

    def note(self, text: str) -> None:
        """A line above the bars."""
        err.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _end(self) -> None:
        if self._stage and not err.is_terminal:
            took = duration(time.monotonic() - self._begun)
            done = f"{self._done} {self._unit}s in {took}" if self._done else "nothing left to do"
            self.note(f"{self._stage}: {done}")
        self._stage = ""


def say(text: str) -> None:
    """Print one line or more. Control characters are written as escapes."""
    out.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any] | None], *, left: Collection[str] = ()
) -> None:
    """Prints a table; a row that is None rules a line.

    The first column and those named in `left` are left-aligned, the others right-aligned. Only a
    terminal makes it narrower than its content.
    """
    shown = Table(header_style="bold")
    for at, column in enumerate(columns):
        is_left = not at or column in left
        shown.add_column(column, justify="left" if is_left else "right", no_wrap=not at)
    for row in rows:
        if row is None:
            shown.add_section()
        else:
            shown.add_row(*(Text(printable(str(cell))) for cell in row))
    if out.is_terminal:
        out.print(shown)
    else:
        needed = out.measure(shown, options=out.options.update(max_width=_WIDEST)).maximum
        Console(file=out.file, width=max(out.width, needed)).print(shown)


def busy(text: str) -> AbstractContextManager[object]:
    """A spinner on stderr; nothing where that is no terminal."""
    return err.status(text)


def bars_of(counts: Sequence[int]) -> str:
    """Counts as a line of small bars, the largest at full height."""
    ramp = " .:-=+*#" if out.options.ascii_only else " ▁▂▃▄▅▆▇█"
    most = max(*counts, 1)
    return "".join(ramp[-(-count * (len(ramp) - 1) // most)] for count in counts)


def si(value: float) -> str:
    """1234567 as "1.23 M"."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """1234567 bytes as "1.23 MB"."""
    text = si(count)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
