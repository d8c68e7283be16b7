"""Depthwise convolutions and pooling: each channel slides a window over itself.

A thread computes neighbouring columns of one output row for a vector of channels. It reads each
pixel of its input rows once and uses it in every window that covers the pixel. Threads are numbered
through channels first: neighbouring threads read neighbouring memory for any number of channels,
and only the last block has threads without work. The cache serves pixels that windows of different
threads share.
"""

from __future__ import annotations

from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules import window
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import KernelBody
from nas.schedules.templates import Schedule
from nas.schedules.tir import Expr, Stmt, broadcast, in_range, loop, run_if


def channel_vector(kernel: Kernel, dtype: str, max_bytes: int) -> int:
    """Return how many channels a thread takes, as one vector of at most `max_bytes`."""
    operand = kernel.inputs[0]
    body = KernelBody(kernel, dtype)
    return body.channel_vector(operand.shape[0], operand.start, max_bytes=max_bytes)


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """Return the TIR function of a depthwise convolution or a pooling.

    Args:
        kernel: kernel to write.
        schedule: `columns`, output pixels of a thread; `bytes`, largest size of a vector of
            channels; and `threads` of a block.
        dtype: type of weights and activations.
        name: symbol of the function.
    """
    channels, height, width = kernel.output
    body = KernelBody(kernel, dtype, (kernel.kernel**2 * channels, channels))
    lanes = channel_vector(kernel, dtype, schedule["bytes"])
    columns = schedule["columns"]
    vectors, strips = channels // lanes, -(-width // columns)
    launch, item, exists = grid.linear_grid(vectors * strips * height, schedule["threads"])
    channel = item % vectors * lanes
    strip = item // vectors
    row, column = strip // strips, strip % strips * columns
    statements = run_if(exists, _strip(body, row, column, columns, channel, lanes))
    return body.function(launch, statements, name)


def _strip(
    body: KernelBody, row: Expr, column: Expr, columns: int, channel: Expr, lanes: int
) -> list[Stmt]:
    """Return the statements of `columns` pixels of an output row, `lanes` channels each."""
    kernel, registers = body.kernel, body.registers
    operand = kernel.inputs[0]
    total_channels, height, width = operand.shape
    output_width = kernel.output[2]
    allocation, sums = registers.allocate(columns * lanes)
    start = broadcast(window.initial_value(kernel))
    statements = [allocation, *(sums.store_float32(i, start) for i in range(columns * lanes))]
    columns_read = (columns - 1) * kernel.stride + kernel.kernel
    first = column * kernel.stride - kernel.padding
    exceeds_width = (output_width - 1) * kernel.stride + kernel.kernel - kernel.padding > width
    may_leave_row = kernel.padding > 0 or exceeds_width or output_width % columns != 0
    exceeds_height = (kernel.output[1] - 1) * kernel.stride + kernel.kernel > height
    may_leave_image = kernel.padding or exceeds_height

    def window_row(tap_row: Expr) -> list[Stmt]:
        line = row * kernel.stride - kernel.padding + tap_row
        statements: list[Stmt] = []
        weights: list[list[Expr]] = []
        if kernel.has_weights:
            for tap in range(kernel.kernel):
                at = (tap_row * kernel.kernel + tap) * operand.channels + channel
                loads, values = registers.load(body.weight, at, lanes)
                statements += loads
                weights.append(values)
        for x in range(columns_read):
            # Output columns whose windows cover the input column, and the tap that lies on it.
            covering = [
                (j, x - j * kernel.stride)
                for j in range(columns)
                if 0 <= x - j * kernel.stride < kernel.kernel
            ]
            if not covering:
                continue
            at = (line * width + first + x) * total_channels + operand.start + channel
            exists = in_range(first + x, width) if may_leave_row else None
            load_zeros = window.ignores_zeros(kernel)
            pixel, values = registers.load(
                body.inputs[0], at, lanes, exists if load_zeros else None
            )
            for j, tap in covering:
                for v, value in enumerate(values):
                    k = j * lanes + v
                    weight = weights[tap][v] if weights else None
                    total = window.accumulate(kernel, sums.load(k), value, weight)
                    pixel.append(sums.store_float32(k, total))
            statements += pixel if load_zeros else run_if(exists, pixel)
        return run_if(in_range(line, height) if may_leave_image else None, statements)

    statements += loop(kernel.kernel, window_row)
    for j in range(columns):
        values = [
            window.finish(kernel, sums.load(j * lanes + v), row, column + j) for v in range(lanes)
        ]
        pixel = row * output_width + column + j
        exists = None if output_width % columns == 0 else column + j < output_width
        store = body.store_result(values, pixel, channel, bias_at=channel)
        statements += run_if(exists, store)
    return statements
