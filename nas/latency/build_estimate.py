"""Estimating how long a latency table takes to build, from a few kernels that are timed now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas.errors import NasError
from nas.latency.installed_runtimes import open_runtime
from nas.latency.kernel import Kernel
from nas.latency.runtime import Runtime
from nas.latency.verify import apportion

MAX_TIMED_KERNELS = 8
"""Largest number of kernels that are timed for an estimate."""


@dataclass(frozen=True)
class BuildEstimate:
    """The estimated duration of a build.

    Args:
        kernels: number of kernels to time.
        estimated_seconds: duration of the build; None if there is no estimate.
        timed_kernels: number of kernels that were timed for the estimate.
        reason: why there is no estimate; empty if there is one.
    """

    kernels: int
    estimated_seconds: float | None = None
    timed_kernels: int = 0
    reason: str = ""


def estimate_build(kernels: Sequence[Kernel], runtime_name: str) -> BuildEstimate:
    """Estimate the duration of a build with a runtime on this machine.

    If the runtime cannot be used here, the result has the reason instead of an estimate.

    Args:
        kernels: kernels to time.
        runtime_name: name of the runtime.
    """
    try:
        return estimate_build_with(kernels, open_runtime(runtime_name))
    except NasError as error:
        return BuildEstimate(len(kernels), reason=str(error))


def estimate_build_with(kernels: Sequence[Kernel], runtime: Runtime) -> BuildEstimate:
    """Estimate the duration of a build by timing a few kernels of the most numerous kinds.

    The duration of a kernel depends on its kind far more than on its size.

    Args:
        kernels: kernels to time.
        runtime: opened runtime.
    """
    groups = _groups(kernels)
    mean_seconds: dict[str, float] = {}
    timed, failure = 0, ""
    for kind, chosen in _choose(groups).items():
        start = time.perf_counter()
        for kernel in chosen:
            try:
                schedule, _ = runtime.time_kernel(kernel)
                for _ in range(runtime.moments - 1):
                    runtime.retime_kernel(kernel, schedule)
            # A compiler may raise anything; in a build, too, the time is spent all the same.
            except Exception as error:
                failure = f"{kernel} cannot be timed: {type(error).__name__}: {error}"
            else:
                timed += 1
        mean_seconds[kind] = (time.perf_counter() - start) / len(chosen)
    if not timed:
        return BuildEstimate(len(kernels), reason=failure)
    covered = sum(len(groups[kind]) for kind in mean_seconds)
    seconds = sum(len(groups[kind]) * mean_seconds[kind] for kind in mean_seconds)
    return BuildEstimate(len(kernels), round(seconds / covered * len(kernels), 1), timed)


def _groups(kernels: Sequence[Kernel]) -> dict[str, list[Kernel]]:
    """Return kernels by detailed kind, most numerous kind first, each sorted by size."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.detailed_kind, []).append(kernel)
    for group in groups.values():
        group.sort(key=lambda kernel: (kernel.macs, kernel.output, kernel.text))
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _choose(groups: Mapping[str, list[Kernel]]) -> dict[str, list[Kernel]]:
    """Return a few kernels of the most numerous kinds, spread over the sizes of each."""
    sizes = {kind: len(group) for kind, group in groups.items()}
    return {
        kind: [groups[kind][len(groups[kind]) * (2 * i + 1) // (2 * count)] for i in range(count)]
        for kind, count in apportion(sizes, MAX_TIMED_KERNELS).items()
    }
