"""What a person sees: progress bars, and the tables and short messages of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Self, TypeVar

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

from nas.display.formatting import format_duration
from nas.display.progress import Advance
from nas.errors import printable

Record = TypeVar("Record")

out = Console()
"""Writes results to stdout."""

err = Console(stderr=True)
"""Writes progress, warnings and errors to stderr."""

MAX_BAR_TEXT_CHARACTERS = 48
"""Longest text beside a progress bar, so that bar and text fit into 120 columns."""

NOTEBOOK_UPDATE_SECONDS = 0.5
"""Shortest time between two updates of a line in a notebook, which stores each of them."""

LINE_SECONDS = 60.0
"""Time between two lines of a stage in a file."""

MAX_TABLE_COLUMNS = 1000
"""Widest table, in characters, that is written to a file or a pipe."""


class ProgressBars:
    """Shows the progress of a job on stderr: one bar a stage, with the time that remains.

    In a notebook a stage is one line, which is updated. If stderr is neither, a line at the start
    and one at the end of a stage are written, and one a minute in between.

    The methods are those of `nas.job.JobProgress`.
    """

    _shown = 0
    """Number of objects of this class whose context has not ended."""

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
        self._started = self._updated = 0.0
        self._first: tuple[int, float] | None = None
        self._notebook_line: Any = None

    def __enter__(self) -> Self:
        ProgressBars._shown += 1
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        ProgressBars._shown -= 1
        self._progress.stop()
        # A stage that was interrupted before its first step is not reported as finished.
        if kind is None or self._done:
            self._end()

    def begin(self, stage: str, unit: str) -> None:
        """Start a bar for a stage whose progress is counted in `unit`s."""
        self._end()
        self._stage, self._unit, self._done, self._started = stage, unit, 0, time.monotonic()
        self._first = None
        self._progress.add_task(escape(stage), total=None, unit=f"{unit}s", text="")
        if err.is_jupyter:
            from IPython.display import display

            line = {"text/plain": f"{stage} ..."}
            self._notebook_line, self._updated = display(line, raw=True, display_id=True), 0.0
        elif not err.is_terminal:
            self._updated = self._started
            self.note(f"{stage} ...")

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """Set the current bar to `done` of `total`, if that is known, with a text beside it.

        The time left follows from what was done since the first call, because a stage that
        continues begins with what was done before.
        """
        self._done = done
        now = time.monotonic()
        first_done, first_s = self._first = self._first or (done, now)
        pause_s = NOTEBOOK_UPDATE_SECONDS if self._notebook_line else LINE_SECONDS
        if not err.is_terminal and now - self._updated >= pause_s:
            self._updated = now
            line = f"{self._stage}: {done}{f' of {total}' if total else ''} {self._unit}s"
            line += f" in {format_duration(now - self._started)}"
            if total and done > first_done:
                left_s = (now - first_s) / (done - first_done) * (total - done)
                line += f", {format_duration(left_s)} left"
            self._write(line + (f"  {printable(text)}" if text else ""))
        if len(text) > MAX_BAR_TEXT_CHARACTERS:
            text = f"{text[: MAX_BAR_TEXT_CHARACTERS - 3]}..."
        task = self._progress.task_ids[-1]
        self._progress.update(task, completed=done, total=total, text=escape(printable(text)))

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        err.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _write(self, line: str) -> None:
        """Write a line of the current stage, where there is no terminal."""
        if self._notebook_line:
            self._notebook_line.update({"text/plain": line}, raw=True)
        else:
            self.note(line)

    def _end(self) -> None:
        if self._stage and not err.is_terminal:
            duration = format_duration(time.monotonic() - self._started)
            done = f"{self._done} {self._unit}s in {duration}"
            self._write(f"{self._stage}: {done if self._done else 'nothing left to do'}")
        self._stage, self._notebook_line = "", None


def is_watched() -> bool:
    """Return whether progress is shown by default: on a terminal or in a notebook, and only once.

    What runs inside of something that shows its progress shows none of its own.
    """
    return (err.is_terminal or err.is_jupyter) and not ProgressBars._shown


@contextmanager
def reported(
    progress: Advance | bool | None, stage: str, unit: str, *, at_once: bool = True
) -> Iterator[Advance | None]:
    """Yield the function that a long function calls with its progress; None if it shows none.

    Args:
        progress: what the caller of the long function gave: a function of its own, True for a bar
            where `is_watched`, None or False for nothing.
        stage: name of the bar.
        unit: what the bar counts.
        at_once: whether the bar is shown before the first call.
    """
    if progress is not True:
        yield progress or None
    elif not is_watched():
        yield None
    else:
        with ExitStack() as stack:

            @cache
            def bars() -> ProgressBars:
                shown = stack.enter_context(ProgressBars())
                shown.begin(stage, unit)
                return shown

            if at_once:
                bars()
            yield lambda done, total, text="": bars().advance(done, total, text)


def say(text: str) -> None:
    """Print one or more lines. Control characters are written as escapes."""
    out.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any] | None], *, left: Collection[str] = ()
) -> None:
    """Print a table.

    A terminal narrower than the table wraps its cells; a file or a pipe gets the full width.

    Args:
        columns: titles of the columns.
        rows: cells of each row; an empty cell for None. None instead of a row draws a line.
        left: titles of left-aligned columns. The first column always is; the others are
            right-aligned.
    """
    printed = Table(header_style="bold")
    for index, column in enumerate(columns):
        is_left = not index or column in left
        printed.add_column(column, justify="left" if is_left else "right", no_wrap=not index)
    for row in rows:
        if row is None:
            printed.add_section()
        else:
            cells = ("" if cell is None else printable(str(cell)) for cell in row)
            printed.add_row(*map(Text, cells))
    if out.is_terminal:
        out.print(printed)
    else:
        options = out.options.update(max_width=MAX_TABLE_COLUMNS)
        needed = out.measure(printed, options=options).maximum
        Console(file=out.file, width=max(out.width, needed)).print(printed)


def print_records(
    records: Iterable[Record],
    columns: Mapping[str, Callable[[Record], Any]],
    *,
    left: Collection[str] = (),
) -> None:
    """Print a table with a row for each record.

    Args:
        records: objects of one kind.
        columns: by the title of each column, the function that returns its cell for a record.
        left: see `print_table`.
    """
    rows = ([cell(record) for cell in columns.values()] for record in records)
    print_table(list(columns), rows, left=left)
