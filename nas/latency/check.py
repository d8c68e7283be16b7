"""Checking a table: compile and time whole networks, and compare them with their predictions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nas.arguments import checked
from nas.errors import MeasurementError, RequestError
from nas.latency.check_result import CheckedNetwork, TableCheck
from nas.latency.comparison import Ratios
from nas.latency.dispatch import time_dispatch_us
from nas.latency.networks import (
    NetworkTimings,
    ProgressCallback,
    measure_networks,
)
from nas.latency.runtime import Runtime
from nas.latency.table import LatencyTable
from nas.latency.timing import is_disturbed, latency_at_quiet_speed
from nas.latency.verify import DeviceSlowdown
from nas.statistics import spread

if TYPE_CHECKING:
    from nas.space import Architecture, SearchSpace

DrawnNetwork = tuple[str | None, "Architecture"]
"""A network, with its name if it is a published one."""

MAX_CALIBRATED = 8
"""Most networks of the table's calibration that are timed again beside the networks of a check."""

MIN_CALIBRATED = 3
"""Fewest networks of the calibration that tell how fast the device is. With fewer, kernels do."""

_MAX_DRAWS_PER_NETWORK = 100
"""Attempts to draw a network that was not drawn before; a small space may have no other."""


class CalibratedNetwork(NamedTuple):
    """A network on which the table's calibration was fitted.

    Attributes:
        architecture: the network.
        expected_us: its latency in microseconds if the device were as fast as it was then. The
            latency that was measured then is multiplied by how much the table's own prediction has
            changed since, because some kernels may have been timed or tuned again.
    """

    architecture: Architecture
    expected_us: float


@checked(SearchSpace="nas.space")
def check_table(
    table: LatencyTable,
    spaces: Sequence[SearchSpace],
    runtime: Runtime,
    *,
    nets: int,
    rng: np.random.Generator,
    references: bool = True,
    batch: int = 1,
    retime_dispatch: bool = False,
    progress: ProgressCallback | bool | None = True,
) -> TableCheck:
    """Compile and time whole networks, and compare them with their predictions.

    None of the networks is one on which the table's calibration was fitted. Some of those are timed
    beside the networks, to tell how fast the device is (`TableCheck.device_ratio`).

    Args:
        table: table of this device.
        spaces: search spaces, adapted to the images.
        runtime: opened runtime with which the table was timed.
        nets: number of different random networks, drawn from the spaces in turn; fewer if the
            spaces have no more.
        rng: generator that draws the networks.
        references: whether the published networks of the spaces are timed too, at the input size
            of the space.
        batch: number of images that run at once.
        retime_dispatch: whether the dispatch costs are timed again after the networks, see
            `TableCheck.retimed_dispatch_agreement`.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or a function to
            call after each step.

    Raises:
        MissingKernelError: the table does not cover a space.
        TableDeviceError: the table belongs to another device.
        RequestError: there is no network or no space, or the runtime does not have the batch size.
        MeasurementError: a network cannot be timed.
    """
    from nas.console import reported

    if nets < 1 or not spaces:
        raise RequestError("A check needs at least one network and one space.")
    runtime.check_batch(batch)
    fitted = (table.calibration(batch, space.digest) for space in spaces)
    left_out = [digest for each in fitted for digest in each.get("fitted_on") or ()]
    networks = _draw_networks(spaces, nets, rng, references, left_out)
    with reported(progress, "check", "step") as report:
        return check_networks(
            table,
            networks,
            runtime,
            beside=calibrated_networks(table, spaces, batch),
            batch=batch,
            retime_dispatch=retime_dispatch,
            progress=report,
        )


def calibrated_networks(
    table: LatencyTable, spaces: Sequence[SearchSpace], batch: int = 1
) -> list[CalibratedNetwork]:
    """Return networks of these spaces on which the table's calibration was fitted.

    There are at most `MAX_CALIBRATED`, spread over their latencies; none if the calibration is of
    other spaces.
    """
    result: list[CalibratedNetwork] = []
    for space in spaces:
        fitted = table.calibration(batch, space.digest)
        if space.digest not in fitted.get("spaces", ()):
            continue
        for each in fitted["networks"]:
            if each["architecture"].get("space") == space.name:
                architecture = space.from_json(each["architecture"])
                now_us = table.predict(architecture, batch).uncorrected_us
                expected_us = each["measured_us"] * now_us / each["uncorrected_us"]
                result.append(CalibratedNetwork(architecture, expected_us))
    result.sort(key=lambda each: each.expected_us)
    return spread(result, MAX_CALIBRATED)


def check_networks(
    table: LatencyTable,
    networks: Sequence[DrawnNetwork],
    runtime: Runtime,
    *,
    beside: Sequence[CalibratedNetwork] = (),
    batch: int = 1,
    retime_dispatch: bool = False,
    progress: ProgressCallback | None = None,
) -> TableCheck:
    """Compile and time these networks, and compare them with their predictions.

    Args:
        table: table of this device.
        networks: the networks; a published one with its name.
        runtime: opened runtime with which the table was timed.
        beside: networks that tell how fast the device is; one that cannot be timed is left out.
        batch, retime_dispatch, progress: see `check_table`.

    Raises:
        MissingKernelError, TableDeviceError, MeasurementError: see `check_table`.
    """
    table.device.require_match(runtime.fingerprint, str(table.path))
    graphs = [architecture.graph for _, architecture in networks]
    predictions = [table.predict(architecture, batch) for _, architecture in networks]
    kernels = [kernel for prediction in predictions for kernel in prediction.kernels]
    # Latencies that are always the same say nothing about the moment.
    timed_again = () if runtime.has_constant_networks else kernels
    slowdown = DeviceSlowdown(table, runtime, timed_again)
    timed = measure_networks(
        [*graphs, *(each.architecture.graph for each in beside)],
        runtime,
        table.schedules(),
        batch=batch,
        progress=progress,
        quiet_us=table.quiet_us,
        at_each_moment=slowdown.measure,
    )
    dispatch_us = time_dispatch_us(runtime, table.quiet_us) if retime_dispatch else None
    without_launches_us = table.dispatch.without_launches.parts_us
    own, others = timed[: len(graphs)], timed[len(graphs) :]
    check = TableCheck(
        (), batch, runtime.network_basis, slowdown.ratios, _ratios_to_then(beside, others)
    )
    checked = []
    for (name, architecture), graph, prediction, result in zip(
        networks, graphs, predictions, own, strict=True
    ):
        if result.error is not None:
            raise MeasurementError(
                f"{name or 'A random network'} could not be timed: {result.error}."
            )
        checked.append(
            CheckedNetwork(
                architecture.to_json(),
                prediction.latency_us,
                result.timings,
                name,
                graph.digest,
                prediction.uncorrected_us,
                prediction.launches,
                table.predict(graph, batch, dispatch_us=without_launches_us).uncorrected_us,
                table.predict(architecture, batch, dispatch_us=dispatch_us).latency_us
                if dispatch_us
                else None,
                prediction.unstable_launches,
                prediction.estimated_launches,
                is_disturbed(result.timings, table.quiet_us),
                check.device_ratio,
            )
        )
    return replace(check, networks=tuple(checked))


def _ratios_to_then(
    beside: Sequence[CalibratedNetwork], timed: Sequence[NetworkTimings]
) -> Ratios | None:
    """Return the ratios of the latencies of networks to what they should be; None if too few."""
    ratios = [
        latency_at_quiet_speed(result.timings) / network.expected_us
        for network, result in zip(beside, timed, strict=True)
        if result.error is None
    ]
    return Ratios.from_values(ratios) if len(ratios) >= MIN_CALIBRATED else None


def published_networks(spaces: Sequence[SearchSpace]) -> list[DrawnNetwork]:
    """Return the published networks of the spaces with their names; equal ones occur once."""
    published: dict[str, DrawnNetwork] = {}
    for space in spaces:
        for each in space.references:
            architecture = space.reference(each.name)
            published.setdefault(architecture.graph.digest, (each.name, architecture))
    return list(published.values())


def _draw_networks(
    spaces: Sequence[SearchSpace],
    nets: int,
    rng: np.random.Generator,
    references: bool,
    left_out: Collection[str],
) -> list[DrawnNetwork]:
    """Return different networks with their names: the published ones, and `nets` random ones.

    No random network equals a published one, even if the published ones are left out, and none of
    the networks has a digest of `left_out`.
    """
    published = {
        network.graph.digest: (name, network) for name, network in published_networks(spaces)
    }
    random: dict[str, DrawnNetwork] = {}
    for index in range(nets):
        space = spaces[index % len(spaces)]
        for _ in range(_MAX_DRAWS_PER_NETWORK):
            architecture = space.sample(rng, uniform_over="choices")
            digest = architecture.graph.digest
            if not any(digest in known for known in (published, random, left_out)):
                random[digest] = (None, architecture)
                break
    chosen = {**(published if references else {}), **random}
    return [network for digest, network in chosen.items() if digest not in left_out]
