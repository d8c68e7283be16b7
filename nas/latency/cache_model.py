"""What a network costs beside its kernels: launching them, starting, and waiting for weights.

A kernel that is timed over and over finds its weights in the caches, which are *warm*. In a network
its weights were last used one inference ago. The caches of a small network are still warm; in a
large network, other tensors and other programs have replaced the weights, and the network waits for
them.

How long it waits for each MiB of weights depends on the number of bytes that it touches in one
inference. It is measured once per device, as a *miss curve*: a benchmark runs chains of kernels and
times one MiB of weights as a function of the size of all weights. docs/measurements.md says which
finer models were tried, and what they gained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

WEIGHTS_MIB = (1, 4, 8, 12, 16, 64)
"""Sizes of the weights of the benchmark's chains. The first fits into the caches, the last into
none. They are close where a shared cache ends: between 4 and 16 MiB, a straight line said of one
that ends just below 16 that networks of 10 MiB wait half as long."""

WEIGHT_PARTS = tuple(f"weights_{mib}mib" for mib in WEIGHTS_MIB)
"""Dispatch costs: microseconds for a MiB of weights in each of the chains, the miss curve."""

BETWEEN_PARTS = WEIGHT_PARTS[1:-1]
"""Parts between the ends of the miss curve: without one, the curve is straight there."""

_MIB = 1 << 20


@dataclass(frozen=True)
class DispatchCosts:
    """The costs of running a network beside its kernels.

    Args:
        parts_us: microseconds by part: `launch` of a kernel, `invocation` of a network, and
            `WEIGHT_PARTS`. A runtime has only those that `Capabilities.dispatch_parts` names.
    """

    parts_us: Mapping[str, float]

    @property
    def launch_us(self) -> float:
        """The cost of launching one kernel; 0 for a runtime without that part."""
        return self.parts_us.get("launch", 0.0)

    @property
    def invocation_us(self) -> float:
        """The cost of entering a network; 0 for a runtime without that part."""
        return self.parts_us.get("invocation", 0.0)

    @cached_property
    def miss_curve(self) -> dict[int, float]:
        """Microseconds of one MiB by the size of the chain in MiB; empty if an end is not measured.

        One MiB takes no longer in a chain with fewer weights than in one with more. If a shorter
        chain seems slower, the machine was busy when it was timed, and the cost in the longer chain
        replaces it.
        """
        if not self.parts_us.keys() >= {WEIGHT_PARTS[0], WEIGHT_PARTS[-1]}:
            return {}
        sizes = zip(WEIGHTS_MIB, WEIGHT_PARTS, strict=True)
        measured = {mib: self.parts_us[part] for mib, part in sizes if part in self.parts_us}
        longest_first = accumulate(reversed(measured.values()), min)
        return dict(zip(measured, reversed(list(longest_first)), strict=True))

    def waiting_us(self, weight_bytes: float, touched_bytes: float = math.inf) -> float:
        """Return the time that reading weights takes longer than from the caches.

        Args:
            weight_bytes: size of the weights.
            touched_bytes: size of all weights of the network, plus the largest size of the
                activations that are alive at the same time; by default, no weights are in a cache.
        """
        curve = self.miss_curve
        if not curve:
            return 0.0
        mib_us = float(np.interp(touched_bytes / _MIB, list(curve), list(curve.values())))
        return weight_bytes / _MIB * (mib_us - curve[WEIGHTS_MIB[0]])
