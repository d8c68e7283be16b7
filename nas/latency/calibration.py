"""A correction of a table's predictions, fitted on whole networks and kept apart from them.

A kernel that is timed alone finds its tensors in the nearest cache; in a network, other kernels ran
in between. A straight line from predicted to measured latency corrects the average cost of that. It
is a fit, so `Prediction.latency_us` stays the sum of measurements, and `calibrated_us` is separate.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.errors import MeasurementError, RequestError
from nas.latency.check import TableCheck
from nas.latency.record import Record
from nas.latency.table import LatencyTable
from nas.latency.timing import round_to_four_digits
from nas.statistics import mape

MIN_NETWORKS = 8
"""Smallest number of networks on which a line is fitted; fewer say little about it."""


@dataclass(frozen=True)
class Calibration:
    """The line `slope * predicted_us + offset_us`, and its errors as fractions.

    It is never judged on a network on which it was fitted.

    Args:
        slope: slope of the line.
        offset_us: offset of the line in microseconds.
        nets: number of random networks on which it was fitted.
        mape_before: mean absolute error on these networks without it.
        mape_after: mean absolute error with it, where each network is predicted by a fit on the
            others (leave-one-out cross-validation).
        references: number of published networks on which it was judged too.
        references_mape_before: mean absolute error on the published networks without it; None if
            there are none.
        references_mape_after: mean absolute error on the published networks with it.
        fitted_on: digests of the networks on which it was fitted, so that no check judges it by
            them.
        batch: number of images that run at once.
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
        """Return the corrected latency in microseconds."""
        return self.slope * predicted_us + self.offset_us


def fit_calibration(check: TableCheck) -> Calibration:
    """Return the line with the least squared relative error; its offset is at least zero.

    It is fitted on the random networks, and judged on the published ones as well.

    Raises:
        RequestError: there are fewer than `MIN_NETWORKS` random networks.
        MeasurementError: measured latencies fall as predicted latencies rise.
    """
    networks = check.random.networks
    if len(networks) < MIN_NETWORKS:
        raise RequestError(
            f"A calibration needs at least {MIN_NETWORKS} networks, not {len(networks)}.",
            remedy="Time more networks with --nets, or of larger spaces.",
        )
    predicted, measured = _latencies_us(check.random)
    slope, offset = _fit_line(predicted, measured)
    if slope <= 0:
        raise MeasurementError(
            "The networks that are predicted slower were measured faster, so no line fits.",
            remedy="Build the table again, or time the networks on an idle machine.",
        )
    held_out = np.empty(len(networks))
    for index in range(len(networks)):
        others = np.arange(len(networks)) != index
        a, b = _fit_line(predicted[others], measured[others])
        held_out[index] = a * predicted[index] + b
    published, published_us = _latencies_us(check.references)
    has_published = len(published) > 0
    return Calibration(
        round_to_four_digits(slope),
        round_to_four_digits(offset),
        len(networks),
        round_to_four_digits(mape(predicted, measured)),
        round_to_four_digits(mape(held_out, measured)),
        len(published),
        round_to_four_digits(mape(published, published_us)) if has_published else None,
        round_to_four_digits(mape(slope * published + offset, published_us))
        if has_published
        else None,
        tuple(each.digest for each in networks),
        check.batch,
    )


def _latencies_us(check: TableCheck) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return predicted and measured latencies."""
    return (
        np.array([each.predicted_us for each in check.networks]),
        np.array([each.measured_us for each in check.networks]),
    )


def _fit_line(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and offset."""
    # Dividing by the measured latency makes the relative error of every network count alike.
    columns = np.stack([predicted / measured, 1 / measured], axis=1)
    slope, offset = np.linalg.lstsq(columns, np.ones(len(measured)), rcond=None)[0]
    if offset >= 0:
        return float(slope), float(offset)
    # With a negative offset, small networks would take no time at all.
    ratio = predicted / measured
    return float(ratio.sum() / (ratio**2).sum()), 0.0


def calibrate_table(table: LatencyTable, check: TableCheck) -> Calibration:
    """Fit a calibration and record it in the table.

    It supersedes the table's calibration for the same batch size.

    Raises:
        RequestError, MeasurementError: see `fit_calibration`.
        TableError: the table cannot be written.
    """
    calibration = fit_calibration(check)
    with table.writing():
        record = Record.from_calibration(dataclasses.asdict(calibration), calibration.batch)
        table.append(record)
    return calibration
