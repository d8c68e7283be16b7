"""Holds a table against reality: whole networks, compiled and timed, beside their predictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.errors import MeasurementError, RequestError
from nas.graph import Graph
from nas.latency import timing
from nas.latency.networks import Step, measure_until_they_agree, retiming_spread
from nas.latency.runtime import Runtime
from nas.latency.table import LatencyTable
from nas.latency.timing import Timing
from nas.statistics import (
    MIN_NETS_FOR_KENDALL_TAU,
    LatencyAgreement,
    kendall_tau,
    latency_agreement,
)

if TYPE_CHECKING:
    from nas.space import Architecture, SearchSpace

TARGET_MAPE = 0.02
"""Mean error that a table should not exceed, unless the machine itself is noisier than that."""

_DRAWS = 100
"""Tries to draw a network that was not drawn before; a small space may have no other."""


@dataclass(frozen=True)
class CheckedNetwork:
    """One held-out network.

    Args:
        architecture: as `Architecture.to_json` writes it.
        predicted_us: by the table.
        timings: of the whole network, at different moments.
        reference: the name of a published network; None for one drawn at random.
        digest: of its graph.
        corrected_us: prediction with the table's calibration; None without one, and for a network
            that the calibration was fitted on.
        now_us: prediction with what lies beside the kernels timed once more, after the networks;
            None where that was not asked for.
        unstable: how many of its launches rest on a timing that would not settle.
        estimated: how many of its launches have an estimated latency.
    """

    architecture: Mapping[str, Any]
    predicted_us: float
    timings: tuple[Timing, ...]
    reference: str | None = None
    digest: str = ""
    corrected_us: float | None = None
    now_us: float | None = None
    unstable: int = 0
    estimated: int = 0

    @property
    def name(self) -> str:
        """The published network's, or `random`."""
        return self.reference or "random"

    @property
    def timing(self) -> Timing:
        """The fastest of the timings: other work on the machine only adds time."""
        return min(self.timings, key=lambda each: each.latency_us)

    @property
    def measured_us(self) -> float:
        """The median of the fastest timing."""
        return self.timing.latency_us

    @property
    def relative_error(self) -> float:
        """Predicted over measured, less one: negative where the prediction is low."""
        return self.predicted_us / self.measured_us - 1

    def to_json(self) -> dict[str, Any]:
        """A row of `nas table check --json`."""
        return {
            "name": self.name,
            "architecture": dict(self.architecture),
            "predicted_us": timing.four_digits(self.predicted_us),
            "now_us": self.now_us and timing.four_digits(self.now_us),
            "unstable_launches": self.unstable,
            "estimated_launches": self.estimated,
            "measured_us": self.measured_us,
            "samples_us": list(self.timing.samples_us),
            "timings_us": [each.latency_us for each in self.timings],
        }


@dataclass(frozen=True)
class Check:
    """Predictions of a table against whole networks, none of which it has seen whole.

    Args:
        rows: the networks.
        batch: images at once; latencies are of all of them.
    """

    rows: tuple[CheckedNetwork, ...]
    batch: int = 1

    @property
    def agreement(self) -> LatencyAgreement:
        """Over all networks."""
        return _agreement(self.rows)

    @property
    def random(self) -> Check:
        """Of the networks drawn at random alone."""
        return Check(tuple(row for row in self.rows if row.reference is None), self.batch)

    @property
    def references(self) -> Check:
        """Of the published networks alone."""
        return Check(tuple(row for row in self.rows if row.reference is not None), self.batch)

    @property
    def corrected(self) -> tuple[LatencyAgreement, LatencyAgreement] | None:
        """Without and with the table's calibration, over the networks that it was not fitted on.

        None for a table without one, and where it was fitted on all these networks.
        """
        judged = [row for row in self.rows if row.corrected_us is not None]
        if not judged:
            return None
        measured = [row.measured_us for row in judged]
        corrected = [row.corrected_us or 0.0 for row in judged]
        return _agreement(judged), latency_agreement(corrected, measured)

    @property
    def now(self) -> LatencyAgreement | None:
        """With what lies beside the kernels as it was during the check; None if it was not timed.

        How far kernels are from their weights depends on what else the machine does. Where this is
        much better than `agreement`, the machine was busier, or quieter, than when the table was
        built.
        """
        found = [row.now_us for row in self.rows if row.now_us is not None]
        measured = [row.measured_us for row in self.rows if row.now_us is not None]
        return latency_agreement(found, measured) if found else None

    @property
    def with_unstable(self) -> int:
        """How many networks have a kernel that rests on a timing that would not settle."""
        return sum(row.unstable > 0 for row in self.rows)

    @property
    def with_estimated(self) -> int:
        """How many networks have a kernel whose latency is estimated."""
        return sum(row.estimated > 0 for row in self.rows)

    @property
    def retiming_spread(self) -> float | None:
        """See `nas.latency.networks.retiming_spread`; None where a network was timed once."""
        timings = [row.timings for row in self.rows]
        return retiming_spread(timings) if min(map(len, timings)) > 1 else None

    @property
    def retiming_tau(self) -> float | None:
        """Kendall's tau of one half of the timings with the other; no prediction orders better.

        Of every other timing of each network the fastest counts. None where networks were timed
        once, or have no order.
        """
        if min(len(row.timings) for row in self.rows) < 2:
            return None
        first, second = (
            [min(each.latency_us for each in row.timings[start::2]) for row in self.rows]
            for start in (0, 1)
        )
        return kendall_tau(first, second) if len(self.rows) >= MIN_NETS_FOR_KENDALL_TAU else None

    @property
    def target_mape(self) -> float:
        """`TARGET_MAPE`, or twice the re-timing spread: no prediction beats a second timing."""
        return max(TARGET_MAPE, 2 * (self.retiming_spread or 0.0))

    def to_json(self) -> dict[str, Any]:
        """What `nas table check --json` prints."""
        corrected, now = self.corrected, self.now
        return {
            "batch": self.batch,
            **self.agreement.to_json(),
            "retiming_spread": self.retiming_spread,
            "retiming_tau": self.retiming_tau,
            "target_mape": self.target_mape,
            "target_met": self.agreement.mape <= self.target_mape,
            "nets_with_unstable_kernels": self.with_unstable,
            "nets_with_estimated_kernels": self.with_estimated,
            "random": _figures(self.random),
            "references": _figures(self.references),
            "calibration": corrected
            and {"without": corrected[0].to_json(), "with": corrected[1].to_json()},
            "now": now and now.to_json(),
            "rows": [row.to_json() for row in self.rows],
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
    now: bool = False,
    progress: Step | None = None,
) -> Check:
    """Times whole networks and compares them with their predictions.

    Args:
        table: of this device.
        spaces: adapted to the images that matter.
        runtime: what the table was timed with.
        nets: how many different networks to draw, from the spaces in turn; fewer where the spaces
            have no more.
        rng: what draws them.
        references: whether all published networks of the spaces are timed too, at the spaces' own
            input sizes.
        batch: images that run at once.
        now: whether what lies beside the kernels is timed once more; see `Check.now`.
        progress: see `nas.latency.networks.Step`.

    Raises MissingKernelError for a space that the table does not cover, TableDeviceError for
    another device's table, RequestError for a batch size that the runtime does not have,
    MeasurementError for a network that cannot be timed.
    """
    if nets < 1 or not spaces:
        raise RequestError("A check needs at least one network and one space.")
    runtime.check_batch(batch)
    table.device.require(runtime.fingerprint, str(table.path))
    drawn = _draw(spaces, nets, rng, references)
    predictions = [table.predict(graph, batch) for _, _, graph in drawn]
    fitted_on = fitted_networks(table, batch)
    graphs = [graph for _, _, graph in drawn]
    timed = measure_until_they_agree(
        graphs, runtime, table.schedules(), batch=batch, progress=progress
    )
    costs = {part: each.latency_us for part, each in runtime.time_dispatch().items()} if now else {}
    rows = []
    for (name, architecture, graph), predicted, found in zip(
        drawn, predictions, timed, strict=True
    ):
        if found.error is not None:
            raise MeasurementError(
                f"{name or 'A random network'} could not be timed: {found.error}."
            )
        held_out = fitted_on is not None and graph.digest not in fitted_on
        rows.append(
            CheckedNetwork(
                architecture.to_json(),
                predicted.latency_us,
                found.timings,
                name,
                graph.digest,
                predicted.calibrated_us if held_out else None,
                table.predict(graph, batch, dispatch_us=costs).latency_us if costs else None,
                predicted.unstable,
                predicted.estimated,
            )
        )
    return Check(tuple(rows), batch)


def fitted_networks(table: LatencyTable, batch: int = 1) -> Collection[str] | None:
    """Digests of the networks that a table's calibration for a batch size was fitted on.

    None where there is no calibration, or it does not say: then it cannot be judged.
    """
    for record in table.records():
        if record.calibration is not None and record.calibration.get("batch", 1) == batch:
            found: Collection[str] | None = record.calibration.get("fitted_on")
            return found
    return None


def _draw(
    spaces: Sequence[SearchSpace], nets: int, rng: np.random.Generator, references: bool
) -> list[tuple[str | None, Architecture, Graph]]:
    """Different networks; the published ones first, so that none of them is drawn as well."""
    found: dict[str, tuple[str | None, Architecture, Graph]] = {}
    published = [(space, each.name) for space in spaces for each in space.references]
    for space, name in published:
        architecture = space.reference(name)
        graph = architecture.graph
        found.setdefault(graph.digest, (name, architecture, graph))
    held_back = set() if references else set(found)
    for index in range(nets):
        space = spaces[index % len(spaces)]
        for _ in range(_DRAWS):
            architecture = space.sample(rng, uniform_over="choices")
            graph = architecture.graph
            if graph.digest not in found:
                found[graph.digest] = (None, architecture, graph)
                break
    return [each for digest, each in found.items() if digest not in held_back]


def _agreement(rows: Sequence[CheckedNetwork]) -> LatencyAgreement:
    return latency_agreement([row.predicted_us for row in rows], [row.measured_us for row in rows])


def _figures(check: Check) -> dict[str, Any] | None:
    return check.agreement.to_json() if check.rows else None
