"""`measurements.jsonl`: the log of every whole-network timing of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from nas.errors import RunFolderError
from nas.files.documents import Document, Format, NetworkDigest, Positive
from nas.latency.networks import NetworkTimings
from nas.latency.timing import (
    MAX_MOMENTS,
    Timing,
    moments_agree,
    quiet_us,
    round_to_four_digits,
)
from nas.space import Architecture
from nas.space.records import ArchitectureRecord

NETWORKS_PER_ROUND = 8
"""Whole networks that are timed together. A killed job loses at most so many timings."""


class Measurement(Document):
    """One line of the log: a network that was timed once, or the error that prevented it.

    Attributes:
        digest: digest of the network's graph.
        architecture: the network's choices.
        status: `unstable` where the samples disagree; `failed` without a latency.
        predicted_us: latency that the table predicted; None if it was not asked.
        measured_us: median of `samples_us`; None if the timing failed.
        samples_us: latencies of single samples.
        error: reason of a failure.
    """

    schema_version: Literal[2] = Field(alias="schema")
    digest: NetworkDigest
    architecture: ArchitectureRecord
    status: Literal["ok", "unstable", "failed"]
    predicted_us: Positive | None
    measured_us: Positive | None
    samples_us: Annotated[tuple[Positive, ...], Field(max_length=1000)]
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
        return Timing(self.samples_us)

    @classmethod
    def of_timings(
        cls, architecture: Architecture, predicted_us: float | None, result: NetworkTimings
    ) -> list[Measurement]:
        """Return a record of each timing of a network, or one of its failure."""

        def record(timing: Timing | None) -> Measurement:
            is_stable = timing is not None and not timing.is_unstable
            return cls(
                schema=2,
                digest=architecture.digest,
                architecture=ArchitectureRecord(**architecture.to_json()),
                status="ok" if is_stable else "unstable" if timing else "failed",
                predicted_us=predicted_us,
                measured_us=None if timing is None else timing.latency_us,
                samples_us=() if timing is None else timing.samples_us,
                error=None if timing else result.error,
            )

        return [record(timing) for timing in result.timings or (None,)]


MEASUREMENTS = Format(
    Measurement,
    "a timing of a whole network",
    RunFolderError,
    "Remove the line: the network is then timed again.",
)


Value = TypeVar("Value")


def latencies_and_errors(
    measurements: Sequence[Measurement],
) -> tuple[dict[str, float], dict[str, str]]:
    """Return measured latencies in microseconds, and errors, by digest.

    A latency is that of all timings of a network (`nas.latency.timing.quiet_us`). A network has
    an error only if it was never timed.
    """
    measured = {digest: quiet_us(own) for digest, own in moments_by_digest(measurements).items()}
    failed = [each for each in measurements if each.digest not in measured]
    return measured, {each.digest: each.error or "" for each in failed}


def moments_by_digest(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """Return the latencies of each network at all moments, in microseconds, by digest."""
    return _by_digest(measurements, lambda measurement: measurement.measured_us)


def timings_by_digest(measurements: Sequence[Measurement]) -> dict[str, list[Timing]]:
    """Return the timings of each network, one a moment, by digest."""
    return _by_digest(measurements, lambda each: None if each.measured_us is None else each.timing)


def _by_digest(
    measurements: Sequence[Measurement], value: Callable[[Measurement], Value | None]
) -> dict[str, list[Value]]:
    """Return what a function gives for the measurements of each network, but for None."""
    values: dict[str, list[Value]] = {}
    for measurement in measurements:
        own = value(measurement)
        if own is not None:
            values.setdefault(measurement.digest, []).append(own)
    return values


def unsettled(
    measurements: Sequence[Measurement], digests: Sequence[str], *, once: bool = False
) -> set[str]:
    """Return the digests of the networks that need another timing.

    A network is timed again until its timings agree, or it was timed `MAX_MOMENTS` times. A
    network whose timing failed is not timed again.

    Args:
        measurements: the timings so far.
        digests: networks to time.
        once: whether one timing is enough, because all would be equal.
    """
    timings: dict[str, list[float]] = {digest: [] for digest in digests}
    for measurement in measurements:
        if measurement.measured_us is None:
            timings.pop(measurement.digest, None)
        elif measurement.digest in timings:
            timings[measurement.digest].append(measurement.measured_us)
    return {
        digest
        for digest, own in timings.items()
        if not moments_agree(own) and len(own) < (1 if once else MAX_MOMENTS)
    }
