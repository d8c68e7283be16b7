"""The record of a study, `study.json`: networks of a run beside published and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from nas.errors import RunFolderError
from nas.files.documents import (
    Count,
    Document,
    Format,
    Fraction,
    Name,
    NetworkDigest,
    Positive,
    Seconds,
)
from nas.latency.moments import quiet_us
from nas.latency.timing import Timing
from nas.run.settings import StudySettings
from nas.space.records import ArchitectureRecord

STUDY_FILE = "study.json"

Kind = Literal["found", "published", "random"]
"""Where a network of a study comes from: the front of the run, a paper, or a random draw."""

KINDS: tuple[Kind, ...] = ("found", "published", "random")


class StudyNetwork(Document):
    """One network of a study.

    Attributes:
        name: the network's ID in the run, its published name, or a name for the study.
        kind: see `Kind`.
        space: name of its space.
        digest: digest of the network's graph.
        architecture: the architecture.
        macs, params: multiply-accumulates for one image, and parameters.
        predicted_us: latency by the run's table; None if the table could not predict it.
        found: name of the found network whose predicted latency a random one has.
        samples_us: latencies of single samples of the whole network, one tuple for each moment.
    """

    name: Name
    kind: Kind
    space: Name
    digest: NetworkDigest
    architecture: ArchitectureRecord
    macs: Count
    params: Count
    predicted_us: Positive | None
    found: Name | None = None
    samples_us: Annotated[tuple[tuple[Positive, ...], ...], Field(max_length=1000)] = ()

    @property
    def latency_us(self) -> float:
        """Measured latency of the whole network in microseconds, see `quiet_us`."""
        return quiet_us([Timing(own).latency_us for own in self.samples_us])


class StudyTraining(Document):
    """One training of a network of a study, from newly drawn weights.

    Attributes:
        network: name of the network.
        seed: seed of the weights, the order of the images and the augmentation.
        holdout_accuracy: accuracy on validation images that neither training nor search used; None
            if the training failed, as for `test_accuracy`.
        test_accuracy: accuracy on the test images.
        seconds: duration of the training, over all starts.
        error: why the training failed; empty if it did not.
    """

    network: Name
    seed: Count
    holdout_accuracy: Fraction | None = None
    test_accuracy: Fraction | None = None
    seconds: Seconds = 0.0
    error: str = ""


class StudyRecord(Document):
    """`study.json`.

    Attributes:
        command: command that made it.
        settings: the keys of `[study]`.
        study: name of the Optuna study of the run's search, which found the networks.
        recipe: settings of every training.
        teacher: network whose output all networks learned as well; None without one.
        data: the images in one line.
        data_digest: digest of the images.
        metric: what the accuracies are.
        device: the device of the latencies, in one line.
        machine: processor of the machine that timed the networks and led the study.
        versions: versions of the packages by name.
        left_out: reason why a network is not in the study, by its name.
        networks: the networks, those found first.
        trainings: the trainings that have ended.
        statements: what the study shows so far, in sentences.
    """

    schema_version: Literal[1] = Field(alias="schema")
    command: str
    settings: StudySettings
    study: str
    recipe: dict[str, JsonValue]
    teacher: str | None
    data: str
    data_digest: str
    metric: str
    device: str
    machine: str
    versions: dict[str, str]
    left_out: dict[Name, str]
    networks: tuple[StudyNetwork, ...]
    trainings: tuple[StudyTraining, ...] = ()
    statements: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every network was trained with every seed, or failed."""
        return len(self.trainings) == len(self.networks) * self.settings.seeds

    def of_kind(self, kind: Kind) -> list[StudyNetwork]:
        """Return the networks of a kind, the fastest first."""
        own = [network for network in self.networks if network.kind == kind]
        return sorted(own, key=lambda network: network.latency_us)

    def accuracies(self, network: StudyNetwork) -> list[float]:
        """Return the test accuracies of a network, one for each training, in order of the seeds."""
        own = [each for each in self.trainings if each.network == network.name]
        by_seed = sorted(own, key=lambda training: training.seed)
        return [each.test_accuracy for each in by_seed if each.test_accuracy is not None]


STUDY = Format(
    StudyRecord,
    "the record of a study",
    RunFolderError,
    "Move it away and run `nas study` again: trainings that have ended are in the run's study.",
)


def read_study(folder: Path) -> StudyRecord:
    """Return the study of a run folder. Raises RunFolderError without one, or if it is damaged."""
    path = folder / STUDY_FILE
    if not path.exists():
        raise RunFolderError(
            f"{folder} has no study: there is no {STUDY_FILE} in it.",
            remedy="Make one: nas study JOB.toml.",
        )
    return STUDY.read(path)


def ordered_by_seed(networks: Sequence[StudyNetwork], seeds: int) -> list[tuple[StudyNetwork, int]]:
    """Return all trainings in the order in which they are done.

    Every network is trained with the first seed before any is with the second, and kinds take
    turns, so that an interrupted study compares as much as it can.
    """
    of_kind = {kind: [each for each in networks if each.kind == kind] for kind in KINDS}
    most = max((len(own) for own in of_kind.values()), default=0)
    in_turns = [own[at] for at in range(most) for own in of_kind.values() if at < len(own)]
    return [(network, seed) for seed in range(seeds) for network in in_turns]
