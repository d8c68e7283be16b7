"""Messages about wrong job files and options.

A message names the key, the wrong value and what is allowed. It never shows a value that may hold
the password of a storage.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nas.errors import RequestError, printable, shortened_text
from nas.files.documents import shortened
from nas.files.storage_address import may_hold_password
from nas.run.keys import table_of

MAX_PROBLEMS = 5
"""Largest number of problems of a job file that a message lists."""

_Location = tuple[int | str, ...]
"""Keys, and indices of list elements, from the top of a job file to a value."""

_OPTIONS = {"data.source": "--data", "space.name": "--space"}
"""Options of commands that are not called like the last part of their key."""

REPEATED_TABLES = ("space", "search.device")
"""Keys that are written as `[[key]]`, once for each element."""


def describe_problems(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line for each problem of a job file, at most `MAX_PROBLEMS` of them.

    Args:
        error: problems that pydantic reports.
        model: model of the whole job file, which knows the allowed keys.
    """
    problems = error.errors(include_url=False)
    lines = [_describe_problem(problem, model) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"There are {len(problems) - MAX_PROBLEMS} more problems.")
    return "\n".join(lines)


def option_error(error: ValidationError) -> RequestError:
    """Return the error for the first wrong setting that was given as an option of a command."""
    problem = error.errors(include_url=False)[0]
    key = _dotted_key(problem["loc"])
    option = _OPTIONS.get(key, f"--{key.rpartition('.')[2].replace('_', '-')}")
    return RequestError(_describe_wrong_value(option, problem))


def _display_value(value: Any) -> str:
    """Return a value as a message shows it: short, printable and without a password."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str) and may_hold_password(value):
        return "an address"
    return printable(shortened(value))


def _describe_problem(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    location: _Location = problem["loc"]
    key = _dotted_key(location)
    fields = _fields_at(location, model)
    if problem["type"] == "extra_forbidden":
        allowed = list(fields)
        close = difflib.get_close_matches(str(location[-1])[:60], allowed, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{key} is not a key.{hint} Allowed here: {', '.join(allowed)}."
    if problem["type"] == "missing":
        meaning = " ".join((fields[str(location[-1])].description or "").split())
        return f"{key} is missing: {meaning[0].lower()}{meaning[1:]}"
    return _describe_wrong_value(key, problem)


def _describe_wrong_value(position: str, problem: Mapping[str, Any]) -> str:
    """Return the message for a value of the wrong type or size.

    Args:
        position: the key, or the option.
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
    return ".".join(printable(shortened_text(part)) for part in location if isinstance(part, str))


def _fields_at(location: _Location, model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of the table that holds the last part of `location`."""
    for part in location[:-1]:
        if isinstance(part, str):
            model = table_of(model.model_fields[part]) or model
    return model.model_fields
