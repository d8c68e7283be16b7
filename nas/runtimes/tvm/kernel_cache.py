"""Kernels that were timed a moment ago, still loaded: timing them again compiles nothing."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import NamedTuple

from nas.latency.kernel import Kernel
from nas.latency.timing import Evaluate
from nas.schedules.templates import Schedule


class Ways(NamedTuple):
    """A kernel as something to time, near and, where that differs, far; see `footprint`."""

    near: Evaluate
    far: Evaluate | None


class Kept:
    """The kernels timed last, with the tensors that they were timed on.

    Args:
        largest_bytes: of these tensors. A build times some fifty kernels before it returns to the
            first; they hold some 200 MiB.
    """

    def __init__(self, largest_bytes: int) -> None:
        self._largest_bytes = largest_bytes
        self._held: OrderedDict[tuple[Kernel, str], tuple[Ways, int]] = OrderedDict()

    def add(self, kernel: Kernel, schedule: Schedule, ways: Ways, held_bytes: int) -> None:
        """Keeps a kernel with a schedule, and lets the oldest go where that is too much."""
        self._held[_key(kernel, schedule)] = ways, held_bytes
        self._held.move_to_end(_key(kernel, schedule))
        while sum(size for _, size in self._held.values()) > self._largest_bytes:
            self._held.popitem(last=False)

    def get(self, kernel: Kernel, schedule: Schedule) -> Ways | None:
        """What times a kernel with a schedule, if it is still there."""
        found = self._held.get(_key(kernel, schedule))
        return found[0] if found else None


def _key(kernel: Kernel, schedule: Schedule) -> tuple[Kernel, str]:
    return kernel, json.dumps(dict(schedule), sort_keys=True)
