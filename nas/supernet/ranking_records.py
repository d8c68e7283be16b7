"""Records of `ranking.json`: how well supernets rank networks, and what they are compared with."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Final, Literal

from pydantic import Field, JsonValue

from nas.errors import RunFolderError
from nas.files.documents import Count, Document, Format, Fraction, Name, Positive
from nas.space.records import NetworkFacts
from nas.statistics import Interval

RANKING_SCHEMA: Final = 3
"""Version of the format of `ranking.json` and `anchors.json`."""

Order = Literal["supernet", "corrected", "macs", "second training"]
"""What orders networks: their scores, the scores corrected for size, their multiply-accumulates, or
a second standalone training of all of them, whose tau is an expected one."""

ORDER_NAMES: dict[Order, str] = {
    "supernet": "supernet",
    "corrected": "supernet, corrected for size",
    "macs": "multiply-accumulates",
    "second training": "second standalone training (expected)",
}


class RankedNetworkRecord(NetworkFacts):
    """A network with its score from a supernet and its accuracy after standalone training.

    Attributes:
        macs: multiply-accumulates of the network for one image.
        supernet_accuracy: accuracy with the supernet's weights on the search split.
        standalone_accuracy: accuracy after standalone training: on the hold-out split in
            `ranking.json`, on the search split in `anchors.json`.
        latency_us: predicted latency in microseconds; None without a latency table.
        repeated_accuracy: accuracy after standalone training with another seed; None if it was
            trained once.
    """

    macs: Count
    supernet_accuracy: Fraction
    standalone_accuracy: Fraction
    latency_us: Positive | None = None
    repeated_accuracy: Fraction | None = None


class SpaceRanking(Document):
    """Ranking quality of one supernet among networks of equal latency.

    Intervals are 95% bootstrap intervals over the networks.

    Attributes:
        nets: number of networks.
        distinct_scores: number of distinct supernet scores.
        cost: what makes networks equal: the predicted "latency", or "macs" without a table.
        pairs: number of pairs whose costs differ by a factor of 1.1 at most.
        kendall_tau: Kendall's tau of each order with standalone training over these pairs; empty
            below 10 distinct scores, and None where it is undefined or not known.
        offset: mean standalone accuracy less mean supernet accuracy. Where the intervals of two
            spaces lie apart, one supernet overestimates its networks against the other.
        networks: the networks.
    """

    nets: Count
    distinct_scores: Count
    cost: Literal["latency", "macs"]
    pairs: Count
    kendall_tau: dict[Order, Interval | None]
    offset: Interval
    networks: tuple[RankedNetworkRecord, ...]

    @property
    def cost_name(self) -> str:
        """What equally fast networks have in common, in words."""
        return "latency" if self.cost == "latency" else "MACs"

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
        kendall_tau: rank correlation of the supernet scores with the standalone accuracies over all
            pairs; None below 10 distinct scores.
        without_offsets: rank correlation after adding the mean offset of its space to each score.
    """

    nets: Count
    kendall_tau: Interval | None
    without_offsets: Interval | None


class RankingRecord(Document):
    """The supernets of a run compared with standalone training.

    `ranking.json` judges standalone networks on the hold-out, so that the two do not share the
    errors of one sample of images. `anchors.json` judges them on the images of the search, which
    reads no others; see `nas.supernet.correction`.

    Attributes:
        command: command line that made the file.
        versions: versions of Python and the libraries by name.
        data: the images that networks were trained and scored on, and the split by which
            standalone networks are judged.
        seed: seed with which the networks were drawn and trained.
        recipes: settings of the standalone training by space.
        spaces: ranking by space.
        pooled: ranking of all spaces together; None for a single space.
    """

    schema_version: Literal[3] = Field(alias="schema")
    command: str
    versions: dict[str, str]
    data: dict[str, JsonValue]
    seed: Count
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
