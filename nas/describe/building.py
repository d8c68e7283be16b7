"""How long a space's latency table would take to build here, from a few kernels timed now."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from nas.errors import NasError
from nas.latency import open_runtime
from nas.latency.kernel import Kernel
from nas.latency.kinds import kind_of, shares
from nas.latency.runtime import Runtime

TIMED_KERNELS = 8
"""Timed for an estimate, at most."""


@dataclass(frozen=True)
class Estimate:
    """Seconds to time `kernels` kernels, extrapolated from `timed_kernels`.

    Where there is no estimate, `estimated_seconds` is None and `reason` says why.
    """

    kernels: int
    estimated_seconds: float | None = None
    timed_kernels: int = 0
    reason: str = ""


def estimate(kernels: Sequence[Kernel], runtime_name: str) -> Estimate:
    """Times a few kernels of each kind with a runtime on this machine.

    A runtime that cannot be used here gives no estimate, but the reason.
    """
    try:
        return estimate_with(kernels, open_runtime(runtime_name))
    except NasError as error:
        return Estimate(len(kernels), reason=str(error))


def estimate_with(kernels: Sequence[Kernel], runtime: Runtime) -> Estimate:
    """See `estimate`. How long a kernel takes depends on its kind far more than on its size."""
    groups = _groups(kernels)
    mean_s: dict[Hashable, float] = {}
    timed, failure = 0, ""
    for kind, chosen in _chosen(groups).items():
        start = time.perf_counter()
        for kernel in chosen:
            try:
                # As a build does: twice, and now and then once more.
                schedule, _ = runtime.time_kernel(kernel)
                runtime.retime_kernel(kernel, schedule)
            # As in a build, a compiler may raise anything, and the time is spent all the same.
            except Exception as error:
                failure = f"{kernel} cannot be timed: {type(error).__name__}: {error}"
            else:
                timed += 1
        mean_s[kind] = (time.perf_counter() - start) / len(chosen)
    if not timed:
        return Estimate(len(kernels), reason=failure)
    timed_groups = sum(len(groups[kind]) for kind in mean_s)
    seconds = sum(len(groups[kind]) * mean_s[kind] for kind in mean_s)
    return Estimate(len(kernels), round(seconds / timed_groups * len(kernels), 1), timed)


def _groups(kernels: Sequence[Kernel]) -> dict[Hashable, list[Kernel]]:
    """Kernels that are tuned alike, the most numerous first, the smaller ones first in each."""
    found: dict[Hashable, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        found[kind_of(kernel)].append(kernel)
    for group in found.values():
        group.sort(key=lambda kernel: (kernel.macs, kernel.output, kernel.text))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _chosen(groups: dict[Hashable, list[Kernel]]) -> dict[Hashable, list[Kernel]]:
    """A few kernels of the most numerous groups, spread over the sizes in each."""
    sizes = {kind: len(group) for kind, group in groups.items()}
    return {
        kind: [groups[kind][len(groups[kind]) * (2 * i + 1) // (2 * share)] for i in range(share)]
        for kind, share in shares(sizes, TIMED_KERNELS).items()
    }
