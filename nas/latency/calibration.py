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

from nas.errors import MeasurementError, RequestError
from nas.latency.check import Check
from nas.latency.record import Record
from nas.latency.table import LatencyTable
from nas.latency.timing import four_digits
from nas.statistics import mape

FEWEST_NETWORKS = 8
"""Fewer than this say little about a line."""


@dataclass(frozen=True)
class Calibration:
    """`slope * predicted_us + offset_us`, and how well it does. Errors are fractions.

    It is never judged on a network that it was fitted on.

    Args:
        nets: how many networks, drawn at random, it was fitted on.
        mape_before: mean absolute error on these without it.
        mape_after: the same with it, each network predicted by a fit on the others.
        references: how many published networks it was judged on beside.
        references_mape_before, references_mape_after: mean absolute error on these without it and
            with it; None without any.
        fitted_on: digests of the networks it was fitted on, so that no check judges it by them.
        batch: images at once that it is for.
    """

    slope: float
    offset_us: float
    nets: int
    mape_before: float
    mape_after: float
    references: int = 0
    references_mape_before: float | None = None
    references_mape_after: float | None = None
    fitted_on: tuple[str, ...] = ()
    batch: int = 1

    def apply(self, predicted_us: float) -> float:
        """The corrected latency, in microseconds."""
        return self.slope * predicted_us + self.offset_us


def fit(check: Check) -> Calibration:
    """The line with the least squared relative error; its offset is never below zero.

    Fitted on the networks drawn at random, and judged on the published ones as well.

    Raises RequestError for fewer than `FEWEST_NETWORKS` networks to fit on, MeasurementError where
    measured latencies fall as predicted ones rise.
    """
    rows = check.random.rows
    if len(rows) < FEWEST_NETWORKS:
        raise RequestError(
            f"A calibration needs at least {FEWEST_NETWORKS} networks, not {len(rows)}.",
            remedy="Time more networks with --nets, or of larger spaces.",
        )
    predicted, measured = _latencies(check.random)
    slope, offset = _line(predicted, measured)
    if slope <= 0:
        raise MeasurementError(
            "The networks that are predicted slower were measured faster, so no line fits.",
            remedy="Build the table again, or time the networks on an idle machine.",
        )
    held_out = np.empty(len(rows))
    for index in range(len(rows)):
        others = np.arange(len(rows)) != index
        a, b = _line(predicted[others], measured[others])
        held_out[index] = a * predicted[index] + b
    published, published_us = _latencies(check.references)
    return Calibration(
        four_digits(slope),
        four_digits(offset),
        len(rows),
        four_digits(mape(predicted, measured)),
        four_digits(mape(held_out, measured)),
        len(published),
        four_digits(mape(published, published_us)) if len(published) else None,
        four_digits(mape(slope * published + offset, published_us)) if len(published) else None,
        tuple(row.digest for row in rows),
        check.batch,
    )


def _latencies(check: Check) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and measured, in microseconds."""
    return (
        np.array([row.predicted_us for row in check.rows]),
        np.array([row.measured_us for row in check.rows]),
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
    """Fits a correction and records it in the table, superseding one for the same batch size.

    Raises RequestError as `fit` does, TableError for a table that cannot be written.
    """
    found = fit(check)
    with table.writing():
        table.append(Record.of_calibration(dataclasses.asdict(found), found.batch))
    return found
