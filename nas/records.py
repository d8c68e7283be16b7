"""The records in a run folder's files, checked whenever a command reads one.

This module knows no other part of the package, so that all of them can use it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from nas.documents import Count, Document, Format, Fraction, Positive
from nas.errors import CheckpointError, RunFolderError

SCHEMA: Final = 1

TRAINING_LOG = "training.jsonl"
"""Log of a supernet's training, in the supernet's folder."""


def _file_name(name: str) -> str:
    if name != Path(name).name or name in ("", ".", "..") or not name.isprintable():
        raise ValueError("it should be the name of a file, without its folder")
    return name


Name = Annotated[str, AfterValidator(_file_name), Field(max_length=200)]
"""The name of a space or a file: it never leads out of the run folder."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]
"""A digest in hexadecimal digits, or its beginning."""


class _Part(Document):
    """A part of `run.json`. A start of the job rewrites it, and keeps fields it does not know."""

    model_config = ConfigDict(frozen=False, extra="allow")


class Stage(_Part):
    """Seconds that a stage took, over all starts of the job."""

    seconds: Annotated[float, Field(ge=0)] = 0.0


class DataSummary(_Part):
    """The images that a run used."""

    source: str
    digest: str
    license: str = ""
    classes: list[str]
    counts: dict[str, Count]
    skipped: Count = 0


class Sizes(_Part):
    """What the run's spaces are adapted to; the arguments of `SearchSpace.on`."""

    image_size: Annotated[int, Field(ge=1, le=1 << 16)]
    channels: Annotated[int, Field(ge=1, le=1 << 16)]
    classes: Annotated[int, Field(ge=1, le=1 << 24)]


class DeviceSummary(_Part):
    """The device that the networks are for, in words."""

    summary: str
    must_match: dict[str, str]
    recorded: dict[str, str]


class Plan(_Part):
    """What a job will do, and the seconds that each stage is expected to take, if measured.

    Attributes:
        kernels: kernels to compile and time.
        epochs: epochs of training by space.
        trials: architectures to score.
        measure: whole networks to time.
        seconds: expected duration by stage.
    """

    kernels: Count
    epochs: dict[Name, Count]
    trials: Annotated[int, Field(ge=1, lt=1 << 63)]
    measure: Count
    seconds: dict[str, Annotated[float, Field(ge=0)]]


class TableSummary(_Part):
    """The latency table that a run used, as it was when it was complete."""

    file: Name
    kernels: Count
    built: Count
    failed: Count
    unstable: Count
    dispatch_us: dict[str, float]


class SupernetSummary(_Part):
    """Accuracy of the ends of a supernet on the search's validation images."""

    epochs: Annotated[int, Field(ge=1, lt=1 << 31)]
    largest_accuracy: Fraction
    smallest_accuracy: Fraction


class SearchSummary(_Part):
    """How a search ended."""

    ended: str
    sampler: str
    workers: Count
    hypervolume: float | None = None


class Slowdown(_Part):
    """Latency of some kernels while networks were timed, divided by the table's: quartiles."""

    count: Count
    median: Positive
    low: Positive
    high: Positive


class JobLimits(_Part):
    """The part of the job's search settings that a report needs."""

    max_latency_ms: Positive | None = None


class JobSummary(_Part):
    """The job as it was resolved; `nas.job.JobSettings` has all of it."""

    seed: Count = 0
    search: JobLimits = JobLimits()


class RunRecord(_Part):
    """`run.json`: what a run did so far. Parts of stages that were not reached are None.

    A field is written once it was assigned; assign a new dictionary rather than change one.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    command: str
    started: str
    job: JobSummary
    versions: dict[str, str]
    stages: dict[str, Stage]
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    data: DataSummary | None = None
    spaces: dict[Name, str] | None = None
    settings: Sizes | None = None
    device: DeviceSummary | None = None
    plan: Plan | None = None
    table: TableSummary | None = None
    supernets: dict[Name, SupernetSummary] = Field(default_factory=dict)
    study: str | None = None
    search: SearchSummary | None = None
    pace: Slowdown | None = None


class ArchitectureRecord(Document):
    """The choices that make one network of a space."""

    space: Name
    choices: dict[str, int | float | str]


class Member(Document):
    """A network of a front, as `nas select` prints it. It has at least one of both latencies."""

    id: Digest
    space: Name
    digest: Digest
    architecture: ArchitectureRecord
    validation_accuracy: Fraction
    holdout_accuracy: Fraction | None = None
    predicted_us: Positive | None = None
    measured_us: Positive | None = None
    unstable_launches: Count | None = None
    estimated_launches: Count | None = None
    macs: Count
    params: Count
    peak_memory_bytes: Count

    @model_validator(mode="after")
    def _has_latency(self) -> Member:
        if self.measured_us is None and self.predicted_us is None:
            raise ValueError("it has neither a measured nor a predicted latency")
        return self

    @property
    def latency_us(self) -> float:
        """Measured latency where there is one, else predicted, in microseconds."""
        latency = self.predicted_us if self.measured_us is None else self.measured_us
        assert latency is not None
        return latency

    @property
    def latency_basis(self) -> str:
        """What `latency_us` rests on: `measured`, or `predicted` with its unsure launches."""
        if self.measured_us is not None:
            return "measured"
        unsure = self.unsure_launches
        return f"predicted, of its launches {unsure}" if unsure else "predicted"

    @property
    def unsure_launches(self) -> str:
        """Launches whose timing is unstable or estimated: `3 unstable, 1 estimated`, or nothing."""
        counts = {"unstable": self.unstable_launches, "estimated": self.estimated_launches}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


class Front(Document):
    """`front.json`: the members of a run's Pareto front, the fastest first."""

    schema_version: Literal[1] = Field(alias="schema")
    run: str
    max_latency_ms: Positive | None = None
    front: tuple[Member, ...]


class TrainingRow(Document):
    """A line of `training.jsonl`; see `nas.supernet.training.Progress`."""

    schema_version: Literal[1] = Field(alias="schema")
    step: Annotated[int, Field(ge=1, lt=1 << 63)]
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]
    loss: float
    accuracy_largest: Fraction | None
    accuracy_smallest: Fraction | None
    accuracy_random: Fraction | None
    learning_rate: float
    seconds: Annotated[float, Field(ge=0)]


class StandaloneRow(Document):
    """A line of `alone.jsonl`: a network that was trained alone, and the recipe of its training."""

    schema_version: Literal[1] = Field(alias="schema")
    space: Name
    digest: Digest
    architecture: ArchitectureRecord
    search_accuracy: Fraction
    holdout_accuracy: Fraction
    seconds: Annotated[float, Field(ge=0)]
    space_digest: str
    data_digest: str
    training: dict[str, JsonValue]
    seed: Count


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class IntervalRecord(Document):
    """A statistic with its bootstrap interval; None for an end that is unbounded."""

    value: float
    low: Annotated[float | None, BeforeValidator(_finite)]
    high: Annotated[float | None, BeforeValidator(_finite)]

    def text(self, digits: int = 2, *, scale: float = 1.0, sign: str = "") -> str:
        """Return `0.68 (0.57 to 0.80)`, times `scale`; with the sign "+" also of positive ones."""
        low = "unbounded" if self.low is None else f"{scale * self.low:{sign}.{digits}f}"
        high = "unbounded" if self.high is None else f"{scale * self.high:{sign}.{digits}f}"
        return f"{scale * self.value:{sign}.{digits}f} ({low} to {high})"


class RankedNetworkRecord(Document):
    """One network of a ranking; see `nas.supernet.ranking.RankedNetwork`."""

    architecture: ArchitectureRecord
    digest: Digest
    macs: Count
    params: Count
    depth: Count
    supernet_accuracy: Fraction
    alone_accuracy: Fraction


class StratumRecord(Document):
    """The order among networks of similar size; see `nas.supernet.ranking.Stratum`."""

    nets: Count
    macs: tuple[Count, Count]
    kendall_tau: IntervalRecord | None


class CountedTaus(Document):
    """Kendall's tau of counting alone with standalone training."""

    macs: IntervalRecord | None
    params: IntervalRecord | None
    depth: IntervalRecord | None


class Regrets(Document):
    """Accuracy lost by picking with the supernet, or by a count."""

    supernet: float
    macs: float
    params: float
    depth: float


class SpaceRanking(Document):
    """The ranking of one space; see `nas.supernet.ranking.Ranking`."""

    nets: Count
    distinct_scores: Count
    tied_pairs: Count
    kendall_tau: IntervalRecord | None
    spearman: IntervalRecord | None
    counted_tau: CountedTaus
    lead: IntervalRecord | None
    strata: tuple[StratumRecord, ...]
    regret: Regrets
    offset: IntervalRecord
    networks: tuple[RankedNetworkRecord, ...]


class PooledRanking(Document):
    """Networks of several spaces on one axis; see `nas.supernet.ranking.Pooled`."""

    nets: Count
    kendall_tau: IntervalRecord | None
    without_offsets: IntervalRecord | None
    offsets: dict[Name, IntervalRecord]


class RankingRecord(Document):
    """`ranking.json`: a run's supernets held against networks trained alone."""

    schema_version: Literal[1] = Field(alias="schema")
    command: str
    versions: dict[str, str]
    data: dict[str, JsonValue]
    draw: dict[str, JsonValue]
    recipes: dict[Name, dict[str, JsonValue]]
    spaces: dict[Name, SpaceRanking]
    pooled: PooledRanking | None


RUN = Format(
    RunRecord,
    "a run's record",
    RunFolderError,
    "Give the folder that `nas run` or `nas quickstart` wrote, or restore the file.",
)
FRONT = Format(
    Front, "a front", RunFolderError, "Write it again with `nas report` on the run folder."
)
RANKING = Format(
    RankingRecord,
    "a ranking",
    RunFolderError,
    "Write it again with `nas supernet rank`, or move it away.",
)
TRAINING = Format(
    TrainingRow,
    "a training log",
    RunFolderError,
    "Restore the file, or move it away: the report does without.",
)


class CheckpointRecord(Document):
    """The record in a checkpoint: what was trained, on what, and how far."""

    schema_version: Literal[1] = Field(alias="schema")
    space: Name
    settings: Sizes | None = None
    space_digest: str
    data_digest: str | None = None
    training: dict[str, JsonValue] | None = None
    seed: Count | None = None
    step: Count = 0
    rollbacks: Annotated[int, Field(ge=0, le=1000)] = 0
    processes: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    sha256: str | None = None


STANDALONE = Format(
    StandaloneRow,
    "a network that was trained alone",
    CheckpointError,
    "Move the file away: its networks are then trained again.",
)


def to_json(record: Document) -> str:
    """Return a record as the text of its file."""
    value = record.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
