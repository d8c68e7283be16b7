"""A correction of a table's predictions, fitted on whole networks and kept apart from them.

A kernel that is timed alone finds its tensors in the nearest cache, and its code in the processor's
first caches; in a network, other kernels ran in between. What the composition of kernels lacks is
nearly the same for all networks of a table. It is fitted on a few whole networks, with as many
parameters as the error that is expected for other networks justifies, and used only if that error
is smaller. `Prediction.uncorrected_us` stays the composition of measurements.

The fit is the one with the least absolute relative error (least absolute deviations; Koenker and
Bassett, "Regression quantiles", 1978). Tensors of one network may happen to lie in memory such that
it takes 10% longer than the same network compiled again, and the smallest and the largest network
of a space lack more than most others: a fit with the least squared error follows these. Such a fit
passes through as many networks as it has parameters, so their error is that of the rest, and for
other networks it is larger as the factors are uncertain (`_expected_error`). Leaving out one
network after the other estimates the same, but with eight networks it mostly judges how a fit
extrapolates to the smallest and to the largest one, which it never has to.

Something that slows the processor a little for a minute would become part of the fit. So some
kernels are timed beside the networks, and the latencies of the networks are divided by how much
longer the kernels take than in the table (`CheckedNetwork.measured_us`). What only networks notice,
such as other programs that fill a shared cache, remains part of the fit. A check therefore times
the networks of the fit again (`TableCheck.device_ratio`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import KernelError, MeasurementError, RequestError
from nas.latency.check import DrawnNetwork, check_networks
from nas.latency.check_result import TableCheck
from nas.latency.networks import ProgressCallback
from nas.latency.record import MEASURED, Record
from nas.latency.runtime import Runtime
from nas.latency.table import LatencyTable
from nas.latency.timing import round_to_four_digits
from nas.statistics import mape

if TYPE_CHECKING:
    from nas.space import Architecture, SearchSpace

MIN_NETWORKS = 8
"""Smallest number of networks on which a correction is fitted; fewer say little about it."""

MIN_GAIN = 0.001
"""Smallest fraction of the latency by which a correction that is used, and its further parameters,
lower the expected error."""

DRAWS = 200
"""Random networks of each space from which those to fit on are chosen."""

Form = tuple[int, ...]
_FACTOR: Form = (0,)
_WITH_INVOCATION: Form = (0, 3)
_WITH_LAUNCHES: Form = (1, 2, 3)
"""The forms of a correction: which columns of `_columns` are added up, each with a factor of its
own. The last one replaces the measured costs of launching kernels and of entering a network."""

Latencies = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """A correction and its errors, as fractions; see `nas.latency.correction.Correction`.

    It is never judged on a network on which it was fitted.

    Args:
        slope: factor of the uncorrected latency.
        launch_us: microseconds of each launch.
        from_us: smallest uncorrected latency of the networks on which it was fitted.
        to_us: largest uncorrected latency of these networks.
        nets: number of random networks on which it was fitted.
        mape_before: mean absolute error on these networks without it.
        mape_after: mean absolute error that is expected with it for networks that are not in the
            fit.
        used: whether predictions are corrected: the error is smaller with it, on the published
            networks too.
        references: number of published networks on which it was judged too.
        references_mape_before: mean absolute error on the published networks without it; None if
            there are none.
        references_mape_after: mean absolute error on the published networks with it.
        fitted_on: digests of the networks on which it was fitted, so that no check judges it by
            them.
        spaces: digests of the spaces of these networks.
        batch: number of images that run at once.
        invocation_us: additional microseconds of an inference.
        kernels_ratio: how many times longer kernels took than in the table while the networks were
            timed, by which the networks were divided; None if that is not known.
        replaces_launches: whether `slope` is a factor of the latency without the costs of launching
            kernels and of entering the network.
        networks: the networks on which it was fitted, as a
            `nas.latency.correction.CalibrationNetwork` has them. A check times them again, to tell
            how fast the device is then.
    """

    slope: float
    launch_us: float
    from_us: float
    to_us: float
    nets: int
    mape_before: float
    mape_after: float
    used: bool
    references: int = 0
    references_mape_before: float | None = None
    references_mape_after: float | None = None
    fitted_on: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()
    batch: int = 1
    invocation_us: float = 0.0
    replaces_launches: bool = False
    kernels_ratio: float | None = None
    networks: tuple[Mapping[str, Any], ...] = ()


def correction_text(calibration: Mapping[str, Any]) -> str:
    """Return the right side of a calibration's equation, from its fields."""
    of = "kernels" if calibration["replaces_launches"] else "kernels and dispatch costs"
    text = f"{calibration['slope']:.4f} x the sum of {of}"
    for name, unit in (("launch_us", "us a launch"), ("invocation_us", "us")):
        if us := calibration[name]:
            text += f" {'-' if us < 0 else '+'} {abs(us):.3g} {unit}"
    return text


def calibration_text(calibration: Mapping[str, Any]) -> str:
    """Return whether a calibration corrects predictions, and by how much that lowers their error.

    Args:
        calibration: fields of a `Calibration`.
    """
    return (
        f"Predictions are {'' if calibration['used'] else 'not '}corrected; the correction is "
        f"{correction_text(calibration)}, fitted on {calibration['nets']} whole networks. Without "
        f"it, their mean error is {calibration['mape_before']:.2%}; with it, "
        f"{calibration['mape_after']:.2%} are expected for other networks."
    )


def calibration_summary(calibration: Calibration) -> str:
    """Return what the timing of whole networks says about predictions, in words."""
    text = (
        f"{calibration.nets} whole networks were timed: their latencies were predicted with a mean "
        f"error of {calibration.mape_before:.1%}"
    )
    if not calibration.used:
        return f"{text}, which a correction would not lower; predictions stay as they are"
    return (
        f"{text}; all predictions are now corrected, and {calibration.mape_after:.1%} is expected"
    )


def fit_calibration(check: TableCheck) -> Calibration:
    """Return the correction with the least absolute relative error.

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
    columns, measured = _columns(check.random)
    after, form = _expected_error(columns, measured, _FACTOR), _FACTOR
    for other in (_WITH_INVOCATION, _WITH_LAUNCHES):
        error = _expected_error(columns, measured, other)
        # Costs below zero would only make up for noise.
        is_possible = other != _WITH_LAUNCHES or _fit(columns, measured, other).min() >= 0
        if is_possible and error <= after - MIN_GAIN:
            after, form = error, other
    fitted = dict(zip(form, _fit(columns, measured, form).tolist(), strict=True))
    slope = fitted[form[0]]
    if slope <= 0:
        raise MeasurementError(
            "The networks that are predicted slower were measured faster, so no line fits.",
            remedy="Build the table again, or time the networks on an idle machine.",
        )
    before = mape(columns[:, 0], measured)
    references_before = references_after = None
    if check.references.networks:
        published, published_us = _columns(check.references)
        references_before = round_to_four_digits(mape(published[:, 0], published_us))
        corrected_us = published[:, form] @ [fitted[column] for column in form]
        references_after = round_to_four_digits(mape(corrected_us, published_us))
    return Calibration(
        round_to_four_digits(slope),
        round_to_four_digits(fitted.get(2, 0.0)),
        round_to_four_digits(columns[:, 0].min()),
        round_to_four_digits(columns[:, 0].max()),
        len(networks),
        round_to_four_digits(before),
        round_to_four_digits(after),
        before - after >= MIN_GAIN and (references_after or 0.0) <= (references_before or 0.0),
        len(check.references.networks),
        references_before,
        references_after,
        tuple(each.digest for each in networks),
        batch=check.batch,
        invocation_us=round_to_four_digits(fitted.get(3, 0.0)),
        replaces_launches=form == _WITH_LAUNCHES,
        kernels_ratio=round_to_four_digits(check.kernels.median) if check.kernels else None,
        networks=tuple(
            {
                "architecture": dict(each.architecture),
                "uncorrected_us": round_to_four_digits(each.uncorrected_us),
                "measured_us": each.measured_us,
            }
            for each in networks
        ),
    )


def _columns(check: TableCheck) -> tuple[Latencies, Latencies]:
    """Return the columns of a fit, `networks x 4`, and the measured latencies.

    The columns are the uncorrected latency, the same without launches, launches, and one.
    """
    rows = [
        (each.uncorrected_us, each.without_launches_us, each.launches, 1) for each in check.networks
    ]
    return np.array(rows, float), np.array([each.measured_us for each in check.networks])


def _fit(columns: Latencies, measured: Latencies, form: Form) -> Latencies:
    """Return the factor of each column of a form, with the least absolute relative error.

    It is the solution of a linear program: the sum of bounds of all absolute errors is minimal.
    """
    # A board that times networks has no scipy.
    from scipy.optimize import linprog

    relative = columns[:, form] / measured[:, None]
    (networks, factors), ones = relative.shape, np.ones(len(measured))
    bounds = np.eye(networks)
    solved = linprog(
        np.repeat([0.0, 1.0], [factors, networks]),
        A_ub=np.block([[relative, -bounds], [-relative, -bounds]]),
        b_ub=np.concatenate([ones, -ones]),
        bounds=(None, None),
    )
    return np.asarray(solved.x[:factors], np.float64)


def _expected_error(columns: Latencies, measured: Latencies, form: Form) -> float:
    """Return the mean absolute error expected for other networks, as a fraction.

    The variance of factors with the least absolute error is, for normal errors, pi / 2 of that of
    factors with the least squared error.
    """
    error = mape(columns[:, form] @ _fit(columns, measured, form), measured)
    share = len(form) / len(measured)
    return error / (1 - share) * math.sqrt(1 + math.pi / 2 * share)


def calibrate_table(
    table: LatencyTable, check: TableCheck, spaces: Sequence[SearchSpace] = ()
) -> Calibration:
    """Fit a calibration and record it in the table.

    It supersedes the table's calibration for the same batch size.

    Args:
        table: the table.
        check: networks of the spaces.
        spaces: the spaces.

    Raises:
        RequestError, MeasurementError: see `fit_calibration`.
        TableError: the table cannot be written.
    """
    digests = tuple(space.digest for space in spaces)
    calibration = dataclasses.replace(fit_calibration(check), spaces=digests)
    with table.writing():
        record = Record.from_calibration(dataclasses.asdict(calibration), calibration.batch)
        table.append(record)
    return calibration


def lacks_calibration(table: LatencyTable, spaces: Collection[SearchSpace], batch: int = 1) -> bool:
    """Return whether a table lacks a calibration for a space whose networks can be measured.

    Each space may have one of its own, from another build.
    """
    if table.runtime.network_basis != MEASURED:
        return False
    return any(
        space.digest not in table.calibration(batch, space.digest).get("spaces", ())
        for space in spaces
    )


def calibrate_after_build(
    table: LatencyTable,
    spaces: Sequence[SearchSpace],
    runtime: Runtime,
    *,
    batch: int = 1,
    progress: ProgressCallback | None = None,
) -> Calibration | None:
    """Time `MIN_NETWORKS` networks that are spread over the spaces, and calibrate the table.

    Args:
        table: table of this device that covers the spaces.
        spaces: search spaces, adapted to the images.
        runtime: opened runtime with which the table was timed.
        batch: number of images that run at once.
        progress: function to call after each step.

    Returns:
        The calibration; None if the spaces have fewer networks whose kernels all have a latency, or
        if the latencies of whole networks are estimates: what they lack is not measured.

    Raises:
        MeasurementError: a network cannot be timed, or only while the processor was slow, or
            measured latencies fall as predicted ones rise.
    """
    if runtime.network_basis != MEASURED:
        return None
    networks = spread_networks(table, spaces, MIN_NETWORKS, np.random.default_rng(0), batch)
    if len(networks) < MIN_NETWORKS:
        return None
    check = check_networks(table, networks, runtime, batch=batch, progress=progress)
    if check.disturbed_nets:
        raise MeasurementError(
            "The processor was slower than when the table was built.",
            remedy="Use `nas table calibrate` at a quieter moment.",
        )
    return calibrate_table(table, check, spaces)


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
        for architecture, latency_us in _predicted(table, space, rng, batch):
            drawn[architecture.digest] = (architecture, latency_us)
    by_latency = sorted(drawn.values(), key=lambda each: each[1])
    quantiles = np.linspace(0, len(by_latency) - 1, min(count, len(by_latency))).astype(int)
    return [(None, by_latency[at][0]) for at in quantiles]


def _predicted(
    table: LatencyTable, space: SearchSpace, rng: np.random.Generator, batch: int
) -> Iterator[tuple[Architecture, float]]:
    """Iterate over networks of a space and their uncorrected latencies in microseconds."""
    drawn = [space.sample(rng, uniform_over="choices") for _ in range(DRAWS)]
    for architecture in (space.smallest, space.largest, *drawn):
        try:
            yield architecture, table.predict(architecture, batch).uncorrected_us
        except KernelError:
            continue
