"""The cost of cache misses: what a network takes more because its data do not stay in caches.

A kernel that is timed over and over finds its weights in the caches, which are *warm*. In a network
its weights were last used one inference ago. The caches of a small network are still warm; in a
large network, other tensors and other programs have replaced the weights, and the caches are
*cold*. A kernel therefore has two latencies, and the latency of a network lies between its latency
with warm and with cold caches. The *miss fraction* says where: 0 is warm, 1 is cold.

The miss fraction depends on the number of bytes that the network touches in one inference, and on
the duration of the inference: the longer it takes, the more of a shared cache other programs
replace. Both effects are measured once per device, as *miss curves*. A benchmark runs chains of
kernels and times one MiB of weights as a function of the size of all weights; it repeats that for
chains that compute more with each weight (a higher compute intensity).

Small networks wait for the first-level cache. A tiny kernel that is timed over and over has it to
itself; in a network, the runtime and the other kernels displace its data. Networks of equally many
kernels were found to take longer by 10 nanoseconds for each further KiB that they touch, up to
about the size of the first-level cache, and no longer for more: kernels larger than that cache
wait for it when they are timed alone, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

WEIGHTS_MIB = (1, 4, 8, 12, 16, 20, 24, 32, 64)
"""Sizes of the weights of the benchmark's chains. The first fits into the caches and the last does
not. The second is larger than the private cache of a core and smaller than a shared cache."""

WEIGHT_PARTS = tuple(f"weights_{mib}mib" for mib in WEIGHTS_MIB)
"""Dispatch costs: microseconds for a MiB of weights in the chains of lowest compute intensity."""

COMPUTE_INTENSITIES = ("steady", "slow")
"""Higher compute intensities, in ascending order: chains that use each weight more often, and
chains that also compute other things between the weights."""

WEIGHT_PARTS_BY_INTENSITY = (
    WEIGHT_PARTS,
    *(tuple(f"{part}_{intensity}" for part in WEIGHT_PARTS) for intensity in COMPUTE_INTENSITIES),
)
"""Dispatch costs of all chains by compute intensity, in ascending order. If a runtime measures only
the lowest intensity, the miss fraction of its networks does not depend on their intensity."""

LAUNCH_MIB = {"launch_few": 0.01, "launch_small": 0.07, "launch": 0.67, "launch_2mib": 2.27}
"""Dispatch costs: one launch in networks of so many MiB, in ascending order. The code of the first
stays in the first-level caches, the second is about as large as these, and the last is larger than
all caches of a core."""

FIRST_CACHE = "first_cache"
"""Dispatch cost: what a network takes longer that touches `FIRST_CACHE_KIB` or more, compared with
one that touches nothing."""

FIRST_CACHE_KIB = 48
"""Size of a first-level cache. Predictions are about as good with any size from 32 to 64 KiB."""

LAUNCH_PARTS = (*LAUNCH_MIB, "invocation")
"""Dispatch costs of launching kernels and of entering a network."""

_KIB = 1 << 10
_MIB = 1 << 20

MissCurves = Sequence[Sequence[float]]
"""One miss curve per measured compute intensity, in ascending order. A curve holds, for each of
`WEIGHTS_MIB`, the microseconds that one MiB of weights takes."""


@dataclass(frozen=True)
class DispatchCosts:
    """The costs of running a network beside its kernels.

    Args:
        parts_us: microseconds by part, as `nas.latency.runtime.Runtime.time_dispatch` names them.
    """

    parts_us: Mapping[str, float]

    @cached_property
    def without_launches(self) -> DispatchCosts:
        """These costs, where launching kernels and entering a network cost nothing."""
        return DispatchCosts(
            {part: 0.0 if part in LAUNCH_PARTS else us for part, us in self.parts_us.items()}
        )

    @cached_property
    def miss_curves(self) -> MissCurves:
        """The miss curves of the compute intensities whose parts are all measured.

        One MiB takes no longer in a chain with fewer weights than in one with more. If a shorter
        chain seems slower, the machine was busy when it was timed, and the cost in the longer chain
        replaces it.
        """
        return [
            list(accumulate((self.parts_us[part] for part in reversed(parts)), min))[::-1]
            for parts in WEIGHT_PARTS_BY_INTENSITY
            if all(part in self.parts_us for part in parts)
        ]

    @cached_property
    def _warm_costs_us(self) -> list[float]:
        """The cost of one MiB in a chain whose weights are in the shared cache, by miss curve.

        The kernels of the chains are small, so the shortest chain has its weights in the private
        cache of a core. Most weights of a network belong to kernels that are too large for that
        cache even when they are timed alone: the cost of the shared cache is part of their warm
        latency. It is the difference of the two shortest chains of the lowest compute intensity. In
        chains of a higher one, other programs have time to replace even 4 MiB.
        """
        curves = self.miss_curves
        shared_us = _shared_cache_us(curves[0]) if curves else 0.0
        return [min(costs[0] + shared_us, costs[1]) for costs in curves]

    def launch_us(self, touched_bytes: float) -> float:
        """Return the cost of launching one kernel in a network of this size.

        In a small network the weights and the code of all kernels stay in the first caches; in a
        larger one they are fetched again for every kernel. The cost between two measured sizes is
        linear in the size, and never falls. A runtime that measures only the part `launch` has the
        same cost for all sizes, and one without any of `LAUNCH_MIB` has none.
        """
        sizes_mib, costs_us = self._launch_curve
        return float(np.interp(touched_bytes / _MIB, sizes_mib, costs_us)) if costs_us else 0.0

    @cached_property
    def _launch_curve(self) -> tuple[list[float], list[float]]:
        """The measured ones of `LAUNCH_MIB`: sizes, and the cost of a launch for each."""
        parts = [part for part in LAUNCH_MIB if part in self.parts_us]
        costs_us = accumulate((self.parts_us[part] for part in parts), max)
        return [LAUNCH_MIB[part] for part in parts], list(costs_us)

    def first_cache_us(self, touched_bytes: float) -> float:
        """Return what a network of this size waits for the first-level cache.

        A runtime without the part `FIRST_CACHE` has no such cost.
        """
        return first_cache_share(touched_bytes) * self.parts_us.get(FIRST_CACHE, 0.0)

    def cold_weights_us(self, weight_bytes: float, intensity: int = 0) -> float:
        """Return the additional time that reading weights takes if no cache has them.

        It is the penalty of a kernel that was not timed with cold caches.

        Args:
            weight_bytes: size of the weights.
            intensity: number of the miss curve whose chains read weights as the kernel does; that
                of the lowest compute intensity counts if this one is not measured.
        """
        curves = self.miss_curves
        if not curves:
            return 0.0
        costs = curves[intensity if intensity < len(curves) else 0]
        return weight_bytes / _MIB * max(0.0, costs[-1] - costs[0] - _shared_cache_us(curves[0]))

    def miss_fraction(self, touched_bytes: float, warm_us: float) -> float:
        """Return the position of a network between warm (0) and cold caches (1).

        The fraction is linear in the size between two measured sizes, and linear in the compute
        intensity between two measured intensities: what other programs replace in a shared cache
        grows with time. Linear in its logarithm, the scatter of the errors of 22 tables of TVM and
        3 of LiteRT was a fifth larger.

        Args:
            touched_bytes: size of the weights, plus the largest size of the activations that are
                alive at the same time.
            warm_us: latency of the network with warm caches.
        """
        curves = self.miss_curves
        mib = touched_bytes / _MIB
        if not curves or mib <= WEIGHTS_MIB[0]:
            return 0.0
        fractions = [
            _fraction(mib, *each) for each in zip(curves, self._warm_costs_us, strict=True)
        ]
        # Microseconds per MiB stand for the compute intensity.
        measured = [costs[0] for costs in curves]
        intensity = warm_us / mib
        upper = bisect_right(measured, intensity)
        if upper in (0, len(measured)):
            return fractions[min(upper, len(measured) - 1)]
        low, high = measured[upper - 1 : upper + 1]
        weight = (intensity - low) / (high - low)
        return (1 - weight) * fractions[upper - 1] + weight * fractions[upper]

    def half_miss_sizes(self) -> list[tuple[float, float]]:
        """Return the network size at which the miss fraction is one half, by compute intensity.

        This size tells how much of the caches a network has to itself. Intensities at which no
        cache miss costs anything are left out.

        Returns:
            Pairs of intensity in microseconds per MiB, and size in MiB.
        """
        sizes = []
        for costs, warm_us in zip(self.miss_curves, self._warm_costs_us, strict=True):
            fractions = [_fraction(mib, costs, warm_us) for mib in WEIGHTS_MIB]
            upper = next((i for i, fraction in enumerate(fractions) if fraction >= 0.5), None)
            if upper is not None:
                below, above = fractions[upper - 1 : upper + 1]
                low, high = WEIGHTS_MIB[upper - 1 : upper + 1]
                sizes.append((costs[0], low + (0.5 - below) / (above - below) * (high - low)))
        return sizes


def first_cache_share(touched_bytes: float) -> float:
    """Return the share of the cost `FIRST_CACHE` that a network of this size has."""
    return min(1.0, touched_bytes / _KIB / FIRST_CACHE_KIB)


def _fraction(mib: float, costs_us: Sequence[float], warm_us: float) -> float:
    """Return the miss fraction of a network of `mib` MiB on one miss curve.

    Args:
        mib: size of the network.
        costs_us: the miss curve.
        warm_us: cost of one MiB in a chain whose weights are in the shared cache.
    """
    cold_us = costs_us[-1]
    if cold_us <= warm_us:
        return 0.0
    upper = bisect_right(WEIGHTS_MIB, mib)
    if upper == len(WEIGHTS_MIB):
        return 1.0
    low, high = WEIGHTS_MIB[upper - 1 : upper + 1]
    below, above = costs_us[upper - 1 : upper + 1]
    cost_us = below + (mib - low) / (high - low) * (above - below)
    return min(1.0, max(0.0, (cost_us - warm_us) / (cold_us - warm_us)))


def _shared_cache_us(costs_us: Sequence[float]) -> float:
    """Return what one MiB costs more in the shared cache than in the private cache of a core.

    If the second chain is nearer to the longest than to the shortest, the device has no shared
    cache behind the private one, and the cost is 0.
    """
    first, second, last = costs_us[0], costs_us[1], costs_us[-1]
    return second - first if second - first < (last - first) / 2 else 0.0
