"""Records of supernets: training logs, checkpoints, `standalone.jsonl`, and parts of `run.json`."""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from nas.errors import CheckpointError, RunFolderError
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
from nas.space.records import NetworkFacts, SpaceSettings

TRAINING_LOG = "training.jsonl"
"""Name of the log of a training, in its folder."""


class StepRow(Document):
    """A line of a training log: the state of a training at one step.

    Attributes:
        step: number of the step, from 1.
        steps: number of all steps.
        loss: loss on the step's batch, of the largest network of a supernet.
        clipped_share: share of the weight tensors whose gradient was clipped.
        learning_rate: learning rate of the step.
        seconds: duration of the training over all starts.
    """

    schema_version: Literal[1] = Field(alias="schema")
    step: Annotated[int, Field(ge=1, lt=1 << 63)]
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]
    loss: float
    clipped_share: Fraction
    learning_rate: float
    seconds: Seconds


class TrainingRow(StepRow):
    """A line of a supernet's `training.jsonl`.

    Attributes:
        accuracy_largest: accuracy of the largest network on the step's batch.
        accuracy_smallest: accuracy of the smallest network, likewise.
        accuracy_random: mean accuracy of the random networks, likewise; None without any.
    """

    accuracy_largest: Fraction
    accuracy_smallest: Fraction
    accuracy_random: Fraction | None = None


class NetworkTrainingRow(StepRow):
    """A line of the `training.jsonl` of a network that is trained alone.

    Attributes:
        accuracy: accuracy on the step's batch.
    """

    accuracy: Fraction


class ScheduleDecision(Document):
    """The number of steps of a training, as it was decided before one of them.

    Attributes:
        step: number of steps done before the decision.
        steps: number of steps of the whole training.
        seconds: time that the steps before took.
    """

    step: Annotated[int, Field(ge=1, lt=1 << 63)]
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]
    seconds: Seconds


class CheckpointRecord(Document):
    """The metadata of weights: what was trained, on what, and for how many steps.

    Attributes:
        space: name of the space.
        settings: what the space is adapted to.
        space_digest: digest of the space.
        data_digest: digest of the data.
        training: settings of the training.
        seed: seed of the training.
        published: digest of the published weights that it started from; None for random
            ones.
        step: number of completed steps.
        seconds: time that these steps took.
        epochs: number of epochs of a finished training; None before its end.
        rollbacks: number of times that the training went back after it diverged.
        decisions: what was decided about the number of steps, in their order.
        processes: number of processes that trained.
        network: digest of the graph of a network that was trained on its own.
        sha256: digest of the weights.
    """

    schema_version: Literal[1] = Field(alias="schema")
    space: Name
    settings: SpaceSettings | None = None
    space_digest: str
    data_digest: str | None = None
    training: dict[str, JsonValue] | None = None
    seed: Count | None = None
    published: str | None = None
    step: Count = 0
    seconds: Seconds = 0.0
    epochs: Positive | None = None
    rollbacks: Annotated[int, Field(ge=0, le=1000)] = 0
    decisions: list[ScheduleDecision] = Field(default_factory=list)
    processes: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    network: NetworkDigest | None = None
    sha256: str | None = None


STANDALONE_SCHEMA: Final = 3
"""Version of the format of `standalone.jsonl`."""


class StandaloneRow(NetworkFacts):
    """A line of `standalone.jsonl`: a network that was trained on its own, and how it was trained.

    Attributes:
        space: name of the space.
        search_accuracy: accuracy on the validation images of the search.
        holdout_accuracy: accuracy on validation images that the search does not use.
        seconds: duration of the training.
        space_digest: digest of the space.
        data_digest: digest of the data.
        training: settings of the training.
        seed: seed of the training.
    """

    schema_version: Literal[3] = Field(alias="schema")
    space: Name
    search_accuracy: Fraction
    holdout_accuracy: Fraction
    seconds: Seconds
    space_digest: str
    data_digest: str
    training: dict[str, JsonValue]
    seed: Count


TRAINING = Format(
    TrainingRow,
    "a training log",
    RunFolderError,
    "Restore the file, or move it away: the report can be made without it.",
)
NETWORK_TRAINING = Format(
    NetworkTrainingRow,
    "a training log of a network",
    CheckpointError,
    "Move the file away: training goes on without it.",
)
STANDALONE = Format(
    StandaloneRow,
    "a log of standalone training",
    CheckpointError,
    "Move the file away: its networks are then trained again.",
)


class MirroringExperiment(Document):
    """What a short experiment says about mirrored images; see `nas.supernet.mirroring`.

    Attributes:
        images: number of training images that networks classified which were not trained on them.
        accuracy: accuracy of these networks on the images.
        mirrored_accuracy: accuracy on the same images, mirrored.
        changed_classes: names of the classes whose mirrored images are hardly recognised, the one
            that loses most first.
        changes_class: whether mirroring is taken to change the class of images.
        is_reliable: whether enough was learned to decide.
    """

    images: Count
    accuracy: Fraction
    mirrored_accuracy: Fraction
    changed_classes: list[str]
    changes_class: bool
    is_reliable: bool


MIN_ANCHORS = 4
"""Fewest networks of each space, trained standalone, to which a correction is fitted."""


class ScoreCorrection(Document):
    """How the scores of supernets are corrected for the size of networks.

    The logit of an accuracy gets a slope over the logarithm of the multiply-accumulates (MACs).
    Then its distance from a reference is shrunk, because the highest scores are too high and the
    lowest too low. See `nas.supernet.correction`.

    Attributes:
        slope: what is added to a logit for each factor e of MACs.
        scale: factor of the distance from the reference.
        reference_macs: MACs of the reference.
        reference_accuracy: accuracy of the reference.
        offsets: what is added to all logits of a space in the end, by its name; empty if nothing
            is.
        networks: number of networks trained standalone by which the offsets were fitted.
    """

    slope: float
    scale: Positive
    reference_macs: Positive
    reference_accuracy: Fraction
    offsets: dict[Name, float] = Field(default_factory=dict)
    networks: Count = 0

    @property
    def summary(self) -> str:
        """What is corrected and why, in words."""
        basis = (
            f"the accuracies of different spaces are put on one scale by {self.networks} networks "
            "that were trained alone"
            if self.networks
            else "accuracies of different spaces may not be comparable, because the job trains no "
            "networks alone ([search] anchors)"
        )
        return (
            "supernets underrate large networks, so the accuracies of networks are corrected for "
            f"their size; {basis}"
        )

    def correct(self, accuracy: float, macs: float, space: str) -> float:
        """Return the corrected accuracy of a network.

        It is 1 for an accuracy of 1: no image tells such networks apart, and a correction would
        prefer the largest of them.

        Args:
            accuracy: accuracy in the supernet, in [0, 1].
            macs: multiply-accumulates of the network for one image.
            space: name of its space.
        """
        if accuracy >= 1:
            return 1.0
        reference = to_logit(self.reference_accuracy)
        distance = (
            to_logit(accuracy) - reference + self.slope * math.log(macs / self.reference_macs)
        )
        logit = reference + self.scale * distance + self.offsets.get(space, 0.0)
        return 1 / (1 + math.exp(-logit))


def to_logit(accuracy: float) -> float:
    """Return log(p / (1 - p)) of an accuracy, which is first moved off 0 and 1 by 1e-4."""
    inside = min(max(accuracy, _LEAST_ERROR), 1 - _LEAST_ERROR)
    return math.log(inside / (1 - inside))


_LEAST_ERROR = 1e-4
"""Share of wrong, or right, images that every accuracy is taken to have: its logit is finite."""
