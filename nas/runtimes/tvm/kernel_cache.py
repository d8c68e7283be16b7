"""What a timer keeps on its device between timings: compiled kernels and activations."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import tvm

from nas.kernels.kernel import Kernel
from nas.latency.runtime import Schedule
from nas.latency.timing import Evaluate
from nas.runtimes.tvm.device import Device


class KernelCache:
    """The kernels that were timed last, still loaded, so that timing them again compiles nothing.

    Args:
        max_bytes: largest size in bytes of all cached kernels. A build returns to a kernel for a
            minute or two, while it compiles about two hundred others.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[Kernel, str], tuple[Evaluate, int]] = OrderedDict()

    def add(self, kernel: Kernel, schedule: Schedule, evaluate: Evaluate, size_bytes: int) -> None:
        """Add a kernel, and evict the oldest kernels while all together are too large.

        Args:
            kernel: the kernel.
            schedule: its schedule.
            evaluate: what times the compiled kernel.
            size_bytes: size of its library and of the tensors that it alone is called with.
        """
        key = self._key(kernel, schedule)
        self._entries[key] = evaluate, size_bytes
        self._entries.move_to_end(key)
        while sum(size for _, size in self._entries.values()) > self._max_bytes:
            self._entries.popitem(last=False)

    def get(self, kernel: Kernel, schedule: Schedule) -> Evaluate | None:
        """Return what times a kernel with a schedule; None if it is not cached."""
        entry = self._entries.get(self._key(kernel, schedule))
        return entry[0] if entry else None

    @staticmethod
    def _key(kernel: Kernel, schedule: Schedule) -> tuple[Kernel, str]:
        return kernel, json.dumps(dict(schedule), sort_keys=True)


class Activations:
    """Tensors for the inputs and outputs of all kernels that are timed in turn.

    Args:
        device: device of the tensors.
        dtype: type of the tensors.
    """

    def __init__(self, device: Device, dtype: str) -> None:
        self._device, self._dtype = device, dtype
        self._tensors: dict[int, tvm.runtime.Tensor] = {}

    def tensors(self, sizes: Sequence[int]) -> list[tvm.runtime.Tensor]:
        """Return a tensor of each size, no two of which share memory.

        Those at the same position in two lists share their memory. They hold random numbers if no
        kernel writes to them.
        """
        return [self._tensor(position, size) for position, size in enumerate(sizes)]

    def _tensor(self, position: int, size: int) -> tvm.runtime.Tensor:
        known = self._tensors.get(position)
        if known is None or known.shape[0] < size:
            values = np.random.default_rng(position).standard_normal(size, np.float32)
            known = self._tensors[position] = self._device.to_device(values.astype(self._dtype))
        return known._create_view((size,))
