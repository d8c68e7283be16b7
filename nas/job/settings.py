"""The job file: what it may hold, and errors that name the key, the line and what is allowed."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)

from nas import resources
from nas.errors import JobFileError, RequestError

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(budget: str) -> float:
    """Seconds of a duration such as "90s", "45m", "8h" or "1h30m". Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", budget.replace(" ", ""))
    if not parts or "".join(a + b for a, b in parts) != budget.replace(" ", ""):
        raise ValueError(f'{budget!r} is no duration; write "45m", "8h" or "1h30m"')
    total = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if total <= 0:
        raise ValueError("a budget must be longer than nothing")
    return total


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        seconds_of(value)
    return value


class _Table(BaseModel):
    # Of what is refused, a storage's address may hold a password.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class DataSettings(_Table):
    """Where the images are and how they are split."""

    source: Annotated[str, Field(min_length=1)]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None
    on_bad_image: Literal["fail", "skip"] = "fail"
    license: str = ""


class DeviceSettings(_Table):
    """The device that the networks are for."""

    runtime: Literal["tvm"] = "tvm"
    target: str = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    dtype: Literal["float32"] = "float32"
    tables: str = "latency_tables"


class TrainingOptions(_Table):
    """How the supernets are trained, on which device of the training machine."""

    device: str = "auto"
    epochs: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    subnets: Literal["sandwich", "best_up", "worst_up", "single", "fair"] = "sandwich"
    random_subnets: Annotated[int, Field(ge=0)] | None = None
    progressive: Annotated[float, Field(ge=0, lt=1)] | None = None
    average: Annotated[float, Field(ge=0, lt=1)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    colour: Annotated[float, Field(ge=0, lt=1)] | None = None
    randaugment: Annotated[int, Field(ge=0)] | None = None
    magnitude: Annotated[float, Field(ge=0, le=1)] | None = None
    cutout: Annotated[float, Field(ge=0, lt=1)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class SpaceSettings(_Table):
    """A space by name, or the path of a Python file."""

    name: Annotated[str, Field(min_length=1)]


class SearchDevice(_Table):
    """Another device that the networks are for, by its latency table."""

    table: Annotated[str, Field(min_length=1)]
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None


def _storage(value: Any) -> Any:
    if not isinstance(value, str) or value == "journal":
        return value
    if "://" not in value:
        raise ValueError('allowed are "journal" and addresses such as "postgresql://USER@HOST/DB"')
    from nas.search.storage import shown

    try:
        shown(value)
    except RequestError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return value


Count = Literal["macs", "params", "peak_memory_bytes"]
"""What is counted from a network's graph."""


class SearchSettings(_Table):
    """How long to search and how, the limits that architectures must meet, and with whom."""

    trials: Annotated[int, Field(ge=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    stall: Annotated[int, Field(ge=1)] | None = None
    sampler: Literal["auto", "guided", "tpe", "nsga2", "nsga3", "gp", "random"] = "auto"
    also_minimize: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_macs: Annotated[int, Field(gt=0)] | None = None
    max_params: Annotated[int, Field(gt=0)] | None = None
    max_peak_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    device: Annotated[tuple[SearchDevice, ...], Field(strict=False)] = ()
    workers: Annotated[int, Field(ge=1)] = 1
    storage: Annotated[str, BeforeValidator(_storage)] = "journal"

    @field_validator("device")
    @classmethod
    def _named_apart(cls, devices: tuple[SearchDevice, ...]) -> tuple[SearchDevice, ...]:
        names = [Path(device.table).stem for device in devices]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two tables are called {twice[0]}, and results are named by them")
        return devices

    @field_serializer("storage")
    def _without_password(self, storage: str) -> str:
        """A password does not reach a run folder."""
        if storage == "journal":
            return storage
        from nas.search.storage import shown

        return shown(storage)


class FinishSettings(_Table):
    """What is done with the front: how many of its members are timed as whole networks."""

    measure: Annotated[int, Field(ge=0)] = 20


class JobSettings(_Table):
    """A whole job file; see README.md, "Your own job"."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "overnight"
    seed: Annotated[int, Field(ge=0)] = 0
    budget: Annotated[str, BeforeValidator(_duration)] = "8h"
    data: DataSettings
    device: DeviceSettings = DeviceSettings()
    training: TrainingOptions = TrainingOptions()
    space: Annotated[tuple[SpaceSettings, ...], Field(min_length=1, strict=False)]
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
    shipped = resources.folder("jobs") / f"{name_or_path}.toml"
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in resources.folder("jobs").glob("*.toml")))
    raise JobFileError(
        f"There is no job file {name_or_path}.",
        remedy=f"Give the path of a TOML file, or one of the jobs that ship: {known}.",
    )


def load_job(path: Path) -> JobSettings:
    """Reads and checks a job file.

    Raises JobFileError naming each wrong key with its line, what came and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return JobSettings.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        raise JobFileError(f"{path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise JobFileError(f"{path} is not TOML: {error}.") from error
    except ValidationError as error:
        problems = [_explain(dict(problem), text) for problem in error.errors()]
        raise JobFileError(f"{path}: " + "\n".join(problems)) from error


def with_search(settings: JobSettings, options: dict[str, Any]) -> JobSettings:
    """A job with other settings of its search.

    Raises RequestError naming what is wrong with an option.
    """
    try:
        search = SearchSettings.model_validate({**dict(settings.search), **options})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise RequestError(_refused(f"--{name.replace('_', '-')}", first)) from error
    return settings.model_copy(update={"search": search})


def _explain(problem: dict[str, Any], text: str) -> str:
    location: tuple[int | str, ...] = problem["loc"]
    key = ".".join(str(part) for part in location if isinstance(part, str))
    line = _line(text, location)
    where = f"line {line}: {key}" if line else key
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = _keys_beside(location)
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{where} is not a key.{hint} Allowed here: {', '.join(allowed)}."
    if kind == "missing":
        return f"{key} is missing: {_MEANING.get(key, 'it has no default')}."
    return _refused(where, problem)


def _refused(where: str, problem: Mapping[str, Any]) -> str:
    reason = problem["msg"].removeprefix("Value error, ")
    is_secret = problem["loc"][-1] == "storage"
    came = "" if is_secret else f" is {problem['input']!r}"
    return f"{where}{came}: {reason[0].lower()}{reason[1:]}."


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
