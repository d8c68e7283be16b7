"""A correction of a table's predictions, fitted on whole networks and kept apart from them.

A kernel that is timed alone finds its tensors in the nearest cache, and its code in the processor's
first caches; in a network, other kernels ran in between. Launches and misses are timed in networks
made for that, and real ones may wait less: part of these costs is in the kernels already, or hides
behind them. So two factors are fitted on a few whole networks: one of the kernels, and a smaller or
equal one of all that is beside them. `Prediction.uncorrected_us` stays the composition of
measurements. Where cross-validation finds the composition at least as good, both factors are one.

The fit is the one with the least absolute relative error (least absolute deviations; Koenker and
Bassett, "Regression quantiles", 1978). Tensors of one network may happen to lie in memory such that
it takes 10% longer than the same network compiled again, and the smallest and the largest network
of a space lack more than most others: a fit with the least squared error follows these.
docs/measurements.md compares this form of the correction with others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas.display.progress import Advance
from nas.errors import KernelError, MeasurementError, RequestError
from nas.latency.check import CheckedNetwork, DrawnNetwork, TableCheck, check_networks
from nas.latency.kit import RESULTS, KitDevice
from nas.latency.record import Correction, CorrectionNetwork
from nas.latency.rounds import Latency, round_to_four_digits
from nas.latency.runtime import Runtime
from nas.latency.table import LatencyTable
from nas.latency.timing import MEASURED
from nas.statistics import kendall_tau, mape

if TYPE_CHECKING:
    from nas.space import Architecture, SearchSpace

MIN_NETWORKS = 8
"""Smallest number of networks on which a correction is fitted; fewer say little about it."""

CONFIDENCE = 0.9
"""How sure it is that the error for other networks is not above the one that is stated."""

FITTED_NETWORKS = 12
"""Networks that are timed after a build: with eight, the error for others is hardly known."""

DRAWS = 200
"""Random networks of each space from which those to fit on are chosen."""


def fit_correction(
    check: TableCheck, spaces: Sequence[SearchSpace] = (), table_readings_us: Sequence[float] = ()
) -> Correction:
    """Return the correction with the least absolute relative error on checked networks.

    It changes nothing if it predicts networks on which it was not fitted no better than the table.

    Args:
        check: networks of the spaces.
        spaces: the spaces.
        table_readings_us: readings of the core's speed beside the undisturbed timings of the table,
            which tell how much its speed differs from round to round.

    Raises:
        RequestError: there are fewer than `MIN_NETWORKS` networks.
        MeasurementError: measured latencies fall as predicted latencies rise.
    """
    networks = check.networks
    if len(networks) < MIN_NETWORKS:
        raise RequestError(
            f"A correction needs at least {MIN_NETWORKS} networks, not {len(networks)}.",
            remedy="Time more networks with `nas table check --nets`, or those of larger spaces.",
        )
    predictions = [each.prediction for each in networks]
    # Kernels are in both columns, so their factor is the sum of two that are not negative.
    parts = np.array([[each.uncorrected_us, sum(each.kernels_us)] for each in predictions])
    predicted, measured = parts[:, 0], np.array([each.measured_us for each in networks])
    if (kendall_tau(predicted, measured) or 0) <= 0:
        raise MeasurementError(
            "The networks that are predicted slower were measured faster, so no correction fits.",
            remedy="Build the table again, or time the networks on an idle machine.",
        )
    # No prediction exceeds the smallest and the largest network.
    inner = np.argsort(predicted)[1:-1]
    errors, factors = min(
        (np.abs(predicted / measured - 1)[inner], np.array([1.0, 0.0])),
        (errors_of_others(parts, measured)[inner], least_factors(parts, measured)),
        key=lambda form: form[0].mean(),
    )
    return Correction(
        kernel_factor=round_to_four_digits(factors.sum()),
        dispatch_factor=round_to_four_digits(factors[0]),
        nets=len(networks),
        mape_before=round_to_four_digits(mape(predicted, measured)),
        mape_after=round_to_four_digits(_upper_mean(errors) + _drift(check, table_readings_us)),
        spaces=tuple(space.digest for space in spaces),
        batch=check.batch,
        networks=tuple(
            CorrectionNetwork(
                architecture=each.architecture.to_json(),
                uncorrected_us=round_to_four_digits(each.prediction.uncorrected_us),
                measured_us=each.measured_us,
            )
            for each in networks
        ),
    )


def errors_of_others(
    parts: NDArray[np.float64], measured: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the absolute relative error of each network, predicted by a fit on the others.

    Args:
        parts, measured: see `least_factors`.
    """
    predicted = [
        own @ least_factors(np.delete(parts, at, 0), np.delete(measured, at))
        for at, own in enumerate(parts)
    ]
    return np.abs(np.array(predicted) / measured - 1)


def _upper_mean(errors: NDArray[np.float64]) -> float:
    """Return the upper limit of a mean, one-sided and with `CONFIDENCE`, by Student's t."""
    from scipy.stats import t

    margin = t.ppf(CONFIDENCE, len(errors) - 1) * errors.std(ddof=1) / math.sqrt(len(errors))
    return float(errors.mean() + margin)


def _drift(check: TableCheck, table_readings_us: Sequence[float]) -> float:
    """Return by how much the speed of the core differs, on average, from that of a check.

    It is a fraction; 0 without readings.
    """
    own = _undisturbed_readings_us(each.latency for each in check.networks)
    if not own or not table_readings_us:
        return 0.0
    return float(np.mean(np.abs(np.array(table_readings_us) / np.median(own) - 1)))


def _undisturbed_readings_us(latencies: Iterable[Latency]) -> list[float]:
    rounds = (each for latency in latencies for each in latency.undisturbed)
    return [each.reading_us for each in rounds if each.reading_us is not None]


def least_factors(parts: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the factors, zero or above, with the least absolute relative error.

    They solve a linear program: the sum of bounds of all absolute errors is minimal.

    Args:
        parts: parts of the predicted latencies, `networks x parts`.
        measured: measured latencies, `networks`.

    Returns:
        The factor of each part, `parts`.
    """
    # A board that times networks has no scipy.
    from scipy.optimize import linprog

    relative = parts / measured[:, None]
    ones, bounds = np.ones(len(measured)), np.eye(len(measured))
    solved = linprog(
        np.concatenate([np.zeros(parts.shape[1]), ones]),
        A_ub=np.block([[relative, -bounds], [-relative, -bounds]]),
        b_ub=np.concatenate([ones, -ones]),
    )
    return np.array(solved.x[: parts.shape[1]])


def correct_table(
    table: LatencyTable, check: TableCheck, spaces: Sequence[SearchSpace] = ()
) -> Correction:
    """Fit a correction and record it in the table.

    It supersedes the table's correction for the same batch size. See `fit_correction`.

    Raises:
        TableError: the table cannot be written.
    """
    with table.writing():
        timed = (each.latency for each in table.records("kernel") if each.readings_us)
        return table.append(fit_correction(check, spaces, _undisturbed_readings_us(timed)))


def lacks_correction(table: LatencyTable, spaces: Collection[SearchSpace], batch: int = 1) -> bool:
    """Return whether a table lacks one correction of all spaces, if networks can be measured.

    A space may have one of its own, from a build without the others.
    """
    if table.runtime.network_basis != MEASURED:
        return False
    fitted = [(space, table.correction(batch, space.digest)) for space in spaces]
    lacking = any(own is None or space.digest not in own.spaces for space, own in fitted)
    return lacking or len({own.line for _, own in fitted if own is not None}) > 1


def correct_after_build(
    table: LatencyTable,
    spaces: Sequence[SearchSpace],
    runtime: Runtime,
    *,
    batch: int = 1,
    seconds: float | None = None,
    progress: Advance | None = None,
) -> Correction | None:
    """Time `FITTED_NETWORKS` networks that are spread over the spaces, and fit a correction.

    Args:
        table: table of this device that covers the spaces.
        spaces: search spaces, adapted to the images.
        runtime: opened runtime with which the table was timed.
        batch: number of images that run at once.
        seconds: see `nas.latency.networks.measure_networks`.
        progress: function to call after each step.

    Returns:
        The correction; None if the spaces have fewer than `MIN_NETWORKS` networks whose kernels
        all have a latency, or if the latencies of whole networks are estimates: what they lack is
        not measured.

    Raises:
        MeasurementError: a network cannot be timed, or measured latencies fall as predicted ones
            rise.
    """
    if runtime.network_basis != MEASURED:
        return None
    networks = spread_networks(table, spaces, FITTED_NETWORKS, np.random.default_rng(0), batch)
    if len(networks) < MIN_NETWORKS:
        return None
    check = check_networks(
        table, networks, runtime, batch=batch, seconds=seconds, progress=progress
    )
    return correct_table(table, check, spaces)


def correct_by_kit(
    table: LatencyTable,
    spaces: Sequence[SearchSpace],
    device: KitDevice,
    folder: Path,
    progress: Advance | None = None,
) -> Correction | None:
    """Fit a correction on networks that a kit timed on its device, or write the kit.

    The networks are those of `correct_after_build`.

    Args:
        table: table of the device that covers the spaces.
        spaces: search spaces, adapted to the images.
        device: the device.
        folder: folder of the kit; the kit is written if it has no results.
        progress: function to call after each network of a kit that is written.

    Returns:
        The correction; None if the kit was written.

    Raises:
        RequestError: fewer than `MIN_NETWORKS` networks have a latency or were timed.
        MeasurementError: measured latencies fall as predicted ones rise.
        NasError: the results are damaged, or of another kit.
    """
    drawn = spread_networks(table, spaces, FITTED_NETWORKS, np.random.default_rng(0))
    networks = {architecture.digest: architecture for _, architecture in drawn}
    if len(networks) < MIN_NETWORKS:
        raise RequestError(
            f"{table.path} has all kernels of only {len(networks)} networks of the spaces.",
            remedy=f"A correction needs {MIN_NETWORKS}: import the results of the whole kit first.",
        )
    if not (folder / RESULTS).exists():
        graphs = {digest: architecture.graph for digest, architecture in networks.items()}
        device.write_networks_kit(graphs, table.schedules(), folder, progress)
        return None
    latencies = device.network_latencies(folder, table.device.recorded)
    timed = [
        CheckedNetwork(architecture, table.predict(architecture), latencies[digest])
        for digest, architecture in networks.items()
        if digest in latencies and latencies[digest].rounds
    ]
    if len(timed) < MIN_NETWORKS:
        raise RequestError(
            f"{folder / RESULTS} has the timings of {len(timed)} of the {len(networks)} networks.",
            remedy="Start the program of the kit again, which continues. If the table has changed "
            "since, name a new folder.",
        )
    return correct_table(table, TableCheck(tuple(timed)), spaces)


def spread_networks(
    table: LatencyTable,
    spaces: Sequence[SearchSpace],
    count: int,
    rng: np.random.Generator,
    batch: int = 1,
) -> list[DrawnNetwork]:
    """Return different networks at even quantiles of the predicted latencies of drawn networks.

    As many networks are drawn from each space, and the smallest and the largest one of each are
    added, so that no fit extrapolates. Most networks of the result are ordinary ones, however many
    spaces there are.

    Args:
        table: table of the device.
        spaces: search spaces, adapted to the images.
        count: number of networks; fewer if fewer are drawn whose kernels all have a latency.
        rng: generator that draws the networks from which they are chosen.
        batch: number of images that run at once.
    """
    drawn: dict[str, tuple[Architecture, float]] = {}
    for space in spaces:
        random = [space.sample(rng, uniform_over="choices") for _ in range(DRAWS)]
        for architecture in (space.smallest, space.largest, *random):
            with suppress(KernelError):
                latency_us = table.predict(architecture, batch).uncorrected_us
                drawn[architecture.digest] = (architecture, latency_us)
    by_latency = sorted(drawn.values(), key=lambda each: each[1])
    quantiles = np.linspace(0, len(by_latency) - 1, min(count, len(by_latency))).astype(int)
    return [(None, by_latency[at][0]) for at in quantiles]
