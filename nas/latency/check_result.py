"""The result of checking a table: whole networks, their predictions and their latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nas.latency.comparison import Ratios
from nas.latency.networks import retiming_spread
from nas.latency.record import MEASURED
from nas.latency.timing import (
    Timing,
    latency_at_quiet_speed,
    references_us,
    round_to_four_digits,
)
from nas.statistics import (
    MIN_NETS_FOR_KENDALL_TAU,
    LatencyAgreement,
    kendall_tau,
    latency_agreement,
)

TARGET_MAPE = 0.02
"""Mean absolute error that a table should not exceed, unless the machine itself is noisier."""


@dataclass(frozen=True)
class CheckedNetwork:
    """One network that the table has not seen as a whole.

    Args:
        architecture: the architecture as `Architecture.to_json` writes it.
        predicted_us: latency that the table predicts.
        timings: timings of the whole network at different moments.
        reference: name of a published network; None for a random network.
        digest: digest of its graph.
        uncorrected_us: prediction without the table's calibration.
        launches: number of kernels that the network launches.
        without_launches_us: `uncorrected_us` without the costs of launching kernels and of entering
            the network.
        retimed_dispatch_us: prediction with the dispatch costs timed again after the networks; None
            if they were not.
        unstable_launches: number of launches whose timing is unstable.
        estimated_launches: number of launches whose latency is estimated.
        is_disturbed: whether more than the clock of the processor differed from the table at all
            timings, so that their slowdown is not known.
        device_ratio: how many times longer than for the table the device took beside the timings,
            see `TableCheck.device_ratio`.
    """

    architecture: Mapping[str, Any]
    predicted_us: float
    timings: tuple[Timing, ...]
    reference: str | None = None
    digest: str = ""
    uncorrected_us: float = 0.0
    launches: int = 0
    without_launches_us: float = 0.0
    retimed_dispatch_us: float | None = None
    unstable_launches: int = 0
    estimated_launches: int = 0
    is_disturbed: bool = False
    device_ratio: float = 1.0

    @property
    def name(self) -> str:
        """The name of a published network, or `random`."""
        return self.reference or "random"

    @property
    def timing(self) -> Timing:
        """The fastest timing, because other work on the machine only adds time."""
        return min(self.timings, key=lambda each: each.latency_us)

    @property
    def measured_us(self) -> float:
        """The latency in microseconds at the speed of the table, which is what it predicts.

        It is `as_measured_us` over how many times longer the device took at the same moments.
        """
        return round_to_four_digits(self.as_measured_us / self.device_ratio)

    @property
    def as_measured_us(self) -> float:
        """The latency in microseconds, see `nas.latency.timing.latency_at_quiet_speed`."""
        return latency_at_quiet_speed(self.timings)

    @property
    def relative_error(self) -> float:
        """Predicted over measured latency, minus one; negative if the prediction is too low."""
        return self.predicted_us / self.measured_us - 1

    def to_json(self) -> dict[str, Any]:
        """Return a row of `nas table check --json`."""
        retimed_us = self.retimed_dispatch_us
        return {
            "name": self.name,
            "architecture": dict(self.architecture),
            "predicted_us": round_to_four_digits(self.predicted_us),
            "uncorrected_us": round_to_four_digits(self.uncorrected_us),
            "without_launches_us": round_to_four_digits(self.without_launches_us),
            "launches": self.launches,
            "retimed_dispatch_us": retimed_us and round_to_four_digits(retimed_us),
            "unstable_launches": self.unstable_launches,
            "estimated_launches": self.estimated_launches,
            "measured_us": self.measured_us,
            "as_measured_us": self.as_measured_us,
            "samples_us": list(self.timing.samples_us),
            "timings_us": [each.latency_us for each in self.timings],
            "references_us": references_us(self.timings),
            "slowdowns": [each.slowdown for each in self.timings],
            "is_disturbed": self.is_disturbed,
        }


@dataclass(frozen=True)
class TableCheck:
    """The predictions of a table beside the measured latencies of whole networks.

    Args:
        networks: the networks.
        batch: number of images that run at once; latencies are those of the whole batch.
        basis: what the latencies of the whole networks come from, see `Runtime.network_basis`.
        kernels: ratios of the latencies of some kernels, timed beside the networks, to those in the
            table; None if they were not timed.
        calibrated: ratios of the latencies of networks of the calibration, timed beside the
            networks, to those that they had then; None if too few were timed.
    """

    networks: tuple[CheckedNetwork, ...]
    batch: int = 1
    basis: str = MEASURED
    kernels: Ratios | None = None
    calibrated: Ratios | None = None

    @property
    def device_ratio(self) -> float:
        """How many times longer the device took than for the table.

        It is the median of `calibrated`. If that is None it is the median of `kernels`, and if both
        are None it is 1. Other programs that fill a shared cache slow networks by some percent for
        minutes, but do not slow kernels that are timed alone.
        """
        ratios = self.calibrated or self.kernels
        return ratios.median if ratios else 1.0

    @property
    def agreement(self) -> LatencyAgreement:
        """The agreement of predicted and measured latencies over all networks."""
        return _agreement(self.networks)

    @property
    def random(self) -> TableCheck:
        """The check restricted to random networks."""
        return replace(self, networks=tuple(n for n in self.networks if n.reference is None))

    @property
    def references(self) -> TableCheck:
        """The check restricted to published networks."""
        return replace(self, networks=tuple(n for n in self.networks if n.reference is not None))

    @property
    def uncorrected_agreement(self) -> LatencyAgreement | None:
        """The agreement of predictions without the table's calibration; None if it corrects none.

        `agreement` is that with the calibration, on the same networks: a check draws none on which
        the calibration was fitted.
        """
        if all(each.uncorrected_us == each.predicted_us for each in self.networks):
            return None
        return latency_agreement(
            [each.uncorrected_us for each in self.networks],
            [each.measured_us for each in self.networks],
        )

    @property
    def as_measured_agreement(self) -> LatencyAgreement | None:
        """The agreement with latencies that are not at the speed of the table.

        None if nothing was timed beside the networks.
        """
        if self.kernels is None and self.calibrated is None:
            return None
        return latency_agreement(
            [each.predicted_us for each in self.networks],
            [each.as_measured_us for each in self.networks],
        )

    @property
    def retimed_dispatch_agreement(self) -> LatencyAgreement | None:
        """The agreement of predictions with the dispatch costs of the time of the check.

        The cost of cache misses depends on the other programs of the machine. If this agreement is
        much better than `agreement`, the machine was busier or quieter than when the table was
        built. None if the dispatch costs were not timed again.
        """
        # The costs of this moment have the caches of this moment, so only kernels tell the speed.
        ratio = self.kernels.median if self.kernels else 1.0
        pairs = [(n.retimed_dispatch_us, n.as_measured_us / ratio) for n in self.networks]
        retimed = [(predicted, measured) for predicted, measured in pairs if predicted is not None]
        return latency_agreement(*map(list, zip(*retimed, strict=True))) if retimed else None

    @property
    def nets_with_unstable_kernels(self) -> int:
        """Number of networks with a kernel whose timing is unstable."""
        return sum(each.unstable_launches > 0 for each in self.networks)

    @property
    def nets_with_estimated_kernels(self) -> int:
        """Number of networks with a kernel whose latency is estimated."""
        return sum(each.estimated_launches > 0 for each in self.networks)

    @property
    def disturbed_nets(self) -> int:
        """Number of networks that were timed only while something slowed the processor."""
        return sum(each.is_disturbed for each in self.networks)

    @property
    def retiming_spread(self) -> float | None:
        """See `nas.latency.networks.retiming_spread`; None if a network was timed once."""
        timings = [each.timings for each in self.networks]
        return retiming_spread(timings) if min(map(len, timings)) > 1 else None

    @property
    def retiming_tau(self) -> float | None:
        """Kendall's tau of one half of the timings with the other half, an upper bound of any tau.

        Each half has every other timing of each network. None if a network was timed once, or there
        are too few networks for an order.
        """
        if min(len(each.timings) for each in self.networks) < 2:
            return None
        first, second = (
            [latency_at_quiet_speed(each.timings[start::2]) for each in self.networks]
            for start in (0, 1)
        )
        return (
            kendall_tau(first, second) if len(self.networks) >= MIN_NETS_FOR_KENDALL_TAU else None
        )

    @property
    def target_mape(self) -> float:
        """`TARGET_MAPE`, or twice the re-timing spread, which no prediction can beat."""
        return max(TARGET_MAPE, 2 * (self.retiming_spread or 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return what `nas table check --json` prints."""
        uncorrected, retimed = self.uncorrected_agreement, self.retimed_dispatch_agreement
        as_measured = self.as_measured_agreement
        return {
            "batch": self.batch,
            "basis": self.basis,
            **self.agreement.to_json(),
            "retiming_spread": self.retiming_spread,
            "retiming_tau": self.retiming_tau,
            "target_mape": self.target_mape,
            "target_met": self.agreement.mape <= self.target_mape,
            "nets_with_unstable_kernels": self.nets_with_unstable_kernels,
            "nets_with_estimated_kernels": self.nets_with_estimated_kernels,
            "disturbed_nets": self.disturbed_nets,
            "kernels": self.kernels and asdict(self.kernels),
            "calibrated": self.calibrated and asdict(self.calibrated),
            "random": _agreement_json(self.random),
            "references": _agreement_json(self.references),
            "as_measured": as_measured and as_measured.to_json(),
            "uncorrected": uncorrected and uncorrected.to_json(),
            "retimed_dispatch": retimed and retimed.to_json(),
            "rows": [each.to_json() for each in self.networks],
        }


def _agreement(networks: Sequence[CheckedNetwork]) -> LatencyAgreement:
    return latency_agreement([n.predicted_us for n in networks], [n.measured_us for n in networks])


def _agreement_json(check: TableCheck) -> dict[str, Any] | None:
    return check.agreement.to_json() if check.networks else None
