"""Kernels that stay loaded between two timings."""

from __future__ import annotations

from nas.latency.kernel import Kernel
from nas.runtimes.tvm.kernel_cache import Kept, Ways

KERNELS = [Kernel.parse(f"linear {n}x1x1 -> 5x1x1 bias") for n in range(1, 6)]


def evaluate(calls: int, samples: int) -> list[float]:
    return [1.0] * samples


WAYS = Ways(evaluate, None)


def test_a_kernel_is_kept_with_its_schedule() -> None:
    kept = Kept(100)
    kept.add(KERNELS[0], {"channels": 2, "rows": 1}, WAYS, 10)
    assert kept.get(KERNELS[0], {"rows": 1, "channels": 2}) is WAYS
    assert kept.get(KERNELS[0], {"channels": 4, "rows": 1}) is None
    assert kept.get(KERNELS[1], {"channels": 2, "rows": 1}) is None


def test_the_oldest_goes_where_there_is_too_much() -> None:
    kept = Kept(100)
    for kernel in KERNELS[:4]:
        kept.add(kernel, {}, WAYS, 30)
    assert [kept.get(kernel, {}) is WAYS for kernel in KERNELS[:4]] == [False, True, True, True]
    kept.add(KERNELS[1], {}, WAYS, 30)
    kept.add(KERNELS[4], {}, WAYS, 30)
    found = [kept.get(kernel, {}) is WAYS for kernel in KERNELS]
    assert found == [False, True, False, True, True]


def test_one_that_is_too_large_alone_is_not_kept() -> None:
    kept = Kept(100)
    kept.add(KERNELS[0], {}, WAYS, 101)
    assert kept.get(KERNELS[0], {}) is None
