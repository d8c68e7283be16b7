"""`user_code`: runs code of a space file without letting it end or garble a command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from nas.errors import SpaceError, first_line, printable


@contextmanager
def user_code(file: str, description: str = "") -> Iterator[None]:
    """Run code of a space file, with what it prints on stderr instead of stdout.

    The output of a command on stdout may be one JSON document, so user code must not print there.

    Args:
        file: path of the file that holds the code, as tracebacks show it.
        description: what runs, for messages; by default the file.

    Raises SpaceError for whatever the code raises, including `SystemExit`, with the innermost line
    of the file that was running. A SpaceError and a KeyboardInterrupt pass unchanged.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (SpaceError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise SpaceError(_message(error, file, description)) from error


def _message(error: BaseException, file: str, description: str) -> str:
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}, line {error.lineno or 1}: {printable(error.msg)}."
    line = _innermost_line(error, file)
    location = f"{file}, line {line}" if line else file
    reason = printable(first_line(error)).rstrip(": .")
    if description:
        return f"{description} fails at {location}: {reason}."
    return f"{location}, does not run: {reason}." if line else f"{location} does not run: {reason}."


def _innermost_line(error: BaseException, file: str) -> int | None:
    """Return the innermost line of a file that was running; None where none was."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
