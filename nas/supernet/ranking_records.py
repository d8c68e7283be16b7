"""Records of `ranking.json`: how well supernets rank networks, and what they are compared with."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from nas.errors import RunFolderError
from nas.files.documents import Count, Document, Format, Fraction, Name, NetworkDigest, Positive
from nas.space.records import ArchitectureRecord


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


RANKING = Format(
    RankingRecord,
    "a ranking",
    RunFolderError,
    "Write it again with `nas supernet rank`, or move it away.",
)


def read_ranking(folder: Path, name: str = "ranking.json") -> RankingRecord | None:
    """Return a ranking of a run folder by the name of its file; None if there is none.

    Raises RunFolderError for a damaged file or one of another schema.
    """
    path = folder / name
    return RANKING.read(path) if path.exists() else None
