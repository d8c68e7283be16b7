"""`JobSettings`: what a run was asked to do, its tables and keys.

A job file (`nas.job.settings`) is read into it, and the record of a run holds it. `nas.run.keys`
declares the meaning and the bounds of each key.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from nas.errors import RequestError
from nas.files.documents import Document, shortened_text
from nas.files.names import check_name
from nas.graph import BOTH_DTYPES, DEFAULT_DTYPE
from nas.run.keys import KEYS, MAX_MINUTES, constraints
from nas.supernet.records import MIN_ANCHORS
from nas.supernet.settings import (
    FINE_TUNING_RATE,
    MANY_IMAGES,
    TrainingSettings,
    scaled_learning_rate,
)

if TYPE_CHECKING:
    from nas.search.budget import Stall

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


def _check_number_or_auto(value: Any, *, key: str, noun: str) -> Any:
    fewest, most = (int(KEYS[key].bounds[end]) for end in ("ge", "le"))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value not in ("auto", None) and not (is_number and fewest <= value <= most):
        raise ValueError(f'write "auto" or a number of {noun} from {fewest} to {most}')
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


def _check_shares(shares: tuple[float, ...]) -> tuple[float, ...]:
    if not shares or min(shares) <= 0 or max(shares) != 1:
        raise ValueError("write shares above 0, the largest of which is 1.0, as [0.6, 0.8, 1.0]")
    return tuple(sorted(set(shares)))


Shares = Annotated[tuple[float, ...], AfterValidator(_check_shares)]
"""Different shares of the image size in their order, the last of which is 1."""


def _check_dtype(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or sorted(map(str, value)) != sorted(BOTH_DTYPES):
        raise ValueError('write one, such as "int8", or ["float32", "int8"]')
    return BOTH_DTYPES


def _why_undecoded(name: str) -> str:
    """Return what is wrong with a name that has bytes which Python could not decode."""
    try:
        name.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError:
        return (
            "the name is not valid UTF-8, which job files and records are written in; rename the "
            "file or folder, or give the path of a link to it"
        )
    return "the locale of this process does not read UTF-8; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"


def _check_line(value: str) -> str:
    if any("\udc80" <= character <= "\udcff" for character in value):
        raise ValueError(_why_undecoded(value))
    if not 0 < len(value) <= 4096 or not value.isprintable():
        raise ValueError("write 1 to 4096 printable characters")
    return value


PathText = Annotated[str, AfterValidator(_check_line)]
"""A path, or a name that may stand instead of a path, such as that of a packaged space."""

Statement = Annotated[str, AfterValidator(_check_line)]
"""What a user states in one line, such as a licence or an address."""


def _field(path: str, **settings: Any) -> Any:
    """Return pydantic's `Field` for a key of the job file, see `nas.run.keys`."""
    return Field(**{**constraints(path), **settings})


class Cost(NamedTuple):
    """How a page shows a cost of a network: a count of its graph, or a figure of its runtime.

    Attributes:
        label: name with the unit.
        scale: number of these units in a unit of the column.
        is_maximised: whether more is better, so that its limit is the smallest value.
        note: what a reader must know about it; may be empty.
    """

    label: str
    scale: float = 1.0
    is_maximised: bool = False
    note: str = ""


COUNTS = {
    "macs": Cost("MACs"),
    "params": Cost("parameters"),
    "peak_memory_bytes": Cost("peak memory, KiB", 1 / 1024),
}
"""The costs that every graph has, by the name of their column."""

_KNOWN_FIGURES = {
    "arena_kib": Cost(
        "tensor arena, KiB",
        note="The tensor arena is the SRAM that TensorFlow Lite Micro takes on a microcontroller. "
        "Latencies are those of the device that was timed, not of the microcontroller.",
    ),
    "energy_uj": Cost("energy, uJ"),
    "sram_kib": Cost("SRAM, KiB"),
    "flash_kib": Cost("flash, KiB"),
    "dram_traffic_kib": Cost("DRAM traffic, KiB"),
    "flash_traffic_kib": Cost("flash traffic, KiB"),
    "mac_utilisation": Cost("MAC utilisation, %", 100.0, is_maximised=True),
}
"""Figures of runtimes with a label of their own; others are shown by their names."""

DEVICE_LATENCY = "predicted_us "
"""Beginning of the columns with the latencies on further devices, before the device's name."""


def figure_cost(name: str, *, is_maximised: bool = False) -> Cost:
    """Return how a page shows a figure of a runtime; one that is not known has its name as label.

    Args:
        name: name of the figure.
        is_maximised: whether more of one that is not known is better.
    """
    return _KNOWN_FIGURES.get(name) or Cost(name, is_maximised=is_maximised)


class _Table(BaseModel):
    """A TOML table that refuses unknown keys and values of another type."""

    # Errors hide the input: it may be the address of a storage, with a password.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class DataOptions(Document):
    """How the images of a source are read and split, beside their size and the seed."""

    validation_fraction: Annotated[float, _field("data.validation_fraction")] | None = None
    on_bad_image: Annotated[Literal["fail", "skip"], _field("data.on_bad_image")] = "fail"
    class_folders: Annotated[Literal["auto", "top", "lowest"], _field("data.class_folders")] = (
        "auto"
    )
    group: Annotated[str, _field("data.group", max_length=1000)] = ""
    on_duplicate: Annotated[Literal["warn", "group", "fail"], _field("data.on_duplicate")] = "warn"
    metric: Annotated[Literal["auto", "accuracy", "balanced_accuracy"], _field("data.metric")] = (
        "auto"
    )
    background: Annotated[str, _field("data.background", max_length=100)] = "white"

    @property
    def load_options(self) -> dict[str, Any]:
        """The options as arguments of `nas.data.load_dataset`."""
        return self.model_dump(include=set(DataOptions.model_fields))


class DataSettings(DataOptions, _Table):
    """The table `[data]`: where the images are and how they are split."""

    source: Annotated[PathText, _field("data.source")]
    image_size: Annotated[
        int | Literal["auto"] | None,
        Field(description=KEYS["data.image_size"].meaning),
        BeforeValidator(partial(_check_number_or_auto, key="data.image_size", noun="pixels")),
    ] = None
    license: Annotated[str, _field("data.license", max_length=100_000)] = ""
    unknown: Annotated[PathText, _field("data.unknown")] | None = None

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
    dtype: Annotated[
        str | tuple[str, ...],
        BeforeValidator(_check_dtype),
        _field("device.dtype", min_length=1, max_length=64),
    ] = DEFAULT_DTYPE
    batch: Annotated[int, _field("device.batch")] = 1
    tables: Annotated[PathText, _field("device.tables")] = "latency_tables"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The type of weights and activations, or `BOTH_DTYPES` if networks differ in it."""
        return (self.dtype,) if isinstance(self.dtype, str) else self.dtype

    def runtime_options(self, dtype: str | None = None) -> dict[str, Any]:
        """Return the arguments of `open_runtime` beside the name; by default of the first dtype."""
        dtype = dtype or self.dtypes[0]
        return {"target": self.target, "threads": self.threads, "dtype": dtype}


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

    def settings(
        self,
        flip: bool | None = None,
        *,
        batch_size: int | None = None,
        epochs: float | None = None,
        seconds: float | None = None,
    ) -> TrainingSettings:
        """Return the settings of a training.

        Args:
            flip: what an experiment decided about mirroring; None if it decided nothing.
            batch_size: batch size if the job sets none.
            epochs: number of epochs in place of the length that the job sets.
            seconds: time budget of a supernet in place of that length.
        """
        given = {name: value for name, value in self if value not in (None, "auto")}
        if batch_size is not None:
            given.setdefault("batch_size", batch_size)
        if "batch_size" in given:
            given.setdefault("learning_rate", scaled_learning_rate(given["batch_size"]))
        minutes = given.pop("minutes", None)
        if seconds is None and epochs is None and minutes is not None:
            seconds = 60 * minutes
        decided = {"flip": flip, "epochs": epochs}
        given |= {name: value for name, value in decided.items() if value is not None}
        return TrainingSettings(**given, seconds=seconds)

    def fine_tuned(self, settings: TrainingSettings, images: int) -> TrainingSettings:
        """Return the settings of a training that starts from published weights.

        Its learning rate is lower, again with few training images, and its images have their size
        from the first step, unless the job sets these. Published weights know images of that size:
        with 2,000 photos, the largest network was 4 points worse after as much time with
        progressive resizing.

        Args:
            settings: those of a training that starts from random weights.
            images: number of training images.
        """
        if self.learning_rate is None:
            factor = FINE_TUNING_RATE * min(1.0, images / MANY_IMAGES)
            settings = replace(settings, learning_rate=factor * settings.learning_rate)
        if settings.progressive_resizing is None:
            settings = replace(settings, progressive_resizing=0.0)
        return settings

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


class PretrainedSettings(_Table):
    """The table `pretrained` of a space: a file of published weights, and where it comes from.

    A path stands for a table with the file alone.
    """

    file: Annotated[PathText, _field("space.pretrained.file")]
    conventions: (
        Annotated[
            Literal["torch", "torchvision_v3", "tensorflow"],
            _field("space.pretrained.conventions"),
        ]
        | None
    ) = None
    source: Annotated[Statement, _field("space.pretrained.source")] | None = None
    licence: Annotated[Statement, _field("space.pretrained.licence")] | None = None
    data: Annotated[Statement, _field("space.pretrained.data")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_path(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"file": value}
        if not isinstance(value, dict | cls):
            raise ValueError('write the path of a file, or a table such as { file = "PATH" }')
        return value


class JobSpace(_Table):
    """One `[[space]]`: a search space, its resolutions, and where its supernet starts from."""

    name: Annotated[PathText, _field("space.name")]
    resolutions: Annotated[Shares, _field("space.resolutions", strict=False)] | None = None
    pretrained: PretrainedSettings | None = None


class SearchDevice(_Table):
    """One `[[search.device]]`: a further device that the networks are for, by its latency table."""

    table: Annotated[PathText, _field("search.device.table")]
    max_latency_ms: Annotated[float, _field("search.device.max_latency_ms")] | None = None

    @property
    def name(self) -> str:
        """The name of its table's file, without the suffix."""
        return Path(self.table).stem


def _check_storage(value: Any) -> Any:
    if not isinstance(value, str) or value == "journal":
        return value
    if "://" not in value or len(value) > 4096:
        raise ValueError('allowed are "journal" and addresses such as "postgresql://USER@HOST/DB"')
    from nas.files.storage_address import redact_address

    try:
        redact_address(value)
    except RequestError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return value


def _check_figure(name: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]{0,63}", name):
        raise ValueError("write the name of a figure in small letters, such as sram_kib")
    return name


FigureName = Annotated[str, AfterValidator(_check_figure)]
"""Name of a cost that a runtime knows, see `Runtime.figures`."""


class SearchSettings(_Table):
    """The table `[search]`: length, sampler, objectives, limits, workers and storage."""

    trials: Annotated[int, _field("search.trials")] | None = None
    minutes: Annotated[float, _field("search.minutes")] | None = None
    stall: (
        Annotated[
            int | Literal["auto"],
            Field(description=KEYS["search.stall"].meaning),
            BeforeValidator(partial(_check_number_or_auto, key="search.stall", noun="trials")),
        ]
        | None
    ) = None
    sampler: Annotated[
        Literal["auto", "guided", "tpe", "nsga2", "nsga3", "gp", "random"], _field("search.sampler")
    ] = "auto"
    also_minimize: Annotated[
        tuple[FigureName, ...], _field("search.also_minimize", strict=False)
    ] = ()
    also_maximize: Annotated[
        tuple[FigureName, ...], _field("search.also_maximize", strict=False, validate_default=True)
    ] = ()
    max_latency_ms: Annotated[float, _field("search.max_latency_ms")] | None = None
    max_macs: Annotated[int, _field("search.max_macs")] | None = None
    max_params: Annotated[int, _field("search.max_params")] | None = None
    max_peak_memory_bytes: Annotated[int, _field("search.max_peak_memory_bytes")] | None = None
    limits: Annotated[dict[FigureName, float], _field("search.limits")] = {}
    device: Annotated[tuple[SearchDevice, ...], Field(strict=False, max_length=100)] = ()
    correct_scores: Annotated[bool, _field("search.correct_scores")] = True
    anchors: Annotated[
        int | Literal["auto"],
        Field(description=KEYS["search.anchors"].meaning),
        BeforeValidator(partial(_check_number_or_auto, key="search.anchors", noun="networks")),
    ] = "auto"
    workers: Annotated[int, _field("search.workers")] = 1
    storage: Annotated[str, BeforeValidator(_check_storage), _field("search.storage")] = "journal"

    @field_validator("anchors")
    @classmethod
    def _suffice_for_a_correction(
        cls, anchors: int | Literal["auto"], info: ValidationInfo
    ) -> int | Literal["auto"]:
        if anchors == "auto":
            return anchors
        if 0 < anchors < MIN_ANCHORS:
            raise ValueError(f"allowed are 0 and {MIN_ANCHORS} or more")
        if anchors and not info.data.get("correct_scores"):
            raise ValueError("search.correct_scores is false, and only a correction needs anchors")
        return anchors

    @field_validator("limits")
    @classmethod
    def _check_limits(cls, limits: dict[str, float]) -> dict[str, float]:
        for name, limit in limits.items():
            if name in COUNTS:
                raise ValueError(f"the limit of {name} is search.max_{name}")
            if limit < 0:
                raise ValueError(f"the limit of {name} is negative")
        return limits

    @field_validator("also_maximize")
    @classmethod
    def _check_directions(cls, maximised: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = {**COUNTS, **_KNOWN_FIGURES}
        for name in maximised:
            if name in known and not known[name].is_maximised:
                raise ValueError(f"less {name} is better; put it into search.also_minimize")
        for name in info.data.get("also_minimize", ()):
            if name in maximised or (name in known and known[name].is_maximised):
                raise ValueError(
                    f"search.also_minimize has {name}; put it into search.also_maximize alone"
                )
        return maximised

    @property
    def costs(self) -> dict[str, Cost]:
        """The counts, and the figures that the search optimises or limits, by their columns."""
        names = (*self.also_minimize, *self.also_maximize, *self.limits)
        figures = {
            name: figure_cost(name, is_maximised=name in self.also_maximize)
            for name in names
            if name not in COUNTS
        }
        return COUNTS | figures

    @property
    def cost_limits(self) -> dict[str, float]:
        """The limits of `costs` that have one: the smallest value of a maximised one."""
        counts = {name: getattr(self, f"max_{name}") for name in COUNTS}
        return {name: limit for name, limit in counts.items() if limit is not None} | self.limits

    @property
    def optimised_costs(self) -> tuple[str, ...]:
        """The further objectives, those that are minimised first."""
        return (*self.also_minimize, *self.also_maximize)

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
        names = [device.name for device in devices]
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
        from nas.files.storage_address import redact_address

        return redact_address(storage)


class FinishSettings(_Table):
    """The table `[finish]`: what is timed, trained and exported at the end."""

    measure: Annotated[int, _field("finish.measure")] = 20
    retrain: Annotated[int, _field("finish.retrain")] | None = None
    references: (
        Annotated[
            tuple[Annotated[str, AfterValidator(check_name)], ...],
            _field("finish.references", strict=False, max_length=1000),
        ]
        | None
    ) = None
    export: Annotated[tuple[str, ...], _field("finish.export", strict=False)] | None = None
    min_confidence: Annotated[float, _field("finish.min_confidence")] | None = None
    min_accuracy: Annotated[float, _field("finish.min_accuracy")] | None = None
    pictures: Annotated[bool, _field("finish.pictures")] = True

    @field_validator("min_accuracy")
    @classmethod
    def _take_the_place_of_a_confidence(
        cls, min_accuracy: float | None, info: ValidationInfo
    ) -> float | None:
        if min_accuracy is not None and info.data.get("min_confidence") is not None:
            raise ValueError("finish.min_confidence is set, too; set one of the two")
        return min_accuracy


class StudySettings(_Table):
    """The table `[study]`: what `nas study` trains, to compare it with what the search chose."""

    finalists: Annotated[int, _field("study.finalists")] = 5
    random: Annotated[int, _field("study.random")] = 1
    references: (
        Annotated[
            tuple[Annotated[str, AfterValidator(check_name)], ...],
            _field("study.references", strict=False, max_length=1000),
        ]
        | None
    ) = None
    epochs: Annotated[int, _field("study.epochs")] = 30
    seeds: Annotated[int, _field("study.seeds")] = 2
    workers: Annotated[int, _field("study.workers")] = 1


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
    space: Annotated[tuple[JobSpace, ...], Field(min_length=1, max_length=100, strict=False)]
    search: SearchSettings = SearchSettings()
    finish: FinishSettings = FinishSettings()
    study: StudySettings = StudySettings()

    @property
    def budget_s(self) -> float:
        """Time of the whole job in seconds."""
        return seconds_of(self.budget)

    @property
    def anchors(self) -> int:
        """Number of networks of each space that are trained alone before the search.

        Supernets of different spaces score on different scales, so several spaces need some.
        """
        if self.search.anchors != "auto":
            return self.search.anchors
        return MIN_ANCHORS if len(self.space) > 1 and self.search.correct_scores else 0

    def to_toml(self) -> str:
        """Return the text of a job file that names every key that has a value."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
