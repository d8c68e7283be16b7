"""The job file: what it may hold, and errors that name the key, the line and what is allowed."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)

from nas import files
from nas.documents import read_bytes, shortened, shortened_text
from nas.errors import JobFileError, RequestError, printable
from nas.job.keys import MAX_MINUTES, constraints
from nas.names import check_name
from nas.storage_address import REDACTED, may_hold_password

MAX_BYTES = 2**20
"""Largest job file that is read; the ones that ship have some 500 bytes."""

MAX_PROBLEMS = 5
"""Most problems of a job file that a message lists."""

_MAX_NESTING = 20_000_000
"""Limit on the sum of the squared numbers of dots in each line: tomllib needs quadratic time."""

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(budget: str) -> float:
    """Seconds of a duration such as "90s", "45m", "8h" or "1h30m". Raises ValueError."""
    text = budget.replace(" ", "")[:100]
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise ValueError('write a duration such as "45m", "8h" or "1h30m"')
    total = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not 0 < total <= 60 * MAX_MINUTES:
        raise ValueError("a budget must be longer than nothing and at most 366 days")
    return total


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        seconds_of(value)
    return value


def _path(value: str) -> str:
    if not 0 < len(value) <= 4096 or not value.isprintable():
        raise ValueError("write 1 to 4096 printable characters")
    return value


PathText = Annotated[str, AfterValidator(_path)]
"""A path, or the name of something that can also be given by its path."""


def _field(path: str, **settings: Any) -> Any:
    """Return pydantic's `Field` for a key of the job file, see `nas.job.keys`."""
    return Field(**{**constraints(path), **settings})


class _Table(BaseModel):
    # A refused value may be a storage's address, and hold a password.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class DataSettings(_Table):
    """Where the images are and how they are split."""

    source: Annotated[PathText, _field("data.source")]
    validation_fraction: Annotated[float, _field("data.validation_fraction")] = 0.2
    image_size: Annotated[int, _field("data.image_size")] | None = None
    on_bad_image: Annotated[Literal["fail", "skip"], _field("data.on_bad_image")] = "fail"
    license: Annotated[str, _field("data.license", max_length=100_000)] = ""


class DeviceSettings(_Table):
    """The device that the networks are for, and how they run on it.

    `runtime`, `target` and `dtype` are what the installed runtimes say, see
    `nas.latency.open_runtime`; all latencies are those of `batch` images at once.
    """

    runtime: Annotated[str, _field("device.runtime", min_length=1, max_length=64)] = "tvm"
    target: Annotated[PathText, _field("device.target")] = "cpu"
    threads: Annotated[int, _field("device.threads")] = 1
    dtype: Annotated[str, _field("device.dtype", min_length=1, max_length=64)] = "float32"
    batch: Annotated[int, _field("device.batch")] = 1
    tables: Annotated[PathText, _field("device.tables")] = "latency_tables"


class TrainingOptions(_Table):
    """How the supernets are trained, on which device of the training machine."""

    device: Annotated[PathText, _field("training.device")] = "auto"
    epochs: Annotated[int, _field("training.epochs")] | None = None
    batch_size: Annotated[int, _field("training.batch_size")] | None = None
    learning_rate: Annotated[float, _field("training.learning_rate")] | None = None
    subnets: Annotated[
        Literal["sandwich", "best_up", "worst_up", "single", "fair"], _field("training.subnets")
    ] = "sandwich"
    random_subnets: Annotated[int, _field("training.random_subnets")] | None = None
    progressive: Annotated[float, _field("training.progressive")] | None = None
    average: Annotated[float, _field("training.average")] | None = None
    label_smoothing: Annotated[float, _field("training.label_smoothing")] | None = None
    weight_decay: Annotated[float, _field("training.weight_decay")] | None = None
    colour: Annotated[float, _field("training.colour")] | None = None
    randaugment: Annotated[int, _field("training.randaugment")] | None = None
    magnitude: Annotated[float, _field("training.magnitude")] | None = None
    cutout: Annotated[float, _field("training.cutout")] | None = None
    precision: Annotated[Literal["auto", "float32", "bfloat16"], _field("training.precision")] = (
        "auto"
    )


class SpaceSettings(_Table):
    """A space by name, or the path of a Python file."""

    name: Annotated[PathText, _field("space.name")]


class SearchDevice(_Table):
    """Another device that the networks are for, by its latency table."""

    table: Annotated[PathText, _field("search.device.table")]
    max_latency_ms: Annotated[float, _field("search.device.max_latency_ms")] | None = None


def _storage(value: Any) -> Any:
    if not isinstance(value, str) or value == "journal":
        return value
    if "://" not in value or len(value) > 4096:
        raise ValueError('allowed are "journal" and addresses such as "postgresql://USER@HOST/DB"')
    from nas.storage_address import redact_address

    try:
        redact_address(value)
    except RequestError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return value


Count = Literal["macs", "params", "peak_memory_bytes"]
"""What is counted from a network's graph."""


class SearchSettings(_Table):
    """How long to search and how, the limits that architectures must meet, and with whom."""

    trials: Annotated[int, _field("search.trials")] | None = None
    minutes: Annotated[float, _field("search.minutes")] | None = None
    stall: Annotated[int, _field("search.stall")] | None = None
    sampler: Annotated[
        Literal["auto", "guided", "tpe", "nsga2", "nsga3", "gp", "random"], _field("search.sampler")
    ] = "auto"
    also_minimize: Annotated[tuple[Count, ...], _field("search.also_minimize", strict=False)] = ()
    max_latency_ms: Annotated[float, _field("search.max_latency_ms")] | None = None
    max_macs: Annotated[int, _field("search.max_macs")] | None = None
    max_params: Annotated[int, _field("search.max_params")] | None = None
    max_peak_memory_bytes: Annotated[int, _field("search.max_peak_memory_bytes")] | None = None
    device: Annotated[tuple[SearchDevice, ...], Field(strict=False, max_length=100)] = ()
    workers: Annotated[int, _field("search.workers")] = 1
    storage: Annotated[str, BeforeValidator(_storage), _field("search.storage")] = "journal"

    @field_validator("device")
    @classmethod
    def _named_apart(cls, devices: tuple[SearchDevice, ...]) -> tuple[SearchDevice, ...]:
        names = [Path(device.table).stem for device in devices]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"two tables are called {_shown_text(twice[0])}, and results are named by them"
            )
        return devices

    @field_serializer("storage")
    def _without_password(self, storage: str) -> str:
        """A password does not reach a run folder."""
        if storage == "journal":
            return storage
        from nas.storage_address import redact_address

        return redact_address(storage)


class FinishSettings(_Table):
    """What is done with the front: how many of its members are timed as whole networks."""

    measure: Annotated[int, _field("finish.measure")] = 20


class JobSettings(_Table):
    """A whole job file; jobs/overnight.toml shows every key."""

    name: Annotated[str, AfterValidator(check_name), _field("name")] = "overnight"
    seed: Annotated[int, _field("seed")] = 0
    budget: Annotated[str, BeforeValidator(_duration), _field("budget")] = "8h"
    data: DataSettings
    device: DeviceSettings = DeviceSettings()
    training: TrainingOptions = TrainingOptions()
    space: Annotated[tuple[SpaceSettings, ...], Field(min_length=1, max_length=100, strict=False)]
    search: SearchSettings = SearchSettings()
    finish: FinishSettings = FinishSettings()

    @property
    def budget_s(self) -> float:
        """The whole job's budget in seconds."""
        return seconds_of(self.budget)

    def to_toml(self) -> str:
        """The resolved job file: every key with its value, unset ones left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def job_path(name_or_path: str) -> Path:
    """The file of a job: a path, or the name of a job that ships with the package.

    Raises JobFileError, naming the jobs that ship.
    """
    path = Path(name_or_path)
    if os.path.isfile(path):
        return path
    shipped = {each.stem: each for each in files.packaged_folder("jobs").glob("*.toml")}
    if name_or_path in shipped:
        return shipped[name_or_path]
    if os.path.exists(path):  # a folder or a device; reading it says so
        return path
    raise JobFileError(
        f"There is no job file {_shown_text(name_or_path)}.",
        remedy="Give the path of a TOML file, or one of the jobs that ship: "
        f"{', '.join(sorted(shipped))}.",
    )


def load_job(path: Path) -> JobSettings:
    """Reads and checks a job file.

    Raises JobFileError naming the first wrong keys with their lines, what came and what is allowed.
    """
    # Neither the errors of the readers nor their causes are shown: they may repeat a password.
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"is not UTF-8 (at byte {error.start})") from None
    try:
        return JobSettings.model_validate(_parsed(text))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        told = [_explain(dict(problem), text) for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            told.append(f"There are {len(problems) - MAX_PROBLEMS} more problems.")
        raise JobFileError(f"{path}: " + "\n".join(told)) from None
    except ValueError as error:
        reason = str(error)
        if may_hold_password(reason):
            position = re.search(r"\(at [a-z0-9 ,]*\)$", reason)
            reason = f"it has an error {position.group() if position else ''}".rstrip()
        raise _unreadable(path, f"is not TOML: {printable(reason)[:200]}") from None


def _parsed(text: str) -> dict[str, Any]:
    """What a TOML text holds. Raises ValueError."""
    if sum(line.count(".") ** 2 for line in text.splitlines()) > _MAX_NESTING:
        raise ValueError("its keys are nested too deeply")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unreadable(path: Path, reason: str) -> JobFileError:
    return JobFileError(
        f"{path} {reason}.", remedy="Give a TOML file; jobs/overnight.toml shows every key."
    )


def with_search(settings: JobSettings, options: dict[str, Any]) -> JobSettings:
    """A job with other settings of its search.

    Raises RequestError naming what is wrong with an option.
    """
    try:
        search = SearchSettings.model_validate({**dict(settings.search), **options})
    except ValidationError as error:
        raise refused_option(error) from None
    return settings.model_copy(update={"search": search})


def refused_option(error: ValidationError) -> RequestError:
    """The error for settings that were given as options of a command."""
    problem = error.errors(include_url=False)[0]
    key = next(part for part in reversed(problem["loc"]) if isinstance(part, str))
    return RequestError(_refused(f"--{key.replace('_', '-')}", problem))


def _explain(problem: dict[str, Any], text: str) -> str:
    location: tuple[int | str, ...] = problem["loc"]
    key = _key(location)
    line = _line(text, location)
    where = f"line {line}: {key}" if line else key
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = _keys_beside(location)
        close = difflib.get_close_matches(str(location[-1])[:60], allowed, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{where} is not a key.{hint} Allowed here: {', '.join(allowed)}."
    if kind == "missing":
        return f"{key} is missing: {_MEANING.get(key, 'it has no default')}."
    return _refused(where, problem)


def _key(location: Sequence[int | str]) -> str:
    """The key of a location, such as search.device.table."""
    return ".".join(_shown_text(part) for part in location if isinstance(part, str))


def _refused(where: str, problem: Mapping[str, Any]) -> str:
    location, kind = problem["loc"], problem["type"]
    reason = problem["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "tuple_type") and _key(location) in ("space", "search.device"):
        reason = f"write [[{_key(location)}]] once for each"
    elif kind == "model_type":
        reason = f"write one table, [{_key(location)}]"
    elif kind == "tuple_type":
        reason = "write a list"
    came = "" if location[-1] == "storage" else f" is {_shown(problem['input'])}"
    return f"{where}{came}: {reason[0].lower()}{reason[1:]}."


def _shown(value: Any) -> str:
    """A value of a job file as a message shows it: short, and never an address or a part of one."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str) and may_hold_password(value):
        return "an address"
    return printable(shortened(value))


def _shown_text(text: str) -> str:
    return REDACTED if may_hold_password(text) else printable(shortened_text(text))


_MEANING = {
    "data": 'add [data] with source = "digits" or a path',
    "data.source": '"digits" or the path of parquet files or an image folder',
    "search.device.table": "a latency table that `nas table build` made on that device",
    "space": 'add [[space]] with name = "mobilenet", one a family',
    "space.name": "the name of a space or the path of a Python file",
}


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys that a table knows, for the table that holds the last part of `location`."""
    model: type[BaseModel] = JobSettings
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(c for c in (annotation, *get_args(annotation)) if isinstance(c, type))
    return list(model.model_fields)


def _line(text: str, location: tuple[int | str, ...]) -> int | None:
    """The line (from 1) where a key stands, or its table's header; None if it cannot be told."""
    tables = [str(part) for part in location if isinstance(part, str)]
    element = next((part for part in location[:-1] if isinstance(part, int)), None)
    header, key = ".".join(tables[:-1]), tables[-1]
    current, count, fallback = "", -1, None
    for number, line in enumerate(text.splitlines(), start=1):
        found = re.match(r"\s*\[+\s*([\w.-]+)\s*\]+", line)
        if found:
            current = found.group(1)
            count += current == header and "[[" in line
            if current in (header or key, ".".join(tables)) and element in (None, count):
                fallback = number
        elif current == header and element in (None, count):
            assigned = re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)
            if assigned and assigned.group(1) in (key, ".".join(tables)):
                return number
    return fallback
