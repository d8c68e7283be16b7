"""The published networks of a report beside the networks of its run."""

from __future__ import annotations

import math

from nas.files.documents import Document, Fraction, Positive
from nas.run.published import Difference, published_comparisons
from nas.run.run import Run


class OwnNetwork(Document):
    """A network of the run in the place of a published one.

    Attributes:
        id: its ID.
        accuracy_gain: its accuracy minus that of the published one.
        interval: the 95% interval of this difference, from the same images; null if not known.
        latency_ratio: its latency over that of the published one.
    """

    id: str
    accuracy_gain: float
    interval: tuple[float, float] | None
    latency_ratio: Positive


class PublishedNetwork(Document):
    """A published network that was trained, and the networks of the run that were trained alike.

    Attributes:
        name: its name.
        training: how it was trained, in words.
        accuracy: accuracy on the images that judge trained networks.
        latency_us: latency of the whole network; null if it was not timed.
        at_latency: the most accurate network of the run that is not slower; null without any.
        at_accuracy: the fastest network of the run that is at least as accurate; null without any.
        text: the comparison in words.
    """

    name: str
    training: str
    accuracy: Fraction
    latency_us: Positive | None
    at_latency: OwnNetwork | None
    at_accuracy: OwnNetwork | None
    text: str


class PublishedSection(Document):
    """What published networks would have given.

    Attributes:
        networks: the published networks, the fastest first.
    """

    networks: list[PublishedNetwork]


def published_section(run: Run) -> PublishedSection | None:
    """Return the section of a run; None if it trained no published network."""
    networks = [
        PublishedNetwork(
            name=each.published.record.id,
            training=each.recipe,
            accuracy=each.published.record.holdout.accuracy,
            latency_us=each.published.measured_us,
            at_latency=_own(each.at_latency),
            at_accuracy=_own(each.at_accuracy),
            text=each.text,
        )
        for each in published_comparisons(run)
    ]
    return PublishedSection(networks=networks) if networks else None


def _own(difference: Difference | None) -> OwnNetwork | None:
    if difference is None:
        return None
    gain = difference.gain
    return OwnNetwork(
        id=difference.own.record.id,
        accuracy_gain=gain.value,
        interval=(gain.low, gain.high) if math.isfinite(gain.low) else None,
        latency_ratio=difference.latency_ratio,
    )
