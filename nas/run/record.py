"""The record of a run, `run.json`: the job, its stages, and what each of them made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from nas.documents import Count, Document, Format, Fraction, Name, Positive, Seconds
from nas.errors import RunFolderError
from nas.latency.record import Calibration
from nas.run.settings import JobSettings
from nas.space.records import SpaceSettings
from nas.supernet.records import MirroringExperiment, ScoreCorrection


class _RunSection(Document):
    """A section of `run.json`: it can be changed, and keeps fields that this version does not know.

    A later start of the job reads the file and writes it again.
    """

    model_config = ConfigDict(frozen=False, extra="allow")


class StageRecord(_RunSection):
    """One stage of a job.

    Attributes:
        seconds: duration, summed over all starts of the job.
    """

    seconds: Seconds = 0.0


class DataSummary(_RunSection):
    """The images that a run uses.

    Attributes:
        source: name or path of the data source.
        digest: digest of all images and labels.
        license: license of the data; empty if it is not stated.
        classes: names of the classes.
        counts: number of images by part: `train`, `search`, `holdout` and `test`.
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
    counts: dict[str, Count]
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


class JobPlan(_RunSection):
    """What a job will do.

    Attributes:
        kernels: number of kernels to compile and time.
        epochs: number of training epochs by space; expected ones if there is a time budget.
        supernet_seconds: time budget of each supernet; None for exactly `epochs`.
        trials: largest number of architectures to score.
        expected_trials: number of architectures after which the search is expected to end; None in
            a plan without an estimate.
        measure: number of whole networks to time.
        retrain: number of finalists to train to the end.
        retrain_epochs: number of training epochs of each finalist.
        are_finalists_final: whether the finalists were planned again when the front was measured,
            by the time that was left.
        seconds: expected duration by stage; empty if it was not estimated.
        export_file_s: expected seconds to export one file of a finalist.
        data: what was understood of the images, in one line; empty in the plan of a started run,
            whose `DataSummary` says it.
        image_changes: what happens to training images; empty in a plan without an estimate.
    """

    kernels: Count
    epochs: dict[Name, Positive]
    supernet_seconds: Seconds | None = None
    trials: Annotated[int, Field(ge=1, lt=1 << 63)]
    expected_trials: Count | None = None
    measure: Count
    retrain: Count
    retrain_epochs: Count
    are_finalists_final: bool = False
    seconds: dict[str, Seconds]
    export_file_s: Seconds = 0.0
    data: str = ""
    image_changes: str = ""


class TableSummary(_RunSection):
    """The latency table of a run, at the end of the stage that completed it.

    Attributes:
        file: name of the table's file.
        kernels: number of kernels with a row.
        built: number of kernels that this run added.
        failed: number of kernels that could not be compiled or timed.
        unstable: number of kernels whose timings did not agree.
        dispatch_us: costs beside the kernels by name, in microseconds.
        calibration: the correction of the run's predictions, without its networks; None if there is
            none.
    """

    file: Name
    kernels: Count
    built: Count
    failed: Count
    unstable: Count
    dispatch_us: dict[str, float]
    calibration: Calibration | None


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
        facts: values that later starts must agree with, by name.
        decided_by: values of the keys of the job by which the plan and the limits were decided, by
            decision; a start with other values decides again.
        data, spaces, settings, device, plan, table: results of the first stages; None before them.
        image_changes: how all trainings of the run change images; None before it was decided.
        spaces: digest of each space's file by name.
        supernets: trained supernets by space.
        study: name of the Optuna study; None before the search.
        correction: correction of the scores that the search uses; None without one.
        search: end of the search; None before it.
        training_errors: why finalists could not be trained, by their names.
        export_errors: why formats of models could not be exported when the job last tried, by model
            and format; "all" stands for all formats.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    command: str
    started: str
    job: JobSettings
    versions: dict[str, str]
    stages: dict[str, StageRecord]
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    decided_by: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    data: DataSummary | None = None
    image_changes: ImageChanges | None = None
    spaces: dict[Name, str] | None = None
    settings: SpaceSettings | None = None
    device: DeviceSummary | None = None
    plan: JobPlan | None = None
    table: TableSummary | None = None
    supernets: dict[Name, SupernetSummary] = Field(default_factory=dict)
    study: str | None = None
    correction: ScoreCorrection | None = None
    search: SearchSummary | None = None
    training_errors: dict[Name, str] = Field(default_factory=dict)
    export_errors: dict[Name, dict[str, str]] = Field(default_factory=dict)


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
        raise RUN.failure(f"{folder} is not a run: there is no {path.name} in it")
    return RUN.read(path)
