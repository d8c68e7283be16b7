"""Records of supernets: `training.jsonl`, checkpoints, `standalone.jsonl` and `ranking.json`."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from nas.documents import Count, Document, Format, Fraction, Name, NetworkDigest, Positive, Seconds
from nas.errors import CheckpointError, RunFolderError
from nas.formatting import format_count, format_latency
from nas.space.records import ArchitectureRecord, SpaceSettings

TRAINING_LOG = "training.jsonl"
"""Name of the log of a supernet's training, in the supernet's folder."""

SCHEDULE_LOG = "schedule.jsonl"
"""Name of the file with the lengths that were decided for a training with a time budget."""


class TrainingRow(Document):
    """A line of `training.jsonl`: the state of a supernet's training at one step.

    Attributes:
        step: number of the step, from 1.
        steps: number of all steps.
        loss: loss of the first network that the step trained, the largest one if it was trained.
        accuracy_largest: accuracy of the largest network on the step's batch; None if the step did
            not train that network.
        accuracy_smallest: accuracy of the smallest network, likewise.
        accuracy_random: accuracy of the random networks, likewise.
        clipped_share: share of the weight tensors whose gradient was clipped.
        learning_rate: learning rate of the step.
        seconds: duration of the training so far.
    """

    schema_version: Literal[1] = Field(alias="schema")
    step: Annotated[int, Field(ge=1, lt=1 << 63)]
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]
    loss: float
    accuracy_largest: Fraction | None
    accuracy_smallest: Fraction | None
    accuracy_random: Fraction | None
    clipped_share: Fraction
    learning_rate: float
    seconds: Seconds


class ScheduleRow(Document):
    """A line of `schedule.jsonl`: the number of steps, as it was decided before one of them.

    Attributes:
        step: number of steps done before the decision.
        steps: number of steps of the whole training.
        seconds: time that the steps before took.
    """

    schema_version: Literal[1] = Field(alias="schema")
    step: Annotated[int, Field(ge=1, lt=1 << 63)]
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]
    seconds: Seconds


class CheckpointRecord(Document):
    """The metadata of weights: what was trained, on what, and how far.

    Attributes:
        space: name of the space.
        settings: what the space is adapted to.
        space_digest: digest of the space.
        data_digest: digest of the data.
        training: settings of the training.
        seed: seed of the training.
        step: number of completed steps.
        seconds: time that these steps took.
        epochs: number of epochs of a finished training; None before its end.
        rollbacks: number of times that the training went back after it diverged.
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
    step: Count = 0
    seconds: Seconds = 0.0
    epochs: Positive | None = None
    rollbacks: Annotated[int, Field(ge=0, le=1000)] = 0
    processes: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    network: NetworkDigest | None = None
    sha256: str | None = None


class StandaloneRow(Document):
    """A line of `standalone.jsonl`: a network that was trained on its own, and how it was trained.

    Attributes:
        space: name of the space.
        digest: digest of the network's graph.
        architecture: the architecture.
        search_accuracy: accuracy on the search's validation images.
        holdout_accuracy: accuracy on validation images that the search did not use.
        seconds: duration of the training.
        space_digest: digest of the space.
        data_digest: digest of the data.
        training: settings of the training.
        seed: seed of the training.
    """

    schema_version: Literal[1] = Field(alias="schema")
    space: Name
    digest: NetworkDigest
    architecture: ArchitectureRecord
    search_accuracy: Fraction
    holdout_accuracy: Fraction
    seconds: Seconds
    space_digest: str
    data_digest: str
    training: dict[str, JsonValue]
    seed: Count


def _none_if_infinite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class IntervalRecord(Document):
    """A statistic with its bootstrap interval; see `nas.statistics.Interval`.

    Attributes:
        value: statistic of the sample.
        low, high: ends of the interval; None for an unbounded end.
    """

    value: float
    low: Annotated[float | None, BeforeValidator(_none_if_infinite)]
    high: Annotated[float | None, BeforeValidator(_none_if_infinite)]

    def text(self, digits: int = 2, *, scale: float = 1.0, sign: str = "") -> str:
        """Return the statistic with its interval: `0.68 (0.57 to 0.80)`.

        Args:
            digits: number of digits behind the point.
            scale: factor of all three numbers.
            sign: "+" if positive numbers have a sign, too.
        """
        low = "unbounded" if self.low is None else f"{scale * self.low:{sign}.{digits}f}"
        high = "unbounded" if self.high is None else f"{scale * self.high:{sign}.{digits}f}"
        return f"{scale * self.value:{sign}.{digits}f} ({low} to {high})"


class RankedNetworkRecord(Document):
    """A network with its score from a supernet and its accuracy after standalone training.

    Attributes:
        architecture: the architecture.
        digest: digest of the network's graph.
        macs, params, depth: counts of the network's graph.
        supernet_accuracy: accuracy with the supernet's weights on the search split.
        standalone_accuracy: accuracy after standalone training on the hold-out split.
        latency_us: predicted latency in microseconds; None without a latency table.
        budget: number of the latency budget that the network was drawn for, from 0; None if it was
            not drawn for one.
        repeated_accuracy: accuracy after standalone training with another seed; None if it was
            trained once.
    """

    architecture: ArchitectureRecord
    digest: NetworkDigest
    macs: Count
    params: Count
    depth: Count
    supernet_accuracy: Fraction
    standalone_accuracy: Fraction
    latency_us: Positive | None = None
    budget: Count | None = None
    repeated_accuracy: Fraction | None = None


class StratumRecord(Document):
    """The ranking of networks of one latency budget, or of similar latency.

    Attributes:
        nets: number of networks.
        costs: smallest and largest latency in microseconds, or number of multiply-accumulates.
        kendall_tau: rank correlation with standalone training, by the name of the order; None
            where it is undefined.
        gain: share of the attainable gain, likewise; see `MatchedRankingRecord`.
    """

    nets: Count
    costs: tuple[Positive, Positive]
    kendall_tau: dict[str, float | None]
    gain: dict[str, float | None]


ORDER_NAMES = {
    "supernet": "supernet",
    "corrected": "supernet, corrected for size",
    "macs": "multiply-accumulates",
    "params": "parameters",
    "depth": "depth",
    "latency": "latency",
    "trained again": "second standalone training",
}
"""What a ranking orders networks by, in words."""


class MatchedRankingRecord(Document):
    """Ranking quality among networks of equal latency.

    The figures are given for several orders of the networks: "supernet", "corrected", and for
    comparison "macs", "params", "depth", "latency" (where it is known) and "trained again" (where
    networks were trained twice). Intervals are bootstrap intervals over the networks.

    Attributes:
        cost: what makes networks equal: the predicted "latency", or "macs" without a table.
        pairs: number of pairs whose costs differ by a factor of 1.1 at most.
        kendall_tau: Kendall's tau with standalone training over these pairs.
        lead: tau of the supernet less that of the best count. Each resample chooses its best count
            anew, so that a lower end above zero is a lead over all counts.
        training_noise: standard deviation of a network's standalone accuracy from one training to
            another; None below 3 networks trained twice.
        retraining_tau: Kendall's tau over these pairs that a second training of all networks is
            expected to reach, likewise. It follows from the training noise and from how much the
            networks differ, and is more precise than the tau of the few networks trained twice.
        noise_ceiling: the same of a score without any error, which the noise of the single
            training keeps below one.
        gain: share of the attainable gain, the mean over the strata: (picked - mean) / (best -
            mean) of the standalone accuracies of a stratum, where the network that comes last in
            the order is picked.
        partial_tau: Kendall's partial tau with standalone training over all pairs, given the cost.
        global_tau: Kendall's tau with standalone training over all pairs.
        strata: the latency budgets, or groups of similar latency, the fastest first.
    """

    cost: Literal["latency", "macs"]
    pairs: Count
    kendall_tau: dict[str, IntervalRecord | None]
    lead: IntervalRecord | None
    training_noise: Fraction | None = None
    retraining_tau: IntervalRecord | None = None
    noise_ceiling: IntervalRecord | None = None
    gain: dict[str, IntervalRecord | None]
    partial_tau: dict[str, IntervalRecord | None]
    global_tau: dict[str, IntervalRecord | None]
    strata: tuple[StratumRecord, ...]

    @property
    def cost_name(self) -> str:
        """What equally fast networks have in common, in words."""
        return "latency" if self.cost == "latency" else "MACs"

    @property
    def noise_text(self) -> str | None:
        """Return what the noise of standalone training allows, in a sentence; None if not known."""
        if self.training_noise is None or not self.retraining_tau or not self.noise_ceiling:
            return None
        return (
            f"From one standalone training to another, the accuracy of a network varies by "
            f"{100 * self.training_noise:.2f} points (standard deviation). Within 10% of "
            f"{self.cost_name}, a second training of all networks is therefore expected to have a "
            f"tau of {self.retraining_tau.text()}, and a score without any error "
            f"{self.noise_ceiling.text()}."
        )

    def costs_text(self, stratum: StratumRecord) -> str:
        """Return the smallest and the largest cost of a stratum: `1.2 ms to 1.3 ms`."""
        low, high = (
            format_latency(cost) if self.cost == "latency" else format_count(round(cost))
            for cost in stratum.costs
        )
        return f"{low} to {high}"


class BaselineTaus(Document):
    """Kendall's tau of the order that a count gives with the order of standalone training."""

    macs: IntervalRecord | None
    params: IntervalRecord | None
    depth: IntervalRecord | None


class Regrets(Document):
    """Accuracy lost by choosing networks with the supernet, or by a count."""

    supernet: float
    macs: float
    params: float
    depth: float


class SpaceRanking(Document):
    """Ranking quality of one supernet; intervals are bootstrap intervals over the networks.

    Attributes:
        nets: number of networks.
        distinct_scores: number of distinct supernet scores.
        tied_pairs: number of pairs of networks with equal supernet scores.
        kendall_tau: rank correlation of the supernet scores with the standalone accuracies; None
            below 10 distinct scores.
        baseline_tau: Kendall's tau of each baseline with the standalone accuracies, by name:
            "macs", "params" and "depth".
        lead: Kendall's tau less that of the best baseline; see `MatchedRankingRecord.lead`.
        matched: ranking quality among networks of equal latency; None below 10
            distinct scores.
        regret: accuracy lost by choosing the network with the highest score instead of the truly
            best one under a MACs budget, averaged over the budgets that one of the networks just
            meets; of the supernet and of each baseline.
        offset: mean standalone accuracy less mean supernet accuracy.
    """

    nets: Count
    distinct_scores: Count
    tied_pairs: Count
    kendall_tau: IntervalRecord | None
    baseline_tau: BaselineTaus
    lead: IntervalRecord | None
    matched: MatchedRankingRecord | None = None
    regret: Regrets
    offset: IntervalRecord
    networks: tuple[RankedNetworkRecord, ...]

    def standalone_range(self, score: float) -> tuple[float, float] | None:
        """Return the accuracies that 95% of networks with a score reach by standalone training.

        The differences between standalone training and scores are taken as normally distributed.

        Args:
            score: accuracy with the supernet's weights, in [0, 1].

        Returns:
            The ends of the range in [0, 1]; None for fewer than three networks.
        """
        if len(self.networks) < 3:
            return None
        differences = [each.standalone_accuracy - each.supernet_accuracy for each in self.networks]
        middle, half = score + mean(differences), NormalDist().inv_cdf(0.975) * stdev(differences)
        return max(0.0, middle - half), min(1.0, middle + half)


class PooledRanking(Document):
    """Ranking quality over the networks of several spaces, as on a front with all of them.

    Attributes:
        nets: number of networks.
        kendall_tau: rank correlation of the supernet scores with the standalone accuracies.
        without_offsets: rank correlation after adding the mean offset of its space to each score.
        offsets: `SpaceRanking.offset` of each space. Where the intervals of two spaces lie apart,
            one supernet overestimates its networks against the other.
    """

    nets: Count
    kendall_tau: IntervalRecord | None
    without_offsets: IntervalRecord | None
    offsets: dict[Name, IntervalRecord]


class RankingRecord(Document):
    """`ranking.json`: the supernets of a run compared with standalone training.

    Attributes:
        command: command line that made the file.
        versions: versions of Python and the libraries by name.
        data: the images that networks were trained and scored on.
        draw: how networks were drawn.
        recipes: settings of the standalone training by space.
        spaces: ranking by space.
        pooled: ranking of all spaces together; None for a single space.
    """

    schema_version: Literal[1] = Field(alias="schema")
    command: str
    versions: dict[str, str]
    data: dict[str, JsonValue]
    draw: dict[str, JsonValue]
    recipes: dict[Name, dict[str, JsonValue]]
    spaces: dict[Name, SpaceRanking]
    pooled: PooledRanking | None


TRAINING = Format(
    TrainingRow,
    "a training log",
    RunFolderError,
    "Restore the file, or move it away: the report can be made without it.",
)
SCHEDULE = Format(
    ScheduleRow,
    "the schedule of a training",
    CheckpointError,
    "Move the folder of the supernet away: it is then trained anew.",
)
STANDALONE = Format(
    StandaloneRow,
    "a log of standalone training",
    CheckpointError,
    "Move the file away: its networks are then trained again.",
)
RANKING = Format(
    RankingRecord,
    "a ranking",
    RunFolderError,
    "Write it again with `nas supernet rank`, or move it away.",
)


def read_ranking(folder: Path) -> RankingRecord | None:
    """Return `ranking.json` of a run folder; None if the supernets were not ranked.

    Raises RunFolderError for a damaged file or one of another schema.
    """
    path = folder / "ranking.json"
    return RANKING.read(path) if path.exists() else None


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

        Args:
            accuracy: accuracy in the supernet, in [0, 1].
            macs: multiply-accumulates of the network for one image.
            space: name of its space.
        """
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


class NetworkTrainingRow(Document):
    """A line of a network's `training.jsonl`: the state of its training at one step.

    Attributes:
        step: number of the step, from 1.
        steps: number of all steps.
        loss: loss on the step's batch.
        accuracy: accuracy on the step's batch.
        clipped_share: share of the weight tensors whose gradient was clipped.
        learning_rate: learning rate of the step.
        seconds: duration of the training so far, over all starts.
    """

    schema_version: Literal[1] = Field(alias="schema")
    step: Annotated[int, Field(ge=1, lt=1 << 63)]
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]
    loss: float
    accuracy: Fraction
    clipped_share: Fraction
    learning_rate: float
    seconds: Seconds


NETWORK_TRAINING = Format(
    NetworkTrainingRow,
    "a training log of a network",
    CheckpointError,
    "Move the file away: training goes on without it.",
)
