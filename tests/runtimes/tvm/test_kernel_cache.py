from __future__ import annotations

import numpy as np

from nas.kernels.kernel import Kernel
from nas.runtimes.tvm.device import CpuDevice
from nas.runtimes.tvm.kernel_cache import Activations, KernelCache

KERNELS = [Kernel.parse(f"linear {n}x1x1 -> 5x1x1 bias") for n in range(1, 6)]


def evaluate(calls: int, samples: int) -> list[float]:
    return [1.0] * samples


def test_cache_returns_a_kernel_only_with_its_schedule() -> None:
    cache = KernelCache(100)
    cache.add(KERNELS[0], {"channels": 2, "rows": 1}, evaluate, 10)
    assert cache.get(KERNELS[0], {"rows": 1, "channels": 2}) is evaluate
    assert cache.get(KERNELS[0], {"channels": 4, "rows": 1}) is None
    assert cache.get(KERNELS[1], {"channels": 2, "rows": 1}) is None


def test_kernels_share_their_activations() -> None:
    """Tensors of one kernel are apart; those at the same position of two kernels are the same."""
    activations = Activations(CpuDevice(1), "float32")
    output, source = activations.tensors([12, 100])
    other_output, other_source, third = activations.tensors([30, 50, 7])
    assert [each.shape for each in (other_output, other_source, third)] == [(30,), (50,), (7,)]
    np.testing.assert_array_equal(other_source.numpy(), source.numpy()[:50])
    assert np.unique([each.numpy()[:7] for each in (other_output, source, third)]).size == 21
    other_output.copyfrom(np.arange(30, dtype=np.float32))
    (output,) = activations.tensors([12])
    np.testing.assert_array_equal(output.numpy(), np.arange(12))
    np.testing.assert_array_equal(activations.tensors([12, 100])[1].numpy(), source.numpy())
