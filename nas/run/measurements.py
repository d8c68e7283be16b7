"""`measurements.jsonl`: the log of every whole-network timing of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nas.errors import RunFolderError
from nas.files.documents import Format, Positive
from nas.latency.rounds import ONCE, ROUNDS, Latency, Policy
from nas.latency.timing import Timing, round_to_four_digits
from nas.space import Architecture
from nas.space.records import NetworkFacts

NETWORKS_PER_ROUND = 8
"""Whole networks that are timed together. A killed job loses at most so many timings."""


class Measurement(NetworkFacts):
    """One line of the log: a network that was timed once, or the error that prevented it.

    Attributes:
        status: `failed` without a latency.
        predicted_us: latency that the table predicted; None if it was not asked.
        measured_us: median of `samples_us`; None if the timing failed.
        samples_us: latencies of single samples.
        reading_us, first_us: see `nas.latency.timing.Timing`.
        full_us: reading at full speed, as far as it was known then.
        error: reason of a failure.
    """

    schema_version: Literal[3] = Field(alias="schema")
    status: Literal["ok", "failed"]
    predicted_us: Positive | None
    measured_us: Positive | None
    samples_us: Annotated[tuple[Positive, ...], Field(max_length=1000)]
    reading_us: Positive | None = None
    first_us: Positive | None = None
    full_us: Positive | None = None
    error: str | None

    @model_validator(mode="after")
    def _is_consistent(self) -> Measurement:
        if self.status == "failed":
            if self.measured_us is not None or not self.error:
                raise ValueError("a failed timing has an error and no latency")
        elif self.measured_us is None or not self.samples_us:
            raise ValueError("a timing has a latency and its samples")
        elif round_to_four_digits(self.measured_us) != self.timing.latency_us:
            raise ValueError(f"measured_us is {self.measured_us}, not the median of its samples")
        return self

    @property
    def timing(self) -> Timing:
        """The timing that the line records."""
        return Timing(self.samples_us, self.reading_us, self.first_us)

    @classmethod
    def of_latency(
        cls, architecture: Architecture, predicted_us: float | None, latency: Latency
    ) -> list[Measurement]:
        """Return a record of each timing of a network, or one of its failure."""
        facts = {"schema": 3, "predicted_us": predicted_us, "full_us": latency.full_us}
        failure = {
            "status": "failed",
            "measured_us": None,
            "samples_us": (),
            "error": latency.error,
        }
        timings = [
            {"status": "ok", "measured_us": each.latency_us, "error": None, **asdict(each)}
            for each in latency.rounds
        ]
        return [cls.of_architecture(architecture, **facts, **each) for each in timings or [failure]]


MEASUREMENTS = Format(
    Measurement,
    "a timing of a whole network",
    RunFolderError,
    "Remove the line: the network is then timed again.",
)


def errors_by_digest(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Return the error of each network that was never timed, by digest."""
    measured = {each.digest for each in measurements if each.measured_us is not None}
    failed = [each for each in measurements if each.digest not in measured]
    return {each.digest: each.error or "" for each in failed}


def latencies_by_digest(measurements: Sequence[Measurement]) -> dict[str, Latency]:
    """Return the latency of each network, by digest, from all of its timings.

    The fastest reading at full speed that was known at any time counts for all.
    """
    full_us = min((each.full_us for each in measurements if each.full_us), default=None)
    timings: dict[str, list[Timing]] = {}
    for each in measurements:
        if each.measured_us is not None:
            timings.setdefault(each.digest, []).append(each.timing)
    return {digest: Latency(own, full_us) for digest, own in timings.items()}


def to_time_again(
    measurements: Sequence[Measurement], digests: Sequence[str], *, once: bool = False
) -> set[str]:
    """Return the digests of the networks that need another timing.

    A network is timed until its timings agree, see `nas.latency.rounds.Latency.is_complete`; one
    whose timing failed is not timed again.

    Args:
        measurements: the timings so far.
        digests: networks to time.
        once: whether one timing is enough, because all would be equal.
    """
    policy = ONCE if once else Policy(ROUNDS)
    failed = {each.digest for each in measurements if each.measured_us is None}
    latencies = latencies_by_digest(measurements)
    return {
        digest
        for digest in digests
        if digest not in failed
        and not (digest in latencies and latencies[digest].is_complete(policy))
    }
