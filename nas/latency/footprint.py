"""What a network costs more because its weights do not stay close to the processor.

Kernels are timed among a few MiB of weights. From one image to the next a larger network's weights
are pushed farther away, in the end to the memory, and every kernel waits for its own. How long a
MiB of weights takes to read in networks of more and more of them is measured once a device, and is
part of how kernels compose: a kernel's own latency stays the same in all networks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from nas.latency.kernel import Kernel

MIB = (4, 8, 16, 32)
"""Of all weights of a network. The first is what kernels are timed among."""

PARTS = tuple(f"weights_{mib}mib" for mib in MIB)
"""Dispatch costs: microseconds that a MiB of weights takes to read and use among so many."""


def weights_us(kernels: Sequence[Kernel], dispatch_us: Mapping[str, float]) -> float:
    """What a network costs more for having more weights than its kernels were timed among.

    Between two of the measured sizes the cost of a MiB lies on a straight line, beyond them it
    stays.
    """
    mib = sum([kernel.weight_bytes for kernel in kernels]) / (1 << 20)
    if mib <= MIB[0]:
        return 0.0
    least, *rest = (dispatch_us[part] for part in PARTS)
    extra = [0.0, *(max(0.0, each - least) for each in rest)]
    at = bisect_right(MIB, mib)
    if at == len(MIB):
        return mib * extra[-1]
    low, high = MIB[at - 1 : at + 1]
    return mib * (extra[at - 1] + (mib - low) / (high - low) * (extra[at] - extra[at - 1]))
