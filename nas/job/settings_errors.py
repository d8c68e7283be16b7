"""Messages about wrong job files and options.

A message names the key, its line, the wrong value and what is allowed. It never shows a value that
may hold the password of a storage.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from nas.documents import shortened, shortened_text
from nas.errors import RequestError, printable
from nas.storage_address import REDACTED, may_hold_password

MAX_PROBLEMS = 5
"""Largest number of problems of a job file that a message lists."""

_Location = tuple[int | str, ...]
"""Keys, and indices of list elements, from the top of a job file to a value."""

_REQUIRED_KEYS = {
    "data": 'add [data] with source = "digits" or a path',
    "data.source": '"digits" or the path of parquet files or an image folder',
    "search.device.table": "a latency table that `nas table build` made on that device",
    "space": 'add [[space]] with name = "mobilenet", once for each family',
    "space.name": "the name of a space or the path of a Python file",
}
"""What to write for each key that has no default."""

REPEATED_TABLES = ("space", "search.device")
"""Keys that are written as `[[key]]`, once for each element."""


def describe_problems(error: ValidationError, text: str, model: type[BaseModel]) -> str:
    """Return one line for each problem of a job file, at most `MAX_PROBLEMS` of them.

    Args:
        error: problems that pydantic reports.
        text: text of the job file, in which the lines are looked up.
        model: model of the whole job file, which knows the allowed keys.
    """
    problems = error.errors(include_url=False)
    lines = [_describe_problem(problem, text, model) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"There are {len(problems) - MAX_PROBLEMS} more problems.")
    return "\n".join(lines)


def option_error(error: ValidationError) -> RequestError:
    """Return the error for the first wrong setting that was given as an option of a command."""
    problem = error.errors(include_url=False)[0]
    key = next(part for part in reversed(problem["loc"]) if isinstance(part, str))
    return RequestError(_describe_wrong_value(f"--{key.replace('_', '-')}", problem))


def display_text(text: str) -> str:
    """Return a text as a message shows it: short, printable and without a password."""
    return REDACTED if may_hold_password(text) else printable(shortened_text(text))


def _display_value(value: Any) -> str:
    """Return a value as a message shows it: short, printable and without a password."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str) and may_hold_password(value):
        return "an address"
    return printable(shortened(value))


def _describe_problem(problem: Mapping[str, Any], text: str, model: type[BaseModel]) -> str:
    location: _Location = problem["loc"]
    key = _dotted_key(location)
    line = _line_number(text, location)
    position = f"line {line}: {key}" if line else key
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = _allowed_keys(location, model)
        close = difflib.get_close_matches(str(location[-1])[:60], allowed, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{position} is not a key.{hint} Allowed here: {', '.join(allowed)}."
    if kind == "missing":
        return f"{key} is missing: {_REQUIRED_KEYS.get(key, 'it has no default')}."
    return _describe_wrong_value(position, problem)


def _describe_wrong_value(position: str, problem: Mapping[str, Any]) -> str:
    """Return the message for a value of the wrong type or size.

    Args:
        position: the key with its line, or the option.
        problem: the problem as pydantic reports it.
    """
    location, kind = problem["loc"], problem["type"]
    key = _dotted_key(location)
    reason = problem["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "tuple_type") and key in REPEATED_TABLES:
        reason = f"write [[{key}]] once for each"
    elif kind == "model_type":
        reason = f"write one table, [{key}]"
    elif kind == "tuple_type":
        reason = "write a list"
    # The address of a storage may hold a password, also when it is written wrongly.
    value = "" if location[-1] == "storage" else f" is {_display_value(problem['input'])}"
    return f"{position}{value}: {reason[0].lower()}{reason[1:]}."


def _dotted_key(location: _Location) -> str:
    """Return the key of a location as TOML writes it, such as `search.device.table`."""
    return ".".join(display_text(part) for part in location if isinstance(part, str))


def _allowed_keys(location: _Location, model: type[BaseModel]) -> list[str]:
    """Return the keys of the table that holds the last part of `location`."""
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(c for c in (annotation, *get_args(annotation)) if isinstance(c, type))
    return list(model.model_fields)


def _line_number(text: str, location: _Location) -> int | None:
    """Return the line, from 1, of a key or of its table's header.

    The result is None if neither is written in a way that this simple search recognises.
    """
    keys = [part for part in location if isinstance(part, str)]
    element = next((part for part in location[:-1] if isinstance(part, int)), None)
    header, key = ".".join(keys[:-1]), keys[-1]
    current_header, count, header_line = "", -1, None
    for number, line in enumerate(text.splitlines(), start=1):
        header_match = re.match(r"\s*\[+\s*([\w.-]+)\s*\]+", line)
        if header_match:
            current_header = header_match.group(1)
            count += current_header == header and "[[" in line
            if current_header in (header or key, ".".join(keys)) and element in (None, count):
                header_line = number
        elif current_header == header and element in (None, count):
            key_match = re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)
            if key_match and key_match.group(1) in (key, ".".join(keys)):
                return number
    return header_line
