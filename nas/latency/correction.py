"""`Correction`: what corrects the predictions of a table, and the line of the table that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from nas.documents import Count, Document

CORRECTION_REACH = 1.5
"""Factor by which a corrected network may be smaller or larger than those of the fit."""

Latency = Annotated[float, Field(ge=1e-9, le=1e12)]
"""Microseconds, within limits that no clock reaches and that sums and ratios can bear."""

ErrorFraction = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Correction:
    """What corrects the predictions of a table, see `nas.latency.calibration`.

    Args:
        slope: factor of the uncorrected latency, see `replaces_launches`.
        launch_us: additional microseconds of each launch.
        from_us: smallest uncorrected latency of a network on which it was fitted.
        to_us: largest uncorrected latency of such a network.
        invocation_us: additional microseconds of an inference.
        replaces_launches: whether `launch_us` and `invocation_us` stand for the costs of launching
            kernels and of entering the network, so that `slope` is a factor of the uncorrected
            latency without these.
    """

    slope: float
    launch_us: float
    from_us: float
    to_us: float
    invocation_us: float = 0.0
    replaces_launches: bool = False

    @classmethod
    def from_fields(cls, fitted: Mapping[str, Any]) -> Correction:
        """Return the correction with the fields of a `nas.latency.calibration.Calibration`."""
        return cls(**{each.name: fitted[each.name] for each in fields(cls)})

    def apply(self, uncorrected_us: float, without_launches_us: float, launches: int) -> float:
        """Return the corrected latency of a network in microseconds.

        A network much smaller or larger than those of the fit is not corrected.

        Args:
            uncorrected_us: its uncorrected latency.
            without_launches_us: the same without the costs of launching kernels and of entering the
                network.
            launches: number of kernels that it launches.
        """
        low, high = self.from_us / CORRECTION_REACH, self.to_us * CORRECTION_REACH
        if not low <= uncorrected_us <= high:
            return uncorrected_us
        factor_of_us = without_launches_us if self.replaces_launches else uncorrected_us
        corrected_us = self.slope * factor_of_us + self.launch_us * launches + self.invocation_us
        return corrected_us if corrected_us > 0 else uncorrected_us


class CalibrationNetwork(Document):
    """A network on which a calibration was fitted, and its latencies at that time.

    Attributes:
        architecture: the architecture as `Architecture.to_json` writes it.
        uncorrected_us: latency that the table predicted.
        measured_us: latency that was measured.
    """

    architecture: dict[str, JsonValue]
    uncorrected_us: Latency
    measured_us: Latency


class CalibrationRow(Document):
    """The line of a calibration in a table, see `nas.latency.calibration.Calibration`.

    No device holds a batch of 2^20 images.
    """

    status: Literal["ok"]
    slope: Annotated[float, Field(gt=0, le=1e6)]
    launch_us: Annotated[float, Field(ge=-1e12, le=1e12)]
    invocation_us: Annotated[float, Field(ge=-1e12, le=1e12)]
    replaces_launches: bool
    kernels_ratio: Annotated[float, Field(gt=0, le=1e6)] | None
    from_us: Latency
    to_us: Latency
    used: bool
    nets: Count
    mape_before: ErrorFraction
    mape_after: ErrorFraction
    references: Count
    references_mape_before: ErrorFraction | None
    references_mape_after: ErrorFraction | None
    fitted_on: tuple[str, ...]
    spaces: tuple[str, ...]
    networks: tuple[CalibrationNetwork, ...]
    batch: Annotated[int, Field(ge=1, le=1 << 20)]
    supersedes: Annotated[int, Field(ge=2)] | None = None
