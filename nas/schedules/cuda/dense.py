"""Dense and grouped convolutions as matrix products in shared memory and registers.

The output of a group is a matrix of pixels by channels, and the reduction runs over the window's
taps and the input channels together ("implicit GEMM", Chetlur et al. 2014, "cuDNN: Efficient
primitives for deep learning"); see `matrix_product`. Slices that share a reduction add up their
sums in shared memory.

Weights are packed by tile and padded with zeros, so that they are read without conditions. Reading
an input needs a condition only where a window can leave the image, and where tiles do not divide
the pixels or the reduction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import KernelBody
from nas.schedules.cuda.grid import Grid
from nas.schedules.cuda.matrix_product import (
    SCHEDULE_KEYS,
    InputLocation,
    MatrixProduct,
    MatrixProductTiling,
)
from nas.schedules.templates import Schedule
from nas.schedules.tir import Buffer, Expr, Stmt, all_of, in_range, loop, run_if


def tiling(kernel: Kernel, schedule: Schedule, dtype: str) -> MatrixProductTiling:
    """Return the loop sizes of a dense kernel.

    Args:
        kernel: a dense or grouped convolution, or a linear layer.
        schedule: `pixels` x `channels` of a block's tile, `rows` x `columns` of it for each thread,
            `depth` of a chunk of the reduction, and `slices` of threads that share the reduction.
        dtype: type of weights and activations.

    Raises:
        ValueError: threads cannot share the tile evenly.
    """
    inputs = kernel.inputs[0].channels // kernel.groups
    return MatrixProductTiling(
        **{key: schedule[key] for key in SCHEDULE_KEYS},
        groups=kernel.groups,
        outputs=kernel.output[0] // kernel.groups,
        positions=kernel.output[1] * kernel.output[2],
        reduction=inputs * kernel.kernel**2,
        item_bytes=np.dtype(dtype).itemsize,
    )


def pack_weight(
    kernel: Kernel, schedule: Schedule, dtype: str, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Pack weights from `Kernel.weight_shape` to `groups, tiles, taps x inputs, channels`, flat."""
    t = tiling(kernel, schedule, dtype)
    grouped = weight.reshape(t.groups, t.outputs, -1, kernel.kernel**2)
    return t.pack_weight(grouped.transpose(0, 1, 3, 2).reshape(t.groups, t.outputs, t.reduction))


def pack_bias(
    kernel: Kernel, schedule: Schedule, dtype: str, bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Pack a bias of one value for each output channel to `groups, tiles, channels`, flat."""
    return tiling(kernel, schedule, dtype).pack_bias(bias)


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """Return the TIR function of a dense kernel.

    Args:
        kernel: kernel to write.
        schedule: tile sizes, see `tiling`.
        dtype: type of weights and activations.
        name: symbol of the function.

    Raises:
        ValueError: the tile does not fit, or threads cannot share it evenly.
    """
    t = tiling(kernel, schedule, dtype)
    body = KernelBody(kernel, dtype, (t.weight_size, t.bias_size))
    launch = Grid(t.blocks, t.threads)
    operand = kernel.inputs[0]
    input_vector = grid.vector_width(
        dtype, operand.channels // kernel.groups, operand.start, operand.shape[0], t.depth
    )
    locate_input = _input_location(kernel, t, launch)
    product = MatrixProduct(body, t, launch, body.weight, locate_input, input_vector)
    store = _add_slices_and_store(product) if t.slices > 1 else _store_sums(product)
    return body.function(launch, [*product.reduce(), *store], name)


def _input_location(kernel: Kernel, t: MatrixProductTiling, launch: Grid) -> InputLocation:
    """Return where the input of an output pixel and a step of the reduction is."""
    operand = kernel.inputs[0]
    total_channels, height, width = operand.shape
    _, output_height, output_width = kernel.output
    inputs = operand.channels // kernel.groups
    _, tile, group = launch.block

    def locate(row: Expr, step: Expr) -> tuple[Expr, Expr]:
        index = tile * t.pixels + row
        conditions = [None if t.positions % t.pixels == 0 else index < t.positions]
        if kernel.kernel == kernel.stride == 1 and kernel.padding == 0:
            pixel, channel = index, step
        else:
            tap, channel = step // inputs, step % inputs
            line = index // output_width * kernel.stride - kernel.padding + tap // kernel.kernel
            column = index % output_width * kernel.stride - kernel.padding + tap % kernel.kernel
            for position, extent, outputs in (
                (line, height, output_height),
                (column, width, output_width),
            ):
                if kernel.padding or (outputs - 1) * kernel.stride + kernel.kernel > extent:
                    conditions.append(in_range(position, extent))
            pixel = line * width + column
        start = operand.start + group * inputs
        return pixel * total_channels + start + channel, all_of(*conditions)

    return locate


def _store_sums(product: MatrixProduct) -> list[Stmt]:
    """Return the statements that run the epilogue on a thread's sums and store them."""
    width = product.body.channel_vector(product.t.outputs, product.column_vector)
    statements: list[Stmt] = []
    for pixel, channel, values in product.results(width):
        statements += _store_vector(product, values, pixel, channel)
    return statements


def _add_slices_and_store(product: MatrixProduct) -> list[Stmt]:
    """Return the statements that add up the slices' sums, run the epilogue and store the results.

    All threads of the block share the vectors of the tile.
    """
    t, registers = product.t, product.body.registers
    tile_size = t.pixels * t.channels
    shared = Buffer("shared_sums", t.slices * tile_size, scope="shared")
    statements = [shared.allocate()]
    own_width = grid.vector_width("float32", product.column_vector)
    for pixel, channel, values in product.results(own_width):
        at = product.slice * tile_size + pixel * t.channels + channel
        statements += registers.store(shared, at, values)
    statements.append(grid.barrier())
    width = grid.vector_width("float32", product.body.channel_vector(t.outputs, t.channels))
    vectors, threads = tile_size // width, product.launch.block_threads
    thread = product.slice * product.threads_per_slice + product.thread_in_slice

    def add_and_store(iteration: Expr) -> list[Stmt]:
        at = (iteration * threads + thread) * width
        body, totals = registers.load(shared, at, width)
        for other in range(1, t.slices):
            loads, values = registers.load(shared, other * tile_size + at, width)
            body += loads
            totals = [total + value for total, value in zip(totals, values, strict=True)]
        body += _store_vector(product, totals, at // t.channels, at % t.channels)
        exists = None if vectors % threads == 0 else iteration * threads + thread < vectors
        return run_if(exists, body)

    return statements + loop(-(-vectors // threads), add_and_store)


def _store_vector(
    product: MatrixProduct, values: list[Expr], tile_pixel: Expr, tile_channel: Expr
) -> list[Stmt]:
    """Return the statements that store a vector of channels, where pixel and channels exist.

    Args:
        product: matrix product that computed the values.
        values: sums of consecutive channels.
        tile_pixel: pixel in the block's tile.
        tile_channel: first channel in the block's tile.
    """
    t = product.t
    channel_tile, pixel_tile, group = product.launch.block
    pixel = pixel_tile * t.pixels + tile_pixel
    channel = channel_tile * t.channels + tile_channel
    bias_at = group * t.blocks[0] * t.channels + channel
    exists = all_of(
        None if t.positions % t.pixels == 0 else pixel < t.positions,
        None if t.outputs % t.channels == 0 else channel < t.outputs,
    )
    store = product.body.store_result(values, pixel, group * t.outputs + channel, bias_at=bias_at)
    return run_if(exists, store)
