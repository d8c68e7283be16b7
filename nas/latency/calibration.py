"""A correction of a table's predictions, fitted on whole networks and kept apart from them.

Kernels timed alone find their tensors in the nearest cache; in a network others ran in between. A
straight line from predicted to measured latency takes up what that costs on average. It is a fit,
so `Prediction.latency_us` stays the sum of measurements and `calibrated_us` stands beside it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.errors import RequestError
from nas.latency.check import Check
from nas.latency.record import Record
from nas.latency.table import LatencyTable
from nas.latency.timing import four_digits

FEWEST_NETWORKS = 8
"""Fewer than this say little about a line."""


@dataclass(frozen=True)
class Calibration:
    """`slope * predicted_us + offset_us`, and how well it does.

    Args:
        nets: how many networks it was fitted on.
        mape_before: mean absolute error without it, as a fraction.
        mape_after: the same with it, each network predicted by a fit on the others.
    """

    slope: float
    offset_us: float
    nets: int
    mape_before: float
    mape_after: float

    def apply(self, predicted_us: float) -> float:
        """The corrected latency, in microseconds."""
        return self.slope * predicted_us + self.offset_us


def fit(check: Check) -> Calibration:
    """The line with the least squared relative error; its offset is never below zero.

    Raises RequestError for fewer than `FEWEST_NETWORKS` networks.
    """
    predicted = np.array([row.predicted_us for row in check.rows])
    measured = np.array([row.measured_us for row in check.rows])
    if len(predicted) < FEWEST_NETWORKS:
        raise RequestError(
            f"A calibration needs at least {FEWEST_NETWORKS} networks, not {len(predicted)}.",
            remedy="Check the table on more networks.",
        )
    slope, offset = _line(predicted, measured)
    errors = []
    for index in range(len(predicted)):
        others = np.arange(len(predicted)) != index
        a, b = _line(predicted[others], measured[others])
        errors.append(abs((a * predicted[index] + b) / measured[index] - 1))
    return Calibration(
        four_digits(slope),
        four_digits(offset),
        len(predicted),
        four_digits(check.mape),
        four_digits(float(np.mean(errors))),
    )


def _line(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float]:
    # Dividing by the measured latency makes every network's relative error count alike.
    columns = np.stack([predicted / measured, 1 / measured], axis=1)
    slope, offset = np.linalg.lstsq(columns, np.ones(len(measured)), rcond=None)[0]
    if offset >= 0:
        return float(slope), float(offset)
    # A negative offset would give small networks no time at all.
    share = predicted / measured
    return float(share.sum() / (share**2).sum()), 0.0


def calibrate(table: LatencyTable, check: Check) -> Calibration:
    """Fits a correction and records it in the table, superseding an earlier one.

    Raises RequestError as `fit` does, TableError for a table that cannot be written.
    """
    found = fit(check)
    with table.writing():
        table.append(Record("calibration", calibration=dataclasses.asdict(found)))
    return found
