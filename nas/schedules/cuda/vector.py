"""Linear layers, and convolutions of a single pixel: a matrix times a vector.

Several threads of a warp share an output: each multiplies its part of the weights' row, read in
whole vectors, and the parts are added through the warp's registers. All the time goes into reading
the weights, so what counts is that many threads read at once, each from the neighbourhood of its
neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import Body
from nas.schedules.cuda.grid import Expr, Grid, Stmt
from nas.schedules.templates import Schedule


def fits(kernel: Kernel) -> bool:
    """Whether a kernel is a matrix times a vector."""
    single = kernel.output[1:] == (1, 1) and kernel.inputs[0].shape[1:] == (1, 1)
    window = (kernel.kernel, kernel.stride, kernel.padding, kernel.groups)
    return kernel.has_weights and single and window == (1, 1, 0, 1)


def vector_width(kernel: Kernel, dtype: str) -> int:
    """Inputs that a thread reads at once."""
    operand = kernel.inputs[0]
    return grid.vector_width(dtype, operand.channels, operand.start)


def _padded(kernel: Kernel, schedule: Schedule, dtype: str) -> tuple[int, int]:
    """Rows and columns of the packed weights: whole blocks of rows, whole turns of the lanes."""
    rows, turn = schedule["rows"], schedule["lanes"] * vector_width(kernel, dtype)
    inputs = kernel.inputs[0].channels
    return -(-kernel.output[0] // rows) * rows, -(-inputs // turn) * turn


def pack_weight(
    kernel: Kernel, schedule: Schedule, dtype: str, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From `kernel.weight_shape` to padded outputs x padded inputs, flat."""
    packed = np.zeros(_padded(kernel, schedule, dtype), np.float32)
    packed[: kernel.output[0], : kernel.inputs[0].channels] = weight.reshape(kernel.output[0], -1)
    return packed.reshape(-1)


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """The TIR function of a matrix times a vector.

    The schedule has `lanes`, threads that share an output, a power of two up to a warp, and `rows`,
    outputs of a block; together they fill whole warps.
    """
    outputs, inputs = kernel.output[0], kernel.inputs[0].channels
    lanes, rows = schedule["lanes"], schedule["rows"]
    if lanes & (lanes - 1) or lanes > grid.WARP or lanes * rows % grid.WARP:
        raise ValueError(f"{rows} rows of {lanes} threads do not fill whole warps")
    padded, columns = _padded(kernel, schedule, dtype)
    body = Body(kernel, dtype, padded * columns, outputs)
    wide = vector_width(kernel, dtype)
    launch = Grid((padded // rows, 1, 1), (lanes, rows, 1))
    lane, row, _ = launch.thread
    output = launch.block[0] * rows + row
    allocation, sums = body.registers.make(wide)
    found = [allocation, *(sums.put(v, grid.real(0)) for v in range(wide))]

    def multiply(turn: Expr) -> list[Stmt]:
        column = (turn * lanes + lane) * wide
        inside = None if columns == inputs else column < inputs
        read, values = body.registers.read(
            body.inputs[0], kernel.inputs[0].start + column, wide, inside
        )
        more, weights = body.registers.read(body.weight, output * columns + column, wide)
        return [
            *read,
            *more,
            *(
                sums.put(v, sums.load(v) + value * weight)
                for v, (value, weight) in enumerate(zip(values, weights, strict=True))
            ),
        ]

    found += grid.loop(columns // (lanes * wide), multiply)
    found += [sums.put(0, sums.load(0) + sums.load(v)) for v in range(1, wide)]
    flipped = lanes // 2
    while flipped:
        found.append(sums.put(0, sums.load(0) + grid.from_lane(sums.load(0), flipped)))
        flipped //= 2
    first = None if lanes == 1 else lane == 0
    exists = None if padded == outputs else output < outputs
    finished = body.finish([sums.load(0)], 0, output, bias_at=output)
    return body.function(launch, found + grid.when(grid.every(first, exists), finished), name)
