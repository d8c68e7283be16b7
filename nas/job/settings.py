"""The job file: its tables and keys, and how it is read.

`nas.job.keys` declares the meaning and the bounds of each key, `nas.job.settings_errors` words the
messages about wrong files.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from nas import files
from nas.arguments import checked
from nas.deploy.formats import DEFAULT_FORMATS, format_names
from nas.documents import read_bytes, shortened_text
from nas.errors import JobFileError, RequestError, printable
from nas.job.keys import KEYS, MAX_MINUTES, constraints
from nas.job.settings_errors import describe_problems, option_error
from nas.latency.runtime import Figure
from nas.names import check_name, name_like
from nas.supernet.records import MIN_ANCHORS

if TYPE_CHECKING:
    from nas.search.budget import Stall

MAX_BYTES = 2**20
"""Size in bytes of the largest job file that is read; the packaged ones have about 500 bytes."""

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


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


def _check_duration(value: Any) -> Any:
    if isinstance(value, str):
        seconds_of(value)
    return value


def _check_stall(value: Any) -> Any:
    fewest = int(KEYS["search.stall"].bounds["ge"])
    most = int(KEYS["search.stall"].bounds["le"])
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (is_number and fewest <= value <= most):
        raise ValueError(f'write "auto" or a number of trials from {fewest} to {most}')
    return value


def _check_flip(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError('write "auto", true or false')
    return value


def _check_shift(value: Any) -> Any:
    most = int(KEYS["training.shift"].bounds["le"])
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (is_number and 0 <= value <= most):
        raise ValueError(f'write "auto" or a number of pixels from 0 to {most}')
    return value


def _check_path(value: str) -> str:
    if not 0 < len(value) <= 4096 or not value.isprintable():
        raise ValueError("write 1 to 4096 printable characters")
    return value


PathText = Annotated[str, AfterValidator(_check_path)]
"""A path, or a name that may stand instead of a path, such as that of a packaged space."""


def _field(path: str, **settings: Any) -> Any:
    """Return pydantic's `Field` for a key of the job file, see `nas.job.keys`."""
    return Field(**{**constraints(path), **settings})


class _Table(BaseModel):
    """A TOML table that refuses unknown keys and values of another type."""

    # Errors hide the input: it may be the address of a storage, with a password.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class DataSettings(_Table):
    """The table `[data]`: where the images are and how they are split."""

    source: Annotated[PathText, _field("data.source")]
    validation_fraction: Annotated[float, _field("data.validation_fraction")] | None = None
    image_size: Annotated[int, _field("data.image_size")] | None = None
    on_bad_image: Annotated[Literal["fail", "skip"], _field("data.on_bad_image")] = "fail"
    class_folders: Annotated[Literal["auto", "top", "lowest"], _field("data.class_folders")] = (
        "auto"
    )
    background: Annotated[str, _field("data.background", max_length=100)] = "white"
    license: Annotated[str, _field("data.license", max_length=100_000)] = ""

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, background: str) -> str:
        from nas.data.dataset import hex_colour  # Imports Pillow.

        hex_colour(background)
        return background


class DeviceSettings(_Table):
    """The table `[device]`: the device that the networks are for, and how they run on it.

    The installed runtimes define the allowed values of `runtime`, `target` and `dtype`, see
    `nas.latency.open_runtime`. All latencies are those of `batch` images at once.
    """

    runtime: Annotated[str, _field("device.runtime", min_length=1, max_length=64)] = "tvm"
    target: Annotated[PathText, _field("device.target")] = "cpu"
    threads: Annotated[int, _field("device.threads")] = 1
    dtype: Annotated[str, _field("device.dtype", min_length=1, max_length=64)] = "float32"
    batch: Annotated[int, _field("device.batch")] = 1
    tables: Annotated[PathText, _field("device.tables")] = "latency_tables"


class TrainingOptions(_Table):
    """The table `[training]`: how the supernets are trained, and on which device."""

    device: Annotated[PathText, _field("training.device")] = "auto"
    epochs: Annotated[int, _field("training.epochs")] | None = None
    minutes: Annotated[float, _field("training.minutes")] | None = None
    batch_size: Annotated[int, _field("training.batch_size")] | None = None
    learning_rate: Annotated[float, _field("training.learning_rate")] | None = None
    random_subnets: Annotated[int, _field("training.random_subnets")] | None = None
    progressive_resizing: Annotated[float, _field("training.progressive_resizing")] | None = None
    label_smoothing: Annotated[float, _field("training.label_smoothing")] | None = None
    weight_decay: Annotated[float, _field("training.weight_decay")] | None = None
    flip: Annotated[
        bool | Literal["auto"],
        Field(description=KEYS["training.flip"].meaning),
        BeforeValidator(_check_flip),
    ] = "auto"
    shift: Annotated[
        int | Literal["auto"],
        Field(description=KEYS["training.shift"].meaning),
        BeforeValidator(_check_shift),
    ] = "auto"
    colour: Annotated[float, _field("training.colour")] | None = None
    randaugment: Annotated[int, _field("training.randaugment")] | None = None
    magnitude: Annotated[float, _field("training.magnitude")] | None = None
    cutout: Annotated[float, _field("training.cutout")] | None = None
    precision: Annotated[Literal["auto", "float32", "bfloat16"], _field("training.precision")] = (
        "auto"
    )

    @property
    def length(self) -> dict[str, float] | None:
        """The length of a training, `epochs` or `minutes`; None if the budget decides it."""
        return self.model_dump(include={"epochs", "minutes"}, exclude_none=True) or None

    @field_validator("minutes")
    @classmethod
    def _take_the_place_of_epochs(cls, minutes: float | None, info: ValidationInfo) -> float | None:
        if minutes is not None and info.data.get("epochs") is not None:
            raise ValueError("training.epochs is set, too; set one of the two")
        return minutes


class SpaceSettings(_Table):
    """One `[[space]]`: the name of a search space, or the path of a Python file."""

    name: Annotated[PathText, _field("space.name")]


class SearchDevice(_Table):
    """One `[[search.device]]`: a further device that the networks are for, by its latency table."""

    table: Annotated[PathText, _field("search.device.table")]
    max_latency_ms: Annotated[float, _field("search.device.max_latency_ms")] | None = None


def _check_storage(value: Any) -> Any:
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


FurtherObjective = Literal[
    "macs",
    "params",
    "peak_memory_bytes",
    "sram_kib",
    "flash_kib",
    "dram_traffic_kib",
    "flash_traffic_kib",
]
"""An objective beside latency and error: a count of a network's graph, or a `Figure`."""

MaximisedFigure = Literal["mac_utilisation"]
"""A `Figure` of which more is better; its limit is the smallest value."""


class SearchSettings(_Table):
    """The table `[search]`: length, sampler, objectives, limits, workers and storage."""

    trials: Annotated[int, _field("search.trials")] | None = None
    minutes: Annotated[float, _field("search.minutes")] | None = None
    stall: (
        Annotated[
            int | Literal["auto"],
            Field(description=KEYS["search.stall"].meaning),
            BeforeValidator(_check_stall),
        ]
        | None
    ) = None
    sampler: Annotated[
        Literal["auto", "guided", "tpe", "nsga2", "nsga3", "gp", "random"], _field("search.sampler")
    ] = "auto"
    also_minimize: Annotated[
        tuple[FurtherObjective, ...], _field("search.also_minimize", strict=False)
    ] = ()
    also_maximize: Annotated[
        tuple[MaximisedFigure, ...], _field("search.also_maximize", strict=False)
    ] = ()
    max_latency_ms: Annotated[float, _field("search.max_latency_ms")] | None = None
    max_macs: Annotated[int, _field("search.max_macs")] | None = None
    max_params: Annotated[int, _field("search.max_params")] | None = None
    max_peak_memory_bytes: Annotated[int, _field("search.max_peak_memory_bytes")] | None = None
    max_sram_kib: Annotated[float, _field("search.max_sram_kib")] | None = None
    max_flash_kib: Annotated[float, _field("search.max_flash_kib")] | None = None
    max_dram_traffic_kib: Annotated[float, _field("search.max_dram_traffic_kib")] | None = None
    max_flash_traffic_kib: Annotated[float, _field("search.max_flash_traffic_kib")] | None = None
    min_mac_utilisation: Annotated[float, _field("search.min_mac_utilisation")] | None = None
    device: Annotated[tuple[SearchDevice, ...], Field(strict=False, max_length=100)] = ()
    correct_scores: Annotated[bool, _field("search.correct_scores")] = True
    anchors: Annotated[int, _field("search.anchors")] = 0
    workers: Annotated[int, _field("search.workers")] = 1
    storage: Annotated[str, BeforeValidator(_check_storage), _field("search.storage")] = "journal"

    @field_validator("anchors")
    @classmethod
    def _suffice_for_a_correction(cls, anchors: int, info: ValidationInfo) -> int:
        if 0 < anchors < MIN_ANCHORS:
            raise ValueError(f"allowed are 0 and {MIN_ANCHORS} or more")
        if anchors and not info.data.get("correct_scores"):
            raise ValueError("search.correct_scores is false, and only a correction needs anchors")
        return anchors

    @property
    def figures(self) -> dict[Figure, float | None]:
        """The figures of networks that the search optimises or limits, with their limits."""
        limits: dict[Figure, float | None] = {
            "sram_kib": self.max_sram_kib,
            "flash_kib": self.max_flash_kib,
            "dram_traffic_kib": self.max_dram_traffic_kib,
            "flash_traffic_kib": self.max_flash_traffic_kib,
            "mac_utilisation": self.min_mac_utilisation,
        }
        return {
            name: limit
            for name, limit in limits.items()
            if limit is not None or name in (*self.also_minimize, *self.also_maximize)
        }

    @property
    def effective_stall(self) -> Stall | None:
        """What ends the search before its trials are done; None if nothing does.

        The trials of the job file are a wish, those that a budget gives are a limit.
        """
        from nas.search.proposals import default_stall

        return self.stall or default_stall(self.sampler, self.trials)

    @field_validator("sampler")
    @classmethod
    def _check_sampler_has_model(cls, sampler: str, info: ValidationInfo) -> str:
        if info.data.get("stall") == "auto" and sampler not in ("auto", "guided"):
            raise ValueError(
                "it has no model that could end the search; give search.stall as a number of "
                "trials, or leave it out"
            )
        return sampler

    @field_validator("device")
    @classmethod
    def _check_names_differ(cls, devices: tuple[SearchDevice, ...]) -> tuple[SearchDevice, ...]:
        names = [Path(device.table).stem for device in devices]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise ValueError(
                f"two tables are called {shortened_text(repeated[0])}, and results are named by "
                "them"
            )
        return devices

    @field_serializer("storage")
    def _without_password(self, storage: str) -> str:
        """Return the address without its password, which must not be written to a run folder."""
        if storage == "journal":
            return storage
        from nas.storage_address import redact_address

        return redact_address(storage)


def _check_format(name: str) -> str:
    if name not in format_names():
        raise ValueError(f"the formats are {', '.join(format_names())}")
    return name


FormatName = Annotated[str, AfterValidator(_check_format)]
"""The name of a file format of an exported model."""


class FinishSettings(_Table):
    """The table `[finish]`: how many candidates are timed, trained and exported at the end."""

    measure: Annotated[int, _field("finish.measure")] = 20
    retrain: Annotated[int, _field("finish.retrain")] | None = None
    export: Annotated[tuple[FormatName, ...], _field("finish.export", strict=False)] = (
        DEFAULT_FORMATS
    )


class JobSettings(_Table):
    """The settings of a whole job file; jobs/overnight.toml shows every key.

    `load_job` names a job without a name after its file.
    """

    name: Annotated[str, AfterValidator(check_name), _field("name")] = "job"
    seed: Annotated[int, _field("seed")] = 0
    budget: Annotated[str, BeforeValidator(_check_duration), _field("budget")] = "8h"
    data: DataSettings
    device: DeviceSettings = DeviceSettings()
    training: TrainingOptions = TrainingOptions()
    space: Annotated[tuple[SpaceSettings, ...], Field(min_length=1, max_length=100, strict=False)]
    search: SearchSettings = SearchSettings()
    finish: FinishSettings = FinishSettings()

    @property
    def budget_s(self) -> float:
        """Time of the whole job in seconds."""
        return seconds_of(self.budget)

    def to_toml(self) -> str:
        """Return the text of a job file that names every key that has a value."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def job_path(name_or_path: str) -> Path:
    """Return the path of a job file.

    Args:
        name_or_path: path of a job file, or the name of a packaged job such as `quickstart`.

    Raises:
        JobFileError: there is neither. The message names the packaged jobs.
    """
    path = Path(name_or_path)
    if os.path.isfile(path):
        return path
    packaged = {file.stem: file for file in files.packaged_folder("jobs").glob("*.toml")}
    if name_or_path in packaged:
        return packaged[name_or_path]
    if os.path.exists(path):  # A folder or a device: `load_job` refuses it with the reason.
        return path
    raise JobFileError(
        f"There is no job file {printable(shortened_text(name_or_path))}.",
        remedy="Give the path of a TOML file, or the name of a packaged job: "
        f"{', '.join(sorted(packaged))}.",
    )


@checked
def load_job(path: Path) -> JobSettings:
    """Read a job file and check it. A job without a `name` is called as its file.

    Args:
        path: path of the job file.

    Raises:
        JobFileError: the file cannot be read, or is no valid job. The message names the first wrong
            keys, their values and what is allowed.
    """
    # Errors of the validation are not chained, because they may repeat a password.
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise _file_error(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _file_error(path, f"is not UTF-8 (at byte {error.start})") from None
    try:
        job = JobSettings.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise JobFileError(f"{path}: {describe_problems(error, JobSettings)}") from None
    except (ValueError, RecursionError) as error:
        raise _file_error(path, f"is not TOML: {printable(str(error))[:200]}") from None
    return job if "name" in job.model_fields_set else _named_after(path, job)


def _named_after(path: Path, job: JobSettings) -> JobSettings:
    """Return a job with the name of its file, with a hyphen for what a name cannot have."""
    try:
        return job.model_copy(update={"name": name_like(path.stem)})
    except ValueError as error:
        raise JobFileError(
            f"{path} has no name, and none can be made of that of the file: {error}.",
            remedy='Begin the job file with a line such as name = "photos".',
        ) from None


def _file_error(path: Path, reason: str) -> JobFileError:
    return JobFileError(
        f"{path} {reason}.", remedy="Give a TOML file; jobs/overnight.toml shows every key."
    )


def with_search(settings: JobSettings, options: dict[str, Any]) -> JobSettings:
    """Return a job with other settings of its search.

    Args:
        settings: the settings of the job.
        options: new values by the name of the key in `[search]`.

    Raises:
        RequestError: a value is not allowed. The message names the option of the command.
    """
    try:
        search = SearchSettings.model_validate({**dict(settings.search), **options})
    except ValidationError as error:
        raise option_error(error) from None
    return settings.model_copy(update={"search": search})
