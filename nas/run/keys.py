"""The keys of a job file: how a field of `nas.run.settings` declares one, and what values it takes.

A field is the one declaration of its key: type, default and bounds, how long the key may change,
and the meaning, which is the docstring below it. `nas.job.changes` compares the job file of a run
with an earlier one by them, and the options of the commands that repeat a key take their help from
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo
from pydantic.fields import FieldInfo

from nas.errors import RequestError
from nas.files.names import check_name
from nas.files.paths import located
from nas.graph import BOTH_DTYPES

MAX_SEED = 2**32 - 1
"""The largest seed that numpy's `RandomState`, which Optuna's samplers use, accepts."""

MAX_MINUTES = 366 * 24 * 60.0
"""Longest search, one year."""

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

Stage = Literal["training", "search"]
"""A part of a run from whose beginning on a key may not change: supernets, or the search."""


class Key(NamedTuple):
    """What a field of the settings declares of its key.

    Attributes:
        meaning: what the key means, as a phrase with its unit.
        kind: type of the values, as an option has it.
        least: smallest value; None if it has none.
        most: largest value; None if it has none.
        fixed_from: stage of a run from whose beginning on the key may not change; None if a run
            can always be continued with another value.
        is_limit: whether it decides which trials are feasible, so that a change judges them again.
    """

    meaning: str
    kind: type
    least: float | None
    most: float | None
    fixed_from: Stage | None
    is_limit: bool


def key(
    default: Any,
    *,
    fixed_from: Stage | None = "training",
    is_limit: bool = False,
    **constraints: Any,
) -> Any:
    """Return the field of a key; by default of one by which a run trains.

    Args:
        default: value of a key that is not given; `...` for one that must be.
        fixed_from: see `Key`.
        is_limit: see `Key`.
        constraints: arguments of pydantic's `Field`.
    """
    declared: dict[str, Any] = {"fixed_from": fixed_from, "is_limit": is_limit}
    return Field(default, json_schema_extra=declared, **constraints)


search_key = partial(key, fixed_from="search")
"""The field of a key on which the trials of a search depend."""

free_key = partial(key, fixed_from=None)
"""The field of a key that changes nothing of what a run has done, but perhaps how much it does."""

limit_key = partial(key, fixed_from=None, is_limit=True)
"""The field of a limit of the search; the values of the trials stay."""


def keys_of(table: type[BaseModel], prefix: str = "") -> dict[str, Key]:
    """Return the keys of a table and of the tables in it, by their path in the job file."""
    keys: dict[str, Key] = {}
    for name, field in table.model_fields.items():
        if inner := table_of(field):
            keys |= keys_of(inner, f"{prefix}{name}.")
        else:
            declared: Any = field.json_schema_extra
            meaning = " ".join((field.description or "").split())
            kinds = (field.annotation, *get_args(field.annotation))
            kind = next((each for each in (bool, int, float) if each in kinds), str)
            bounds = _bound(field, "ge"), _bound(field, "le")
            keys[prefix + name] = Key(meaning, kind, *bounds, **declared)
    return keys


def _bound(field: FieldInfo, end: str) -> float | None:
    return next((getattr(each, end) for each in field.metadata if hasattr(each, end)), None)


def table_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the class of the table, or of the repeated table, that a field holds; else None."""
    for each in (field.annotation, *get_args(field.annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def seconds_of(budget: str) -> float:
    """Return the seconds of a duration such as "90s", "45m", "8h" or "1h30m".

    Raises:
        ValueError: the text is no duration, or one that is not allowed.
    """
    text = budget.replace(" ", "")[:100]
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise ValueError('write a duration such as "45m", "8h" or "1h30m"')
    total = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not 0 < total <= 60 * MAX_MINUTES:
        raise ValueError("a budget must be longer than 0 seconds and at most 366 days")
    return total


def _check_duration(value: str) -> str:
    seconds_of(value)
    return value


def takes_place_of(key_: str) -> Callable[[Any, ValidationInfo], Any]:
    """Return the validator of a key that cannot be set beside another one of its table."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get(key_.rpartition(".")[2]) is not None:
            raise ValueError(f"{key_} is set, too; set one of the two")
        return value

    return check


Duration = Annotated[str, AfterValidator(_check_duration)]
"""A text such as "45m", see `seconds_of`."""


def number_or_auto(noun: str, fewest: int, most: int) -> BeforeValidator:
    """Return the check of a key that is a number of things, "auto", or not set."""

    def check(value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value not in ("auto", None) and not (is_number and fewest <= value <= most):
            raise ValueError(f'write "auto" or a number of {noun} from {fewest} to {most}')
        return value

    return BeforeValidator(check)


def check_switch(value: Any) -> Any:
    """Return the value of a switch with "auto". Raises ValueError for another one than it takes."""
    if value != "auto" and not isinstance(value, bool):
        raise ValueError('write "auto", true or false')
    return value


def check_dtype(value: Any) -> Any:
    """Return the value of `device.dtype`. Raises ValueError for another list than of both."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or sorted(map(str, value)) != sorted(BOTH_DTYPES):
        raise ValueError('write one, such as "int8", or ["float32", "int8"]')
    return BOTH_DTYPES


def _check_shares(shares: tuple[float, ...]) -> tuple[float, ...]:
    if not shares or min(shares) <= 0 or max(shares) != 1:
        raise ValueError("write shares above 0, the largest of which is 1.0, as [0.6, 0.8, 1.0]")
    return tuple(sorted(set(shares)))


Shares = Annotated[tuple[float, ...], AfterValidator(_check_shares)]
"""Different shares of the image size in their order, the last of which is 1."""


def _check_line(value: str) -> str:
    if any("\udc80" <= character <= "\udcff" for character in value):
        raise ValueError(
            "the name is not valid UTF-8, which job files and records are written in; rename the "
            "file or folder, or start Python with PYTHONUTF8=1 if the locale does not read UTF-8"
        )
    if not 0 < len(value) <= 4096 or not value.isprintable():
        raise ValueError("write 1 to 4096 printable characters")
    return value


Line = Annotated[str, AfterValidator(_check_line)]
"""What a user states in one line, such as a license or an address."""


def _from_job_folder(path: str, info: ValidationInfo) -> str:
    """Return a path of a job file from the working folder, or else from the folder of the file."""
    return located(path, info.context) if info.context else path


def _space_from_job_folder(name: str, info: ValidationInfo) -> str:
    return _from_job_folder(name, info) if name.endswith(".py") else name


def run_from_job_folder(network: str, info: ValidationInfo) -> str:
    """Return `RUN:ID` with the path of the run as that of other files. Raises ValueError."""
    folder, _, name = network.rpartition(":")
    if not folder or not name:
        raise ValueError('write the folder of a run and the ID of its network, as "results/a:k3f2"')
    return f"{_from_job_folder(folder, info)}:{name}"


FilePath = Annotated[Line, AfterValidator(_from_job_folder)]
"""The path of a file or a folder. The context of the validation is the folder of a job file."""

SpaceName = Annotated[Line, AfterValidator(_space_from_job_folder)]
"""The name of a space, or the path of a Python file that defines one."""

NameText = Annotated[str, AfterValidator(check_name)]
"""The name of a run or of a published network."""


def _check_storage(value: str) -> str:
    if value == "journal":
        return value
    if "://" not in value or len(value) > 4096:
        raise ValueError('allowed are "journal" and addresses such as "postgresql://USER@HOST/DB"')
    from nas.files.storage_address import redact_address

    try:
        redact_address(value)
    except RequestError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return value


StorageAddress = Annotated[str, AfterValidator(_check_storage)]
"""The word "journal", or the address of a database."""


def _check_figure(name: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]{0,63}", name):
        raise ValueError("write the name of a figure in small letters, such as sram_kib")
    return name


FigureName = Annotated[str, AfterValidator(_check_figure)]
"""Name of a cost that a runtime knows, see `Runtime.figures`."""
