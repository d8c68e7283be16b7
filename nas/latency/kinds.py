"""Kinds of kernels that behave alike, finer than `Kernel.kind`: convolutions differ most of all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

from nas.latency.kernel import Kernel

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def kind_of(kernel: Kernel) -> str:
    """`conv2d` of one kind, with its kernel size, or `Kernel.kind`.

    `pointwise`, `depthwise 3x3`, `expanded depthwise 3x3` (with the 1x1 convolution before it),
    `grouped 1x1`, `conv 3x3`; `linear`, `concat` and so on. With the batch size behind it, if that
    is another than 1.
    """
    batch = f" batch{kernel.batch}" if kernel.batch > 1 else ""
    if kernel.kind != "conv2d":
        return kernel.kind + batch
    size = f"{kernel.kernel}x{kernel.kernel}"
    if kernel.is_depthwise:
        return f"{'expanded ' if kernel.is_expanded else ''}depthwise {size}{batch}"
    if kernel.groups > 1:
        return f"grouped {size}{batch}"
    return ("pointwise" if kernel.kernel == 1 else f"conv {size}") + batch


def shares(sizes: Mapping[Key, int], count: int) -> dict[Key, int]:
    """`count` shared out among groups of these sizes, none getting more than it has.

    The first `count` groups get one each; the rest goes in proportion to their sizes, by highest
    averages, as with votes.
    """
    found = dict.fromkeys(list(sizes)[:count], 1)
    for _ in range(min(count, sum(sizes[key] for key in found)) - len(found)):
        able = [key for key in found if found[key] < sizes[key]]
        found[max(able, key=lambda key: sizes[key] / (found[key] + 1))] += 1
    return found


def by_kind(items: Iterable[Item], kernel: Callable[[Item], Kernel]) -> dict[str, list[Item]]:
    """Items by the kind of the kernel that each is about, kinds in order of their names."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(kind_of(kernel(item)), []).append(item)
    return dict(sorted(found.items()))
