"""Places of tensors in one block of memory, such that no two that are alive at once overlap."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple


class Buffer(NamedTuple):
    """A tensor to place.

    Attributes:
        size: its size, in any unit.
        first, last: the first and the last moment at which it is needed.
    """

    size: int
    first: int
    last: int


def place(buffers: Iterable[Buffer]) -> list[int]:
    """Return the offset of each buffer, which goes to the lowest gap that those before it leave.

    Callers sort by size, the largest first (Pisarchyk and Lee 2020, "Efficient memory management
    for deep neural net inference").
    """
    offsets: list[int] = []
    placed: list[tuple[int, Buffer]] = []
    for buffer in buffers:
        offset = 0
        for start, other in placed:
            if other.first <= buffer.last and buffer.first <= other.last:
                if start - offset >= buffer.size:
                    break
                offset = max(offset, start + other.size)
        insort(placed, (offset, buffer), key=itemgetter(0))
        offsets.append(offset)
    return offsets
