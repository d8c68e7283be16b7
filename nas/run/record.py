"""The record of a run, `run.json`: the job, its stages, and what each of them made."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, field_serializer

from nas.errors import RunFolderError
from nas.figures import Figure
from nas.files.documents import Count, Document, Format, Fraction, Name, Positive, Seconds
from nas.files.paths import in_folder
from nas.graph import DEFAULT_DTYPE
from nas.latency.record import Correction
from nas.run.judged import JudgedImages
from nas.run.probes import ProbeSummary
from nas.run.settings import JobSettings
from nas.run.trained import PretrainedSummary
from nas.space.records import SpaceSettings
from nas.supernet.records import MirroringExperiment, ScoreCorrection

if TYPE_CHECKING:
    from nas.space import Architecture


class _RunSection(Document):
    """A section of `run.json`: it can be changed, and keeps fields that this version does not know.

    A later start of the job reads the file and writes it again.
    """

    model_config = ConfigDict(frozen=False, extra="allow")


KitName = Literal["table", "networks"]
"""What a kit in a run folder times: the kernels of the latency table, or whole networks."""


class StageRecord(_RunSection):
    """One stage of a job.

    Attributes:
        seconds: duration, summed over all starts of the job.
    """

    seconds: Seconds = 0.0


class DataSummary(JudgedImages, _RunSection):
    """The images that a run uses.

    Attributes:
        source: name or path of the data source.
        digest: digest of all images and labels.
        license: license of the data; empty if it is not stated.
        classes: names of the classes.
        class_counts: number of images of each class by part: `train`, `search`, `holdout` and
            `test`.
        skipped: number of images that could not be read.
        summary: what was understood of the source, in one line with the counts of the classes.
        problems: what makes accuracies wrong or hard to judge, see `nas.data.check`.
        duplicates: number of pairs of duplicates by their parts.
        metric: what all accuracies are, see `nas.data.ImageDataset.metric`.
    """

    source: str
    digest: str
    license: str = ""
    classes: list[str]
    class_counts: dict[str, list[Count]]
    skipped: Count = 0
    summary: str = ""
    problems: list[str] = Field(default_factory=list)
    duplicates: dict[str, Count] = Field(default_factory=dict)
    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"


class DeviceSummary(_RunSection):
    """The device that latencies are for.

    Attributes:
        summary: description in one line.
        must_match: part of the fingerprint that another device would differ in.
        recorded: part of the fingerprint that is only recorded.
    """

    summary: str
    must_match: dict[str, str]
    recorded: dict[str, str]


class ImageChanges(_RunSection):
    """How training images are mirrored and shifted at random, and what decided it.

    Attributes:
        flip: whether half of the images are mirrored.
        shift: largest shift in pixels.
        experiment: the experiment that decided `flip`; None if the job file or the source did.
        is_from_job: whether the job file sets `flip`.
    """

    flip: bool
    shift: Count
    experiment: MirroringExperiment | None = None
    is_from_job: bool = False

    @property
    def flip_by_experiment(self) -> bool | None:
        """`flip`, or None if the job file or the source of the images decided it."""
        return None if self.experiment is None else self.flip

    @property
    def summary(self) -> str:
        """What happens to training images and why, in a sentence without its full stop."""
        return f"{describe_image_changes(self.flip, self.shift)} ({self._reason})"

    @property
    def _reason(self) -> str:
        if self.is_from_job:
            return "the job file decides about mirroring"
        if self.experiment is None:
            return "the source of the images decides about mirroring"
        tried = self.experiment
        if not tried.images:
            return f"there are too few images for an experiment; {_FLIP_ADVICE}"
        result = (
            f"{tried.accuracy:.0%} of {tried.images} training images correctly, and "
            f"{tried.mirrored_accuracy:.0%} of them when they were mirrored"
        )
        if not tried.is_reliable:
            return (
                f"an experiment could not decide about mirroring: small networks classified "
                f"{result}; {_FLIP_ADVICE}"
            )
        names = tried.changed_classes[:MAX_CHANGED_CLASSES]
        further = len(tried.changed_classes) - len(names)
        worst = f"; most is lost by {', '.join(names)}" if names else ""
        if further:
            worst += f" and {further} more"
        return f"an experiment decided about mirroring: small networks classified {result}{worst}"


_FLIP_ADVICE = (
    "set training.flip = false if a mirrored image is not of its class, as that of text, digits "
    "or a direction"
)

MAX_CHANGED_CLASSES = 5
"""Largest number of classes that the summary of `ImageChanges` names."""


def describe_image_changes(flip: bool, shift: int) -> str:
    """Return what happens to training images, as a sentence without its full stop."""
    mirrored = "mirrored at random" if flip else "not mirrored"
    return f"training images are {describe_shift(shift)} and {mirrored}"


def describe_shift(shift: int) -> str:
    """Return how training images are shifted, to follow "images are"."""
    return f"shifted by up to {shift} pixel{'s' if shift > 1 else ''}" if shift else "not shifted"


class SourceSummary(_RunSection):
    """The run that a retargeted run has its supernets and scores from.

    Attributes:
        folder: path of its folder, as it was given.
        started: date and time of its first start.
        device: its device in one line.
        study: name of its Optuna study, which the storage of this run holds, too.
        scores: number of its scores that the search began with; None before the search.
        models: names of its trained networks that this run has, too.
    """

    folder: str
    started: str
    device: str
    study: str
    scores: Count | None = None
    models: list[Name] = Field(default_factory=list)


class FinalistsRecord(_RunSection):
    """How many finalists a run trains, as it was decided when the front was measured.

    Attributes:
        budget: budget of the job that decided it; another one decides again.
        count: number of finalists.
        epochs: number of training epochs of each.
        references: published networks that are trained likewise unless the job names some; None
            before that was decided.
        shortened: epochs of the networks that get fewer, because the budget would have ended before
            their training, by the names of their folders.
    """

    budget: str
    count: Count
    epochs: Annotated[int, Field(ge=1)]
    references: list[Name] | None = None
    shortened: dict[Name, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)


class TableSummary(_RunSection):
    """The latency table of a run, at the end of the stage that completed it.

    Attributes:
        file: name of the table's file.
        kernels: number of kernels with a row.
        built: number of kernels that this run added.
        failed: number of kernels that could not be compiled or timed.
        unstable: number of kernels whose timings did not agree.
        disturbed: number of kernels that were never timed while the core ran at full speed.
        dispatch_us: costs beside the kernels by name, in microseconds.
        calibration: the correction of the run's predictions, without its networks; None if there is
            none.
    """

    file: Name
    kernels: Count
    built: Count
    failed: Count
    unstable: Count
    disturbed: Count = 0
    dispatch_us: dict[str, float]
    calibration: Correction | None


class Int8Loss(_RunSection):
    """What int8 loses in a space, by networks with the supernet's weights.

    Attributes:
        losses: accuracy of each network in float32 minus that in int8, on the search's images.
    """

    losses: Annotated[list[float], Field(min_length=1)]

    @property
    def mean(self) -> float:
        """Mean of the losses."""
        return statistics.fmean(self.losses)

    @property
    def expected(self) -> float:
        """The loss that the search expects of every network of the space: the mean, if above 0.

        A gain would be one of chance. It would put slower networks on the front.
        """
        return max(0.0, self.mean)

    @property
    def deviation(self) -> float:
        """Standard deviation of the losses."""
        return statistics.pstdev(self.losses)


class SupernetSummary(_RunSection):
    """A trained supernet.

    Attributes:
        epochs: number of epochs of its training.
        largest_accuracy: accuracy of its largest network on the search's validation images.
        smallest_accuracy: accuracy of its smallest network on the same images.
    """

    epochs: Positive
    largest_accuracy: Fraction
    smallest_accuracy: Fraction


class SearchSummary(_RunSection):
    """The end of a search.

    Attributes:
        ended: why it ended.
        sampler: name of the sampler.
        workers: number of processes that took part.
        hypervolume: hypervolume of the front; None if it is undefined.
    """

    ended: str
    sampler: str
    workers: Count
    hypervolume: float | None = None


class RunRecord(_RunSection):
    """`run.json`: what a run did so far.

    Only fields that were assigned are written. Assign a new dictionary rather than change one.

    Attributes:
        name: name of the job.
        command: command line that started the run.
        started: date and time of the first start.
        job: the resolved job.
        versions: versions of Python and the libraries by name.
        stages: stages that began, by name.
        limits: limits of the search by key; a start with others judges the trials again.
        source: the run that this one has its supernets and scores from; None for a run of its own.
        figures: what the runtime declares of a network beside its latency.
        data, spaces, settings, device: results of the first stages; None before them.
        tables: latency tables by dtype.
        image_changes: how all trainings of the run change images; None before it was decided.
        batch_size: images of a training step of all trainings, likewise.
        spaces: digest of each space's file by name.
        pretrained: published weights from which supernets start, by space.
        probes: linear probes of these, likewise.
        supernet_seconds: time budget of each supernet; None before it was decided, and if the job
            sets the length of the training.
        supernets: trained supernets by space.
        int8_losses: what int8 loses, by space; only of a job with two dtypes.
        score_images: number of validation images that score an architecture; None before the
            search.
        study: name of the Optuna study; None before the search.
        correction: correction of the scores that the search uses; None without one.
        search: end of the search; None before it.
        finalists: how many finalists are trained, and for how long; None before that.
        training_errors: why finalists and published networks could not be trained, by their names.
        export_errors: why formats of models could not be exported when the job last tried, by model
            and format; "all" stands for all formats.
        remaining: stages that the job's latest start has not ended, in their order: the first one
            is running or was interrupted. Empty once it has ended.
        waiting: the kit whose results the run waits for; None if it waits for nothing.
    """

    schema_version: Literal[6] = Field(alias="schema")
    name: str
    command: str
    started: str
    job: JobSettings
    versions: dict[str, str]
    stages: dict[str, StageRecord]
    limits: dict[str, JsonValue] | None = None
    source: SourceSummary | None = None
    figures: list[Figure] = Field(default_factory=list)
    data: DataSummary | None = None
    image_changes: ImageChanges | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    spaces: dict[Name, str] | None = None
    pretrained: dict[Name, PretrainedSummary] = Field(default_factory=dict)
    probes: dict[Name, ProbeSummary] = Field(default_factory=dict)
    settings: SpaceSettings | None = None
    device: DeviceSummary | None = None
    tables: dict[Name, TableSummary] = Field(default_factory=dict)
    supernet_seconds: Positive | None = None
    supernets: dict[Name, SupernetSummary] = Field(default_factory=dict)
    int8_losses: dict[Name, Int8Loss] = Field(default_factory=dict)
    score_images: Annotated[int, Field(ge=1)] | None = None
    study: str | None = None
    correction: ScoreCorrection | None = None
    search: SearchSummary | None = None
    finalists: FinalistsRecord | None = None
    training_errors: dict[Name, str] = Field(default_factory=dict)
    export_errors: dict[Name, dict[str, str]] = Field(default_factory=dict)
    remaining: list[str] = Field(default_factory=list)
    waiting: KitName | None = None

    def expected(self, accuracy: float, architecture: Architecture) -> float:
        """Return the accuracy that is expected of a candidate, by that of its float32 weights."""
        if architecture.graph.dtype == DEFAULT_DTYPE:
            return accuracy
        return max(0.0, accuracy - self.int8_losses[architecture.space.name].expected)

    @field_serializer("job")
    def _resolved(self, job: JobSettings) -> dict[str, JsonValue]:
        """Return all settings of the job, also those that have their defaults."""
        return job.model_dump(mode="json")


RUN = Format(
    RunRecord,
    "a run's record",
    RunFolderError,
    "Give the folder that `nas run` or `nas quickstart` wrote, or restore the file.",
)


def read_run(folder: Path) -> RunRecord:
    """Return `run.json` of a run folder. Raises RunFolderError if it is missing or damaged."""
    path = folder / "run.json"
    if not path.exists():
        where = "in it" if folder.is_dir() else f"and no folder of this name{in_folder(folder)}"
        raise RUN.failure(f"{folder} is not a run: there is no {path.name} {where}")
    return RUN.read(path)
