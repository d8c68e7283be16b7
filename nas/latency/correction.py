"""`Correction`: what corrects the predictions of a table, and the line of the table that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from nas.documents import Count, Document

CORRECTION_REACH = 1.5
"""Factor by which a corrected network may be smaller or larger than those of the fit."""

Latency = Annotated[float, Field(ge=1e-9, le=1e12)]
"""Microseconds, within limits that no clock reaches and that sums and ratios can bear."""

ErrorFraction = Annotated[float, Field(ge=0)]


COMPOSITION = 2
"""Version of how the latency of a network is composed, see `nas.latency.runtime`. A calibration
corrects only the composition on which it was fitted."""


def is_outdated(calibration: Mapping[str, Any]) -> bool:
    """Return whether a calibration is of another composition, or of none."""
    return calibration.get("composition") != COMPOSITION


def covers_space(calibration: Mapping[str, Any], digest: str) -> bool:
    """Return whether a calibration is of this composition, and of the space with this digest."""
    return not is_outdated(calibration) and digest in (calibration.get("spaces") or ())


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
        return cls(**{each.name: fitted[each.name] for each in fields(cls) if each.name in fitted})

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
    # Calibrations of early versions have an offset, and correct nothing.
    offset_us: Annotated[float, Field(ge=0, le=1e12)] | None = None
    launch_us: Annotated[float, Field(ge=-1e12, le=1e12)] = 0.0
    invocation_us: Annotated[float, Field(ge=-1e12, le=1e12)] = 0.0
    replaces_launches: bool = False
    kernels_ratio: Annotated[float, Field(gt=0, le=1e6)] | None = None
    from_us: Latency | None = None
    to_us: Latency | None = None
    used: bool = False
    nets: Count | None = None
    mape_before: ErrorFraction | None = None
    mape_after: ErrorFraction | None = None
    # Early versions fitted the least squared error.
    rmspe_before: ErrorFraction | None = None
    rmspe_after: ErrorFraction | None = None
    references: Count | None = None
    references_mape_before: ErrorFraction | None = None
    references_mape_after: ErrorFraction | None = None
    references_rmspe_before: ErrorFraction | None = None
    references_rmspe_after: ErrorFraction | None = None
    fitted_on: tuple[str, ...] | None = None
    spaces: tuple[str, ...] | None = None
    # Calibrations of early versions do not say how fast their networks were.
    networks: tuple[CalibrationNetwork, ...] = ()
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    composition: Count | None = None
    supersedes: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.used and (self.from_us is None or self.to_us is None):
            raise ValueError("a calibration that is used has from_us and to_us")
        return self
