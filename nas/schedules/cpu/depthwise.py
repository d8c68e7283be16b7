"""Depthwise convolutions and pooling: each channel slides a window over itself.

A tile of neighbouring columns by channel vectors is kept in registers while the window's rows pass.
Tiles at the left and right border are written out separately, knowing which of their taps fall
outside, be it in the padding or where a last window hangs over it; rows outside are skipped by one
condition a window row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cpu import loops
from nas.schedules.cpu.loop_nest import Nest, spans
from nas.schedules.cpu.loops import Expr, Registers, Stmt
from nas.schedules.templates import Schedule


def pack_weight(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """From `channels x 1 x kernel x kernel` to `kernel x kernel x channels`, flat."""
    return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0)).reshape(-1)


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """The TIR function of a depthwise convolution or a pooling.

    The schedule has `channels` (vectors) by `columns` (pixels) of a register tile, and `order`:
    which of channels and rows the outer loop walks.
    """
    channels, height, _ = kernel.output
    size = schedule["channels"] * lanes

    def image(nest: Nest) -> list[Stmt]:
        if schedule["order"] == "channels":
            return spans(
                channels,
                size,
                lambda c, n: loops.loop(height, lambda row: _row(nest, schedule, row, c, n)),
                parallel=nest.parallel,
            )
        return loops.loop(
            height,
            lambda row: spans(channels, size, lambda c, n: _row(nest, schedule, row, c, n)),
            parallel=nest.parallel,
        )

    nest = Nest(kernel, lanes, threads, kernel.kernel**2 * channels, channels)
    return nest.function(image, name)


def _row(nest: Nest, schedule: Schedule, row: Expr, channel: Expr, count: int) -> list[Stmt]:
    """One output row of `count` channels: border tiles written out, those between in a loop."""
    kernel, wide = nest.kernel, schedule["columns"]
    width = kernel.output[2]

    def tile(column: Expr, n: int) -> list[Stmt]:
        return _tile(nest, row, column, n, channel, count)

    whole, rest = loops.tiles(width, wide)
    reach = kernel.inputs[0].shape[2] + kernel.padding - kernel.kernel
    inside = [
        i
        for i in range(whole)
        if i * wide * kernel.stride >= kernel.padding
        and ((i + 1) * wide - 1) * kernel.stride <= reach
    ]
    first, last = (inside[0], inside[-1] + 1) if inside else (whole, whole)
    found = [statement for i in range(first) for statement in tile(i * wide, wide)]
    found += loops.loop(last - first, lambda i: tile(i * wide, wide), start=first)
    found += [statement for i in range(last, whole) for statement in tile(i * wide, wide)]
    return found + (tile(whole * wide, rest) if rest else [])


def _tile(nest: Nest, row: Expr, column: Expr, wide: int, channel: Expr, count: int) -> list[Stmt]:
    kernel, lanes = nest.kernel, nest.lanes
    operand = kernel.inputs[0]
    total, height, width = operand.shape
    parts = loops.vectors(count, lanes)
    registers = Registers("acc", wide * len(parts), lanes)

    def register(j: int, v: int) -> int:
        return j * len(parts) + v

    found = registers.allocate()
    for j in range(wide):
        for v, (offset, n) in enumerate(parts):
            start = _initial(nest, channel + offset, n)
            found.append(registers.store(register(j, v), start, n))

    def window_row(tap_row: Expr) -> list[Stmt]:
        line = row * kernel.stride - kernel.padding + tap_row
        done = []
        for tap in range(kernel.kernel):
            for j in range(wide):
                x = (column + j) * kernel.stride - kernel.padding + tap
                if isinstance(x, int) and not 0 <= x < width:
                    continue
                for v, (offset, n) in enumerate(parts):
                    at = (line * width + x) * total + operand.start + channel + offset
                    value = nest.inputs[0].load(at, n)
                    so_far = registers.load(register(j, v), n)
                    weight_at = (tap_row * kernel.kernel + tap) * operand.channels
                    reduced = _reduced(nest, so_far, value, weight_at + channel + offset, n)
                    done.append(registers.store(register(j, v), reduced, n))
        return done

    top = row * kernel.stride - kernel.padding
    found += loops.within(top, kernel.kernel, height, window_row)
    for j in range(wide):
        for v, (offset, n) in enumerate(parts):
            result = registers.load(register(j, v), n)
            if kernel.kind == "avg_pool":
                result = result * loops.spread(_share(kernel, row, column + j), n)
            pixel = row * kernel.output[2] + column + j
            found.append(nest.finish(result, pixel, channel + offset, n))
    return [loops.sequence(found)]


def _initial(nest: Nest, channel: Expr, width: int) -> Expr:
    """What the reduction of a window starts from, for `width` channels."""
    if nest.kernel.kind == "max_pool":
        return loops.spread(float(np.finfo(np.float32).min), width)
    return nest.initial(channel, width)


def _share(kernel: Kernel, row: Expr, column: Expr) -> Expr:
    """What a pixel counts in an average: pixels of the padding count, none are beyond it."""
    _, height, width = kernel.inputs[0].shape

    def counted(at: Expr, size: int, outputs: int) -> Expr:
        padded = size + 2 * kernel.padding
        if (outputs - 1) * kernel.stride + kernel.kernel <= padded:
            return kernel.kernel
        return tirx.min(kernel.kernel, padded - at * kernel.stride)

    pixels = counted(row, height, kernel.output[1]) * counted(column, width, kernel.output[2])
    return 1 / pixels if isinstance(pixels, int) else 1 / tirx.Cast("float32", pixels)


def _reduced(nest: Nest, so_far: Expr, value: Expr, weight_at: Expr, width: int) -> Expr:
    """The reduction of a window with one more of its pixels."""
    if nest.kernel.kind == "max_pool":
        return tirx.max(so_far, value)
    if nest.kernel.kind == "avg_pool":
        return so_far + value
    assert nest.weight is not None
    return so_far + value * nest.weight.load(weight_at, width)
