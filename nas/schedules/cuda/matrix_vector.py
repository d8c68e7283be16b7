"""Linear layers, and pointwise convolutions of a single pixel: a matrix times a vector.

Several threads of a warp share an output. Each multiplies its part of a row of weights, read in
whole vectors, and the parts are added through the warp's registers. Nearly all time goes into
reading the weights, so many threads read at once, and neighbouring threads read neighbouring
memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import KernelBody
from nas.schedules.cuda.grid import Grid
from nas.schedules.templates import Schedule
from nas.schedules.tir import Expr, Stmt, all_of, loop, run_if


def applies(kernel: Kernel) -> bool:
    """Return whether a kernel is a matrix times a vector."""
    single_pixel = kernel.output[1:] == (1, 1) and kernel.inputs[0].shape[1:] == (1, 1)
    window = (kernel.kernel, kernel.stride, kernel.padding, kernel.groups)
    return kernel.has_weights and single_pixel and window == (1, 1, 0, 1)


def vector_width(kernel: Kernel, dtype: str) -> int:
    """Return how many inputs a thread reads as one vector."""
    operand = kernel.inputs[0]
    return grid.vector_width(dtype, operand.channels, operand.start)


def _padded_shape(kernel: Kernel, schedule: Schedule, dtype: str) -> tuple[int, int]:
    """Return `(outputs, inputs)` of the packed weights: whole blocks by whole iterations."""
    rows, step = schedule["rows"], schedule["lanes"] * vector_width(kernel, dtype)
    inputs = kernel.inputs[0].channels
    return -(-kernel.output[0] // rows) * rows, -(-inputs // step) * step


def pack_weight(
    kernel: Kernel, schedule: Schedule, dtype: str, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Pack weights from `Kernel.weight_shape` to `padded outputs, padded inputs`, flat."""
    packed = np.zeros(_padded_shape(kernel, schedule, dtype), np.float32)
    packed[: kernel.output[0], : kernel.inputs[0].channels] = weight.reshape(kernel.output[0], -1)
    return packed.reshape(-1)


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """Return the TIR function of a matrix times a vector.

    Args:
        kernel: kernel to write, for which `applies` holds.
        schedule: `lanes`, threads that share an output, a power of two up to a warp; and `rows`,
            outputs of a block. Together they fill whole warps.
        dtype: type of weights and activations.
        name: symbol of the function.

    Raises:
        ValueError: `lanes` and `rows` do not fill whole warps.
    """
    outputs, inputs = kernel.output[0], kernel.inputs[0].channels
    lanes, rows = schedule["lanes"], schedule["rows"]
    if lanes & (lanes - 1) or lanes > grid.WARP_THREADS or lanes * rows % grid.WARP_THREADS:
        raise ValueError(f"{rows} rows of {lanes} threads do not fill whole warps")
    padded_outputs, padded_inputs = _padded_shape(kernel, schedule, dtype)
    body = KernelBody(kernel, dtype, (padded_outputs * padded_inputs, outputs))
    width = vector_width(kernel, dtype)
    launch = Grid((padded_outputs // rows, 1, 1), (lanes, rows, 1))
    lane, row, _ = launch.thread
    output = launch.block[0] * rows + row
    statements, sums = body.registers.zeros(width)

    def multiply(iteration: Expr) -> list[Stmt]:
        column = (iteration * lanes + lane) * width
        exists = None if padded_inputs == inputs else column < inputs
        load_inputs, values = body.registers.load(
            body.inputs[0], kernel.inputs[0].start + column, width, exists
        )
        load_weights, weights = body.registers.load(
            body.weight, output * padded_inputs + column, width
        )
        products = [
            sums.store_float32(v, sums.load(v) + value * weight)
            for v, (value, weight) in enumerate(zip(values, weights, strict=True))
        ]
        return [*load_inputs, *load_weights, *products]

    statements += loop(padded_inputs // (lanes * width), multiply)
    for v in range(1, width):
        statements.append(sums.store_float32(0, sums.load(0) + sums.load(v)))
    # A butterfly: after every step, twice as many lanes have the same partial sum.
    lane_mask = lanes // 2
    while lane_mask:
        other = grid.shuffle_xor(sums.load(0), lane_mask)
        statements.append(sums.store_float32(0, sums.load(0) + other))
        lane_mask //= 2
    is_first_lane = None if lanes == 1 else lane == 0
    exists = None if padded_outputs == outputs else output < outputs
    store = body.store_result([sums.load(0)], 0, output, bias_at=output)
    return body.function(launch, statements + run_if(all_of(is_first_lane, exists), store), name)
