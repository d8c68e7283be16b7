"""What a network costs more because it does not fit the caches that its kernels were timed in.

A kernel timed over and over finds everything close to the processor: it is *near*. In a network
its weights were last used an inference ago. In a small network they are near still; in a large one
other tensors, and other programs, have pushed them out to the memory: they are *far*. So a kernel
has two latencies, and a network is a share of the way from the one to the other.

The share goes by how many bytes the network touches in an inference, and by how long an inference
takes: the longer, the more of a shared cache is taken by others meanwhile. Both are measured, once
a device, with chains of kernels: what a MiB of weights takes to read and use in chains that have
more and more of them, and that do more and more with them and in between.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

MIB = (1, 4, 8, 12, 16, 20, 24, 32, 64)
"""Of weights in a chain. Among as many as the first all are near; among the last all are far. The
second has more than a core's own cache holds, and less than a shared one."""

PARTS = tuple(f"weights_{mib}mib" for mib in MIB)
"""Dispatch costs: microseconds for a MiB of weights in chains that do nothing else."""

PACES = ("steady", "slow")
"""Of chains that do more with each weight, and that do other things in between."""

PARTS_BY_PACE = (PARTS, *(tuple(f"{part}_{pace}" for part in PARTS) for pace in PACES))
"""The same for all chains, from the fastest on. Where a runtime has none of the slower ones, its
networks are as far at any pace."""

LARGE_LAUNCH = "launch_2mib"
"""Dispatch cost: of launching a kernel in a network of some MiB, whose code is not at hand."""

LAUNCH_MIB = (1 / 16, 2.0)
"""Where `launch` and `LARGE_LAUNCH` are measured."""

_BYTES = 1 << 20

Curves = Sequence[Sequence[float]]
"""For every pace that was measured, from the fastest on, the cost of a MiB by `MIB`."""


@dataclass(frozen=True)
class DispatchCosts:
    """What running a network costs beside its kernels.

    Args:
        parts_us: microseconds by part, as `nas.latency.runtime.Runtime.time_dispatch` names them.
    """

    parts_us: Mapping[str, float]

    @cached_property
    def curves(self) -> Curves:
        """The curves among the parts, see `curves`."""
        return curves(self.parts_us)

    def launch_us(self, touched_bytes: float) -> float:
        """Return the cost of launching one kernel in a network of this size; 0 if not measured."""
        return launch_us(touched_bytes, self.parts_us) if "launch" in self.parts_us else 0.0

    def cold_weights_us(self, weight_bytes: float) -> float:
        """Return what reading weights from memory costs more than from a cache."""
        return far_weights_us(weight_bytes, self.parts_us) if self.curves else 0.0


def curves(dispatch_us: Mapping[str, float]) -> Curves:
    """The curves among dispatch costs, of each pace that is complete.

    A MiB never takes longer because a chain has fewer of them: where one seems to, the machine was
    busy then, and what a longer chain took counts.
    """
    return [
        _least_of_what_follows([dispatch_us[part] for part in parts])
        for parts in PARTS_BY_PACE
        if all(part in dispatch_us for part in parts)
    ]


def _least_of_what_follows(values: Sequence[float]) -> list[float]:
    return list(accumulate(reversed(values), min))[::-1]


def launch_us(touched_bytes: float, dispatch_us: Mapping[str, float]) -> float:
    """What launching a kernel costs in a network of some size.

    In a tiny network all code stays where the processor reads it from; in larger ones that of every
    kernel is fetched anew. Between the two the cost lies on a straight line, by the logarithm of
    the size. A runtime without `LARGE_LAUNCH` has one cost for all.
    """
    small = dispatch_us["launch"]
    large = max(small, dispatch_us.get(LARGE_LAUNCH, small))
    low, high = LAUNCH_MIB
    mib = min(max(touched_bytes / _BYTES, low), high)
    return small + (large - small) * math.log(mib / low) / math.log(high / low)


def far_share(touched_bytes: float, near_us: float, curves: Curves) -> float:
    """How far, from 0 to 1, the kernels of a network are between near and far.

    Between two of the measured sizes the share lies on a straight line, and so it does between two
    paces, by their logarithm.

    Args:
        touched_bytes: weights, and the most activations that the network has at once.
        near_us: what the network takes when all is near.
        curves: of one pace or more.
    """
    mib = touched_bytes / _BYTES
    if not curves or mib <= MIB[0]:
        return 0.0
    paces = [costs[0] for costs in curves]
    pace = near_us / mib
    at = bisect_right(paces, pace)
    if at in (0, len(paces)):
        return _share(mib, curves[min(at, len(paces) - 1)])
    fast, slow = paces[at - 1 : at + 1]
    weight = math.log(pace / fast) / math.log(slow / fast)
    return (1 - weight) * _share(mib, curves[at - 1]) + weight * _share(mib, curves[at])


def _share(mib: float, costs_us: Sequence[float]) -> float:
    """The share of a network of so many MiB that is as fast as the chains with these costs."""
    near, last = _near(costs_us), costs_us[-1]
    if last <= near:
        return 0.0
    at = bisect_right(MIB, mib)
    if at == len(MIB):
        return 1.0
    low, high = MIB[at - 1 : at + 1]
    below, above = costs_us[at - 1 : at + 1]
    cost = below + (mib - low) / (high - low) * (above - below)
    return min(1.0, max(0.0, (cost - near) / (last - near)))


def _near(costs_us: Sequence[float]) -> float:
    """What a MiB costs a chain whose weights are near, but not in a core's own cache.

    The chains' sets are small, and the shortest chain has them next to the core. Most of a
    network's weights are in kernels that are too large for that cache even when they are timed
    alone: what the shared cache costs is in their near latency already. Where the second chain is
    far, the device has no such cache behind the first one.
    """
    first, second, last = costs_us[0], costs_us[1], costs_us[-1]
    return second if second - first < (last - first) / 2 else first


def half_far(curves: Curves) -> list[tuple[float, float]]:
    """For every measured pace, in microseconds for a MiB, the MiB at which the share is a half.

    That is how much of the caches a network has to itself, at that pace. Paces at which nothing is
    ever far are left out.
    """
    found = []
    for costs in curves:
        shares = [_share(mib, costs) for mib in MIB]
        at = next((i for i, share in enumerate(shares) if share >= 0.5), None)
        if at is not None:
            below, above = shares[at - 1], shares[at]
            between = (0.5 - below) / (above - below)
            found.append((costs[0], MIB[at - 1] + between * (MIB[at] - MIB[at - 1])))
    return found


def far_weights_us(weight_bytes: float, dispatch_us: Mapping[str, float]) -> float:
    """What weights cost more when they are far, where a kernel was not timed on far ones."""
    costs = [dispatch_us[part] for part in PARTS]
    return weight_bytes / _BYTES * max(0.0, costs[-1] - _near(costs))
