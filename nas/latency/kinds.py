"""Kinds of kernels that behave alike, finer than `Kernel.kind`: convolutions differ most of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from nas.latency.kernel import Kernel

Item = TypeVar("Item")


def kind_of(kernel: Kernel) -> str:
    """`conv2d` of one kind, with its kernel size, or `Kernel.kind`.

    `pointwise`, `depthwise 3x3`, `grouped 1x1`, `conv 3x3`; `linear`, `concat` and so on.
    """
    if kernel.kind != "conv2d":
        return kernel.kind
    size = f"{kernel.kernel}x{kernel.kernel}"
    if kernel.is_depthwise:
        return f"depthwise {size}"
    if kernel.groups > 1:
        return f"grouped {size}"
    return "pointwise" if kernel.kernel == 1 else f"conv {size}"


def by_kind(items: Iterable[Item], kernel: Callable[[Item], Kernel]) -> dict[str, list[Item]]:
    """Items by the kind of the kernel that each is about, kinds in order of their names."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(kind_of(kernel(item)), []).append(item)
    return dict(sorted(found.items()))
