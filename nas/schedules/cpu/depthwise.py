"""Depthwise convolutions and pooling: each channel slides a window over itself.

A tile of neighbouring columns by channel vectors stays in registers while the rows of the window
pass. The tiles at the left and right edge of the image are unrolled and leave out the taps that
fall outside the image, be it in the padding or where a last window exceeds it. Window rows outside
the image are left out by the bounds of the loop over window rows.
"""

from __future__ import annotations

from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules import window
from nas.schedules.cpu.loop_nest import LoopNest
from nas.schedules.cpu.loops import (
    VectorRegisters,
    clipped_loop,
    split_into_vectors,
    tiled_loop,
)
from nas.schedules.templates import Schedule
from nas.schedules.tir import Expr, Stmt, broadcast, loop, sequence


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """Return the TIR function of a depthwise convolution or a pooling.

    The loops, from the outermost: rows and tiles of channels (in the schedule's order), tiles of
    columns, window rows, window columns and register tile (both unrolled).

    Args:
        kernel: kernel to write.
        schedule: `channels` (vectors) by `columns` (output pixels) of a register tile, and `order`,
            whether the outermost loop walks `channels` or `rows`.
        lanes: float32 elements of a vector.
        threads: number of threads that share the outermost loop.
        name: symbol of the function.
    """
    channels, height, _ = kernel.output
    tile_channels = schedule["channels"] * lanes

    def image(loop_nest: LoopNest) -> list[Stmt]:
        if schedule["order"] == "channels":
            return tiled_loop(
                channels,
                tile_channels,
                lambda c, n: loop(height, lambda row: _row(loop_nest, schedule, row, c, n)),
                parallel=loop_nest.is_parallel,
            )
        return loop(
            height,
            lambda row: tiled_loop(
                channels, tile_channels, lambda c, n: _row(loop_nest, schedule, row, c, n)
            ),
            parallel=loop_nest.is_parallel,
        )

    loop_nest = LoopNest(kernel, lanes, threads, kernel.kernel**2 * channels, channels)
    return loop_nest.function(image, name)


def _row(
    loop_nest: LoopNest, schedule: Schedule, row: Expr, channel: Expr, count: int
) -> list[Stmt]:
    """Return the statements of `count` channels of one output row.

    Tiles whose windows leave the image are unrolled; the tiles between them are a loop.
    """
    kernel, columns = loop_nest.kernel, schedule["columns"]

    def tile(column: Expr, width: int) -> list[Stmt]:
        return _tile(loop_nest, row, column, width, channel, count)

    whole, rest = divmod(kernel.output[2], columns)
    last_start = kernel.inputs[0].shape[2] + kernel.padding - kernel.kernel
    inside = [
        i
        for i in range(whole)
        if i * columns * kernel.stride >= kernel.padding
        and ((i + 1) * columns - 1) * kernel.stride <= last_start
    ]
    first, stop = (inside[0], inside[-1] + 1) if inside else (whole, whole)
    statements = [statement for i in range(first) for statement in tile(i * columns, columns)]
    statements += loop(stop - first, lambda i: tile(i * columns, columns), start=first)
    for i in range(stop, whole):
        statements += tile(i * columns, columns)
    return statements + (tile(whole * columns, rest) if rest else [])


def _tile(
    loop_nest: LoopNest, row: Expr, column: Expr, columns: int, channel: Expr, count: int
) -> list[Stmt]:
    """Return the statements of one register tile: initialise, reduce, and store."""
    kernel, lanes = loop_nest.kernel, loop_nest.lanes
    operand = kernel.inputs[0]
    total_channels, height, width = operand.shape
    vectors = split_into_vectors(count, lanes)
    registers = VectorRegisters("acc", columns * len(vectors), lanes)

    def register(j: int, v: int) -> int:
        return j * len(vectors) + v

    def initial(offset: int, n: int) -> Expr:
        if kernel.has_weights:
            return loop_nest.initial_sum(channel + offset, n)
        return broadcast(window.initial_value(kernel), n)

    statements = registers.allocate()
    for j in range(columns):
        for v, (offset, n) in enumerate(vectors):
            statements.append(registers.store(register(j, v), initial(offset, n), n))

    def window_row(tap_row: Expr) -> list[Stmt]:
        line = row * kernel.stride - kernel.padding + tap_row
        body = []
        for tap in range(kernel.kernel):
            for j in range(columns):
                x = (column + j) * kernel.stride - kernel.padding + tap
                if isinstance(x, int) and not 0 <= x < width:
                    continue
                for v, (offset, n) in enumerate(vectors):
                    at = (line * width + x) * total_channels + operand.start + channel + offset
                    value = loop_nest.inputs[0].load(at, n)
                    weight = None
                    if kernel.has_weights:
                        tap_at = (tap_row * kernel.kernel + tap) * operand.channels
                        weight = loop_nest.weight.load(tap_at + channel + offset, n)
                    total = registers.load(register(j, v), n)
                    total = window.accumulate(kernel, total, value, weight)
                    body.append(registers.store(register(j, v), total, n))
        return body

    top = row * kernel.stride - kernel.padding
    statements += clipped_loop(top, kernel.kernel, height, window_row)
    for j in range(columns):
        for v, (offset, n) in enumerate(vectors):
            total = registers.load(register(j, v), n)
            result = window.finish(kernel, total, row, column + j, n)
            pixel = row * kernel.output[2] + column + j
            statements.append(loop_nest.store_result(result, pixel, channel + offset, n))
    return [sequence(statements)]
