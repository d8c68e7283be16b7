"""Checking a table: time whole networks or kernels again, and compare them with the table."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.display.progress import Advance
from nas.errors import MeasurementError, RequestError, SpaceError, TableError
from nas.kernels.kernel import Kernel
from nas.latency import timer_answers
from nas.latency.device import Fingerprint
from nas.latency.networks import measure_networks
from nas.latency.prediction import Prediction
from nas.latency.rounds import (
    Latency,
    Policy,
    Rounds,
    Slowdown,
    full_speed_us,
    one_at_a_time,
    round_to_four_digits,
)
from nas.latency.runtime import KernelTimer, Runtime
from nas.latency.table import LatencyTable
from nas.latency.timing import MEASURED, Timing
from nas.statistics import LatencyAgreement, latency_agreement, spread

if TYPE_CHECKING:
    from nas.space import Architecture, SearchSpace

DrawnNetwork = tuple[str | None, "Architecture"]
"""A network, with its name if it is a published one."""

TARGET_MAPE = 0.02
"""Mean absolute error that a table should not exceed, unless the machine itself is noisier."""

MAX_CORRECTION_NETWORKS = 8
"""Most networks of the table's correction that are timed again beside the networks of a check."""

MIN_CORRECTION_NETWORKS = 3
"""Fewest networks of the correction that tell how fast the device is."""

MAX_DEVICE_CHANGE = 0.05
"""Largest difference of the device's speed from that of its table, as a fraction, with which the
table still holds."""

CHECKED_KERNELS = 40
"""Most kernels of a table that a quick check times again."""

_MAX_DRAWS_PER_NETWORK = 100
"""Attempts to draw a network that was not drawn before; a small space may have no other."""


@dataclass(frozen=True)
class CheckedNetwork:
    """One network that the table has not seen as a whole.

    Args:
        architecture: the network.
        prediction: what the table predicts.
        latency: latency of the whole network.
        reference: name of a published network; None for a random network.
        device_ratio: see `TableCheck.device_ratio`.
    """

    architecture: Architecture
    prediction: Prediction
    latency: Latency
    reference: str | None = None
    device_ratio: float = 1.0

    @property
    def name(self) -> str:
        """The name of a published network, or `random`."""
        return self.reference or "random"

    @property
    def predicted_us(self) -> float:
        """The latency that the table predicts, in microseconds."""
        return self.prediction.latency_us

    @property
    def measured_us(self) -> float:
        """The latency in microseconds at the speed of the table, which is what it predicts."""
        return round_to_four_digits(self.latency.fastest_us / self.device_ratio)

    @property
    def relative_error(self) -> float:
        """Predicted over measured latency, minus one; negative if the prediction is too low."""
        return self.predicted_us / self.measured_us - 1

    def to_json(self) -> dict[str, Any]:
        """Return a row of `nas table check --json`."""
        prediction = self.prediction
        return {
            "name": self.name,
            "architecture": self.architecture.to_json(),
            "predicted_us": round_to_four_digits(prediction.latency_us),
            "uncorrected_us": round_to_four_digits(prediction.uncorrected_us),
            "launches": prediction.launches,
            "uncertain_launches": prediction.uncertain_launches,
            "estimated_launches": prediction.estimated_launches,
            "measured_us": self.measured_us,
            "disturbed": self.latency.is_disturbed,
            "rounds_us": [each.latency_us for each in self.latency.rounds],
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True)
class TableCheck:
    """Whole networks beside their predictions.

    Args:
        networks: networks that were timed; at least one.
        batch: number of images that run at once.
        basis: what the latencies of the whole networks come from, see `Runtime.network_basis`.
        device_ratio: how many times longer the device took than for the table: the median ratio of
            the networks of the table's correction, timed again; None if too few were.
    """

    networks: tuple[CheckedNetwork, ...]
    batch: int = 1
    basis: str = MEASURED
    device_ratio: float | None = None

    @property
    def agreement(self) -> LatencyAgreement:
        """The agreement of predicted and measured latencies over all networks."""
        return latency_agreement(
            [each.predicted_us for each in self.networks],
            [each.measured_us for each in self.networks],
        )

    @property
    def uncorrected_agreement(self) -> LatencyAgreement:
        """The agreement of predictions without the table's correction, on the same networks."""
        return latency_agreement(
            [each.prediction.uncorrected_us for each in self.networks],
            [each.measured_us for each in self.networks],
        )

    @property
    def random(self) -> TableCheck:
        """The check restricted to random networks."""
        return replace(self, networks=tuple(n for n in self.networks if n.reference is None))

    @property
    def references(self) -> TableCheck:
        """The check restricted to published networks."""
        return replace(self, networks=tuple(n for n in self.networks if n.reference is not None))

    @property
    def retiming_spread(self) -> float | None:
        """The median difference of two latencies of each network, as a fraction.

        They are `Latency.halves_us`; None if each network was timed once.
        """
        pairs = [each.latency.halves_us for each in self.networks]
        differences = [pair[1] / pair[0] - 1 for pair in pairs if pair is not None]
        return statistics.median(differences) if differences else None

    @property
    def slowdown(self) -> Slowdown | None:
        """How much slower than in the fastest rounds the networks were; None if timed once."""
        return Slowdown.of(each.latency for each in self.networks)

    @property
    def target_mape(self) -> float:
        """`TARGET_MAPE`, or twice the re-timing spread, which no prediction can beat."""
        return max(TARGET_MAPE, 2 * (self.retiming_spread or 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return what `nas table check --json` prints."""
        parts = {"random": self.random, "references": self.references}
        return {
            "batch": self.batch,
            "basis": self.basis,
            **self.agreement.to_json(),
            "retiming_spread": self.retiming_spread,
            "slowdown": None if self.slowdown is None else self.slowdown._asdict(),
            "target_mape": self.target_mape,
            "target_met": self.agreement.mape <= self.target_mape,
            "device_ratio": self.device_ratio,
            "uncorrected": self.uncorrected_agreement.to_json(),
            **{
                name: part.agreement.to_json() if part.networks else None
                for name, part in parts.items()
            },
            "rows": [each.to_json() for each in self.networks],
        }


def check_table(
    table: LatencyTable,
    spaces: Sequence[SearchSpace],
    runtime: Runtime,
    *,
    nets: int,
    rng: np.random.Generator,
    references: bool = True,
    batch: int = 1,
    progress: Advance | bool | None = True,
) -> TableCheck:
    """Compile and time whole networks, and compare them with their predictions.

    None of the networks is one on which the table's correction was fitted. Some of those are timed
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
        progress: True shows a bar on a terminal or in a notebook, False nothing; or a function to
            call after each step.

    Raises:
        MissingKernelError: the table does not cover a space.
        TableDeviceError: the table belongs to another device.
        RequestError: there is no network or no space, or the runtime does not have the batch size.
        MeasurementError: a network cannot be timed.
    """
    from nas.display.console import reported

    if nets < 1 or not spaces:
        raise RequestError("A check needs at least one network and one space.")
    runtime.check_batch(batch)
    fitted = [network for network, _ in _correction_networks(table, spaces, batch)]
    networks = _draw_networks(spaces, nets, rng, references, [n.graph.digest for n in fitted])
    with reported(progress, "check", "step") as report:
        return check_networks(table, networks, runtime, spaces=spaces, batch=batch, progress=report)


def check_networks(
    table: LatencyTable,
    networks: Sequence[DrawnNetwork],
    runtime: Runtime,
    *,
    spaces: Sequence[SearchSpace] = (),
    batch: int = 1,
    seconds: float | None = None,
    progress: Advance | None = None,
) -> TableCheck:
    """Compile and time these networks, and compare them with their predictions.

    Args:
        table: table of this device.
        networks: the networks; a published one with its name.
        runtime: opened runtime with which the table was timed.
        spaces: spaces of whose correction some networks are timed again, to tell how fast the
            device is; one that cannot be timed is left out.
        batch, progress: see `check_table`.
        seconds: see `nas.latency.networks.measure_networks`.

    Raises:
        MissingKernelError, TableDeviceError, MeasurementError: see `check_table`.
    """
    table.device.require_match(runtime.fingerprint, str(table.path))
    predictions = [table.predict(architecture, batch) for _, architecture in networks]
    beside = spread(_correction_networks(table, spaces, batch), MAX_CORRECTION_NETWORKS)
    timed = measure_networks(
        [each.graph for each in (*(a for _, a in networks), *(a for a, _ in beside))],
        runtime,
        table.schedules(),
        batch=batch,
        seconds=seconds,
        progress=progress,
        full_us=table.full_us,
    )
    own, others = timed[: len(networks)], timed[len(networks) :]
    ratios = [
        latency.fastest_us / expected_us
        for (_, expected_us), latency in zip(beside, others, strict=True)
        if latency.rounds
    ]
    ratio = statistics.median(ratios) if len(ratios) >= MIN_CORRECTION_NETWORKS else None
    checked = []
    for (name, network), prediction, latency in zip(networks, predictions, own, strict=True):
        if latency.error is not None:
            raise MeasurementError(
                f"{name or 'A random network'} could not be timed: {latency.error}."
            )
        checked.append(CheckedNetwork(network, prediction, latency, name, ratio or 1.0))
    return TableCheck(tuple(checked), batch, runtime.network_basis, ratio)


def _correction_networks(
    table: LatencyTable, spaces: Sequence[SearchSpace], batch: int
) -> list[tuple[Architecture, float]]:
    """Return the networks of these spaces on which the table's correction was fitted.

    Each has the latency in microseconds that it has if the device is as fast as it was then: what
    was measured then, multiplied by how much the table's own prediction has changed since, because
    kernels may have been timed again. They are sorted by it.
    """
    result: list[tuple[Architecture, float]] = []
    for space in spaces:
        fitted = table.correction(batch, space.digest)
        if fitted is None or space.digest not in fitted.spaces:
            continue
        for each in fitted.networks:
            if each.architecture.get("space") == space.name:
                architecture = space.from_json(each.architecture)
                now_us = table.predict(architecture, batch).uncorrected_us
                result.append((architecture, each.measured_us * now_us / each.uncorrected_us))
    return sorted(result, key=lambda each: each[1])


def published_networks(spaces: Sequence[SearchSpace]) -> list[DrawnNetwork]:
    """Return the published networks of the spaces with their names; equal ones occur once.

    A space whose table has a network, but not at one of its resolutions, does not have it here.
    """
    published: dict[str, DrawnNetwork] = {}
    for space in spaces:
        for each in space.references:
            try:
                architecture = space.reference(each.name)
            except SpaceError:  # `nas spaces` says why it is no network of the space.
                continue
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


@dataclass(frozen=True)
class CheckedKernel:
    """One kernel of the table and its new timings.

    Args:
        kernel: the kernel.
        table_us: latency in the table.
        latency: latency now, or why it could not be timed.
    """

    kernel: Kernel
    table_us: float
    latency: Latency

    @property
    def ratio(self) -> float | None:
        """The ratio of now to the table: above 1 if the device is slower; None if not timed."""
        return None if self.latency.error else self.latency.fastest_us / self.table_us


@dataclass(frozen=True)
class KernelCheck:
    """A sample of a table's kernels beside their new timings.

    Args:
        kernels: the kernels in the order of the table.
        changes: recorded facts of the device that differ now; they need not matter.
    """

    kernels: tuple[CheckedKernel, ...]
    changes: tuple[str, ...] = ()

    @property
    def device_ratio(self) -> float | None:
        """The median ratio of now to the table; None if no kernel could be timed."""
        ratios = [each.ratio for each in self.kernels if each.ratio is not None]
        return statistics.median(ratios) if ratios else None

    @property
    def slowdown(self) -> Slowdown | None:
        """How much slower than in the fastest rounds the kernels were; None if none was timed."""
        return Slowdown.of(each.latency for each in self.kernels if not each.latency.error)

    @property
    def problem(self) -> str:
        """Why the table does not hold; empty if it does."""
        failed = sum(each.ratio is None for each in self.kernels)
        if failed:
            return f"{failed} of {len(self.kernels)} kernels cannot be timed now"
        ratio = self.device_ratio or 1.0
        disturbed = sum(each.latency.is_disturbed for each in self.kernels)
        if 2 * disturbed > len(self.kernels):
            return f"the core is slowed now: kernels take {ratio:.2f} times as long"
        if abs(ratio - 1) <= MAX_DEVICE_CHANGE:
            return ""
        return f"kernels are {abs(ratio - 1):.0%} {'slower' if ratio > 1 else 'faster'} now"

    def to_json(self) -> dict[str, Any]:
        """Return what `nas table check --quick --json` prints."""
        rows = [
            {
                "kernel": each.kernel.text,
                "table_us": each.table_us,
                "rounds_us": [timing.latency_us for timing in each.latency.rounds],
                "ratio": each.ratio,
                "error": each.latency.error,
            }
            for each in self.kernels
        ]
        return {
            "holds": not self.problem,
            "problem": self.problem,
            "device_ratio": self.device_ratio,
            "slowdown": None if self.slowdown is None else self.slowdown._asdict(),
            "changes": list(self.changes),
            "rows": rows,
        }


def check_kernels(
    table: LatencyTable,
    timer: KernelTimer,
    device: Fingerprint,
    progress: Advance | None = None,
) -> KernelCheck:
    """Time a sample of a table's kernels again, each with its own schedule, and change nothing.

    A cooler, a driver, a frequency governor or another tenant of the same host can change a device
    without changing its name. The sample is the same each time: kernels at even ranks of latency.

    Args:
        table: table of this device.
        timer: timer of the device.
        device: fingerprint of the timer's device.
        progress: function of (timings done, timings in all, kernel), called after every timing.

    Raises:
        TableDeviceError: the table belongs to another device.
        TableError: no kernel of the table has a latency.
        DeviceError: the device cannot be used.
    """
    table.device.require_match(device, str(table.path))
    usable = [record for record in table.records("kernel") if record.latency_us is not None]
    if not usable:
        raise TableError(
            f"{table.path} has no kernel with a latency.", remedy="Continue it: nas table build."
        )
    usable.sort(key=lambda record: (record.latency_us or 0.0, record.name))
    chosen = sorted(spread(usable, CHECKED_KERNELS), key=lambda record: record.line)
    records = {Kernel.parse(record.name): record for record in chosen}

    def time_kernel(kernel: Kernel) -> Timing:
        return timer_answers.retime_kernel(timer, kernel, records[kernel].schedule or {})

    fewest = table.runtime.capabilities.rounds
    full_speed = partial(full_speed_us, known_us=table.full_us)
    timed = Rounds(one_at_a_time(time_kernel), Policy(fewest, fewest), full_speed=full_speed)
    for kernel in timed.run(dict.fromkeys(records, fewest)):
        if progress is not None:
            progress(timed.done, timed.total, kernel.text)
    kernels = tuple(
        CheckedKernel(kernel, record.latency_us or 0.0, timed.latency(kernel))
        for kernel, record in records.items()
    )
    return KernelCheck(kernels, tuple(_recorded_changes(table.device.recorded, device.recorded)))


def _recorded_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            yield f"{name} is {now.get(name)}, was {before.get(name)}"
