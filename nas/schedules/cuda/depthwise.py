"""Depthwise convolutions and pooling: each channel slides a window over itself.

A thread computes neighbouring columns of one row for a vector of channels: it reads each pixel of
its rows once and uses it in every window that it is part of. Threads are numbered through channels
first, so that neighbouring threads read neighbouring memory whatever the number of channels is, and
only the last block has threads without work. What windows share beyond a thread comes from the
cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import Body
from nas.schedules.cuda.grid import Expr, Stmt
from nas.schedules.templates import Schedule


def pack_weight(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """From `channels x 1 x kernel x kernel` to `kernel x kernel x channels`, flat."""
    return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0)).reshape(-1)


def channel_vector(kernel: Kernel, dtype: str, most: int) -> int:
    """Channels a thread takes, in vectors of at most `most` bytes."""
    operand = kernel.inputs[0]
    return Body(kernel, dtype).width(operand.shape[0], operand.start, most=most)


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """The TIR function of a depthwise convolution or a pooling.

    The schedule has `columns` (output pixels of a thread), `bytes` (of a vector of channels, at
    most) and `threads` (of a block).
    """
    channels, height, width = kernel.output
    body = Body(kernel, dtype, kernel.kernel**2 * channels, channels)
    wide = channel_vector(kernel, dtype, schedule["bytes"])
    columns = schedule["columns"]
    vectors, strips = channels // wide, -(-width // columns)
    launch, item, exists = grid.flat_grid(vectors * strips * height, schedule["threads"])
    channel = item % vectors * wide
    strip = item // vectors
    row, column = strip // strips, strip % strips * columns
    found = grid.when(exists, _tile(body, row, column, columns, channel, wide))
    return body.function(launch, found, name)


def _tile(
    body: Body, row: Expr, column: Expr, columns: int, channel: Expr, wide: int
) -> list[Stmt]:
    """`columns` pixels of an output row, `wide` channels each."""
    kernel, registers = body.kernel, body.registers
    operand = kernel.inputs[0]
    total, height, width = operand.shape
    out_width = kernel.output[2]
    allocation, sums = registers.make(columns * wide)
    found = [allocation]
    start = grid.real(float(np.finfo(np.float32).min) if kernel.kind == "max_pool" else 0)
    found += [sums.put(i, start) for i in range(columns * wide)]
    reach = (columns - 1) * kernel.stride + kernel.kernel
    first = column * kernel.stride - kernel.padding
    overhangs = (out_width - 1) * kernel.stride + kernel.kernel - kernel.padding > width
    borders = kernel.padding > 0 or overhangs or out_width % columns != 0

    def window_row(tap_row: Expr) -> list[Stmt]:
        line = row * kernel.stride - kernel.padding + tap_row
        done: list[Stmt] = []
        weights: list[list[Expr]] = []
        if kernel.has_weights:
            for tap in range(kernel.kernel):
                at = (tap_row * kernel.kernel + tap) * operand.channels + channel
                read, values = registers.read(body.weight, at, wide)
                done += read
                weights.append(values)
        for x in range(reach):
            taps = [
                (j, x - j * kernel.stride)
                for j in range(columns)
                if 0 <= x - j * kernel.stride < kernel.kernel
            ]
            if not taps:
                continue
            at = (line * width + first + x) * total + operand.start + channel
            exists = grid.within(first + x, width) if borders else None
            # Outside, zero changes no sum; a maximum must not see it.
            guarded = None if kernel.kind == "max_pool" else exists
            read, values = registers.read(body.inputs[0], at, wide, guarded)
            read += [
                _reduced(kernel, sums, j * wide + v, value, weights[tap][v] if weights else None)
                for j, tap in taps
                for v, value in enumerate(values)
            ]
            done += grid.when(exists, read) if kernel.kind == "max_pool" else read
        vertical = kernel.padding or (kernel.output[1] - 1) * kernel.stride + kernel.kernel > height
        return grid.when(grid.within(line, height) if vertical else None, done)

    found += grid.loop(kernel.kernel, window_row)
    for j in range(columns):
        values = [sums.load(j * wide + v) for v in range(wide)]
        if kernel.kind == "avg_pool":
            share = _share(kernel, row, column + j)
            values = [value * share for value in values]
        pixel = row * out_width + column + j
        exists = None if out_width % columns == 0 else column + j < out_width
        found += grid.when(exists, body.finish(values, pixel, channel, bias_at=channel))
    return found


def _reduced(kernel: Kernel, sums: grid.Tensor, at: int, value: Expr, weight: Expr) -> Stmt:
    """The reduction of a window with one more of its pixels."""
    so_far = sums.load(at)
    if kernel.kind == "max_pool":
        return sums.put(at, tirx.max(so_far, value))
    return sums.put(at, so_far + (value if weight is None else value * weight))


def _share(kernel: Kernel, row: Expr, column: Expr) -> Expr:
    """What a pixel counts in an average: pixels of the padding count, none are beyond it."""
    _, height, width = kernel.inputs[0].shape

    def counted(at: Expr, extent: int, outputs: int) -> Expr:
        padded = extent + 2 * kernel.padding
        if (outputs - 1) * kernel.stride + kernel.kernel <= padded:
            return kernel.kernel
        return tirx.min(kernel.kernel, padded - at * kernel.stride)

    pixels = counted(row, height, kernel.output[1]) * counted(column, width, kernel.output[2])
    if isinstance(pixels, int):
        return grid.real(1 / pixels)
    return grid.real(1) / tirx.Cast("float32", pixels)
