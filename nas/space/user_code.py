"""Runs code of a space file so that it can neither end a command nor write into its output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from nas.errors import SpaceError, first_line, printable


@contextmanager
def user_code(file: str, where: str = "") -> Iterator[None]:
    """Run the code of a space file, with what it prints on stderr instead of stdout.

    A command's output on stdout may be one JSON document, so nothing else may stand there.

    Args:
        file: the file that holds the code, as tracebacks call it.
        where: what runs, for messages; by default the file.

    Raises SpaceError for whatever the code raises, `SystemExit` included, with the innermost line
    of the file that was running. A SpaceError passes as it is, and so does KeyboardInterrupt.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (SpaceError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise SpaceError(_message(error, file, where)) from error


def _message(error: BaseException, file: str, where: str) -> str:
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}, line {error.lineno or 1}: {printable(error.msg)}."
    line = _line(error, file)
    at = f"{file}, line {line}" if line else file
    reason = printable(first_line(error)).rstrip(": .")
    if where:
        return f"{where} fails at {at}: {reason}."
    return f"{at}, does not run: {reason}." if line else f"{at} does not run: {reason}."


def _line(error: BaseException, file: str) -> int | None:
    """The innermost line of a file that was running; None where none was."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
