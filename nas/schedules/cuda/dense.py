"""Dense and grouped convolutions as matrix products in shared memory and registers.

The output of a group is a matrix of pixels by channels, and the reduction runs over taps of the
window and input channels together ("implicit GEMM", Chetlur et al. 2014, cuDNN); see `product`.
Slices that share a reduction add up in shared memory.

Weights are packed by tile and padded with zeros, so they are read without conditions; an input
needs one only where a window can leave the image, and where tiles do not divide pixels or
reduction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import Body
from nas.schedules.cuda.grid import Expr, Grid, Stmt, Tensor
from nas.schedules.cuda.matrix_product import SIZES, Product, Source, Tiling
from nas.schedules.templates import Schedule


def tiling(kernel: Kernel, schedule: Schedule, dtype: str) -> Tiling:
    """The loops of a kernel with a schedule. Raises ValueError for tiles that do not fit.

    The schedule has `pixels` x `channels` of a block's tile, `rows` x `columns` of it for each
    thread, `depth` of a piece of the reduction, and `slices` of threads that share the reduction.
    """
    inputs = kernel.inputs[0].channels // kernel.groups
    return Tiling(
        **{name: schedule[name] for name in SIZES},
        groups=kernel.groups,
        outputs=kernel.output[0] // kernel.groups,
        positions=kernel.output[1] * kernel.output[2],
        reduction=inputs * kernel.kernel**2,
        item=np.dtype(dtype).itemsize,
    )


def pack_weight(
    kernel: Kernel, schedule: Schedule, dtype: str, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From `kernel.weight_shape` to groups x tiles x taps and inputs x tile channels, flat."""
    t = tiling(kernel, schedule, dtype)
    grouped = weight.reshape(t.groups, t.outputs, -1, kernel.kernel**2)
    return t.packed(grouped.transpose(0, 1, 3, 2).reshape(t.groups, t.outputs, t.reduction))


def pack_bias(
    kernel: Kernel, schedule: Schedule, dtype: str, bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From one value an output channel to groups x tiles x tile channels, flat."""
    return tiling(kernel, schedule, dtype).packed_bias(bias)


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """The TIR function of a dense kernel; see `tiling` for its schedule."""
    t = tiling(kernel, schedule, dtype)
    body = Body(kernel, dtype, t.weight_size, t.groups * t.blocks[0] * t.channels)
    launch = Grid(t.blocks, t.threads)
    operand = kernel.inputs[0]
    vector = grid.vector_width(
        dtype, operand.channels // kernel.groups, operand.start, operand.shape[0], t.depth
    )
    product = Product(body, t, launch, body.weight, _source(kernel, t, launch), vector)
    finished = _finish_slices(product) if t.slices > 1 else _finish(product)
    return body.function(launch, [*product.reduce(), *finished], name)


def _source(kernel: Kernel, t: Tiling, launch: Grid) -> Source:
    """Where the input of an output pixel and a step of the reduction is."""
    operand = kernel.inputs[0]
    total, height, width = operand.shape
    _, out_height, out_width = kernel.output
    inputs = operand.channels // kernel.groups
    _, tile, group = launch.block

    def source(row: Expr, at: Expr) -> tuple[Expr, Expr]:
        index = tile * t.pixels + row
        conditions = [None if t.positions % t.pixels == 0 else index < t.positions]
        if kernel.kernel == kernel.stride == 1 and kernel.padding == 0:
            pixel, channel = index, at
        else:
            tap, channel = at // inputs, at % inputs
            line = index // out_width * kernel.stride - kernel.padding + tap // kernel.kernel
            column = index % out_width * kernel.stride - kernel.padding + tap % kernel.kernel
            for position, extent, outputs in (
                (line, height, out_height), (column, width, out_width),
            ):  # fmt: skip
                if kernel.padding or (outputs - 1) * kernel.stride + kernel.kernel > extent:
                    conditions.append(grid.within(position, extent))
            pixel = line * width + column
        start = operand.start + group * inputs
        return pixel * total + start + channel, grid.every(*conditions)

    return source


def _finish(product: Product) -> list[Stmt]:
    """Runs the epilogue on the sums and stores them."""
    wide = product.body.width(product.t.outputs, product.column_vector)
    found: list[Stmt] = []
    for row, column, values in product.tile_of(wide):
        found += _store(product, values, row, column)
    return found


def _finish_slices(product: Product) -> list[Stmt]:
    """The same where slices have to be added up: all threads share the tile's vectors."""
    t, registers = product.t, product.body.registers
    size = t.pixels * t.channels
    shared = Tensor("shared_sums", t.slices * size, "float32", "shared")
    found = [shared.allocate()]
    for row, column, values in product.tile_of(grid.vector_width("float32", product.column_vector)):
        at = product.slice * size + row * t.channels + column
        found += registers.write(shared, at, values)
    found.append(grid.barrier())
    wide = grid.vector_width("float32", product.body.width(t.outputs, t.channels))
    vectors, threads = size // wide, product.launch.count
    thread = product.slice * product.mates + product.mate

    def vector(turn: Expr) -> list[Stmt]:
        at = (turn * threads + thread) * wide
        done, totals = registers.read(shared, at, wide)
        for other in range(1, t.slices):
            loads, values = registers.read(shared, other * size + at, wide)
            done += loads
            totals = [total + value for total, value in zip(totals, values, strict=True)]
        done += _store(product, totals, at // t.channels, at % t.channels)
        exists = None if vectors % threads == 0 else turn * threads + thread < vectors
        return grid.when(exists, done)

    return found + grid.loop(-(-vectors // threads), vector)


def _store(product: Product, values: list[Expr], row: Expr, column: Expr) -> list[Stmt]:
    """Finishes channels from `column` on, of pixel `row` of the tile, where they exist."""
    t = product.t
    tile, tile_row, group = product.launch.block
    pixel = tile_row * t.pixels + row
    channel = tile * t.channels + column
    bias_at = group * t.blocks[0] * t.channels + channel
    exists = grid.every(
        None if t.positions % t.pixels == 0 else pixel < t.positions,
        None if t.outputs % t.channels == 0 else channel < t.outputs,
    )
    done = product.body.finish(values, pixel, group * t.outputs + channel, bias_at=bias_at)
    return grid.when(exists, done)
