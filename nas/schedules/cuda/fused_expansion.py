"""A 1x1 convolution and the depthwise convolution behind it, in one kernel.

A block computes a tile of output pixels for some channels. First it runs the 1x1 convolution on all
input pixels that the tile's windows cover, the halo included, as a matrix product into shared
memory (see `matrix_product`). Then the windows slide over that. Pixels outside the image are zero
there, whatever bias and activation the 1x1 convolution has. Windows of neighbouring tiles overlap,
so some pixels are expanded more than once. In return the expanded tensor, the largest of its block,
never goes through global memory, and there is one launch less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules import window
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import KernelBody
from nas.schedules.cuda.grid import Grid
from nas.schedules.cuda.matrix_product import MatrixProduct, MatrixProductTiling
from nas.schedules.epilogue import expansion_steps
from nas.schedules.templates import Expansion, Schedule
from nas.schedules.tir import (
    Buffer,
    Expr,
    Stmt,
    all_of,
    broadcast,
    in_range,
    loop,
    run_if,
    select,
)

_THREAD_CHANNELS = 4
"""Channels of a thread in the matrix product."""


def covered_pixels(kernel: Kernel, schedule: Schedule) -> tuple[int, int]:
    """Return the rows and columns of input pixels that the windows of a tile cover."""
    return (
        (schedule["high"] - 1) * kernel.stride + kernel.kernel,
        (schedule["wide"] - 1) * kernel.stride + kernel.kernel,
    )


def tiling(kernel: Kernel, schedule: Schedule, dtype: str) -> MatrixProductTiling:
    """Return the loop sizes of the matrix product that makes a tile of the expanded tensor.

    Args:
        kernel: a depthwise convolution with an expansion.
        schedule: `high` x `wide` output pixels and `channels` of a block's tile; `along`, rows of
            threads that share the covered pixels; and `depth` of a chunk of the reduction.
        dtype: type of weights and activations.

    Raises:
        ValueError: threads cannot share the tile evenly.
    """
    covered_rows, covered_columns = covered_pixels(kernel, schedule)
    rows = -(-covered_rows * covered_columns // schedule["along"])
    return MatrixProductTiling(
        pixels=rows * schedule["along"],
        channels=schedule["channels"],
        rows=rows,
        columns=_THREAD_CHANNELS,
        depth=schedule["depth"],
        slices=1,
        groups=1,
        outputs=kernel.groups,
        positions=rows * schedule["along"],
        reduction=kernel.inputs[0].channels,
        item_bytes=np.dtype(dtype).itemsize,
    )


def shared_bytes(kernel: Kernel, schedule: Schedule, dtype: str) -> int:
    """Return the bytes of shared memory of a block, for the product and for its result."""
    t = tiling(kernel, schedule, dtype)
    return t.shared_bytes + t.pixels * t.channels * t.item_bytes


def pack_expansion(
    kernel: Kernel, schedule: Schedule, dtype: str, expansion: Expansion
) -> list[NDArray[np.float32]]:
    """Pack the weight and the bias of the expansion.

    The weight becomes `tiles of channels, inputs, channels of a tile`, the bias `tiles of channels,
    channels of a tile`, both flat.
    """
    t = tiling(kernel, schedule, dtype)
    weight = expansion.weight.reshape(1, t.outputs, t.reduction)
    return [t.pack_weight(weight), t.pack_bias(expansion.bias)]


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """Return the TIR function of a depthwise convolution with an expansion.

    Args:
        kernel: kernel to write.
        schedule: tile sizes, see `tiling`.
        dtype: type of weights and activations.
        name: symbol of the function.

    Raises:
        ValueError: the tile does not fit, or threads cannot share it evenly.
    """
    if shared_bytes(kernel, schedule, dtype) > grid.MAX_SHARED_BYTES:
        raise ValueError(f"a tile of {dict(schedule)} does not fit into shared memory")
    t = tiling(kernel, schedule, dtype)
    operand = kernel.inputs[0]
    _, output_height, output_width = kernel.output
    tile_rows = -(-output_height // schedule["high"])
    tile_columns = -(-output_width // schedule["wide"])
    sizes = kernel.kernel**2 * kernel.groups, kernel.groups
    body = KernelBody(kernel, dtype, sizes, (t.weight_size, t.bias_size))
    launch = Grid((t.blocks[0], tile_rows * tile_columns, 1), t.threads)
    tile = launch.block[1]
    row, column = tile // tile_columns * schedule["high"], tile % tile_columns * schedule["wide"]
    input_vector = grid.vector_width(
        dtype, operand.channels, operand.start, operand.shape[0], t.depth
    )
    covered = _CoveredPixels(kernel, schedule, row, column)
    product = MatrixProduct(body, t, launch, body.expansion_weight, covered.locate, input_vector)
    expanded = Buffer("shared_expanded", t.pixels * t.channels, dtype, scope="shared")
    statements = [expanded.allocate(), *product.reduce()]
    statements += _store_expanded(product, covered, expanded)
    statements.append(grid.barrier())
    statements += _depthwise(product, schedule, expanded, row, column)
    return body.function(launch, statements, name)


class _CoveredPixels:
    """The input pixels that the windows of a tile cover, numbered row by row from 0.

    Args:
        kernel: kernel that is written.
        schedule: tile sizes, see `tiling`.
        row, column: first output pixel of the tile.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, row: Expr, column: Expr) -> None:
        self._operand = kernel.inputs[0]
        self._rows, self._columns = covered_pixels(kernel, schedule)
        self._line = row * kernel.stride - kernel.padding
        self._column = column * kernel.stride - kernel.padding

    def exists(self, index: Expr) -> Expr:
        """Return the condition that the tile has pixel `index`, and it lies inside the image."""
        _, height, width = self._operand.shape
        return all_of(
            index < self._rows * self._columns,
            in_range(self._line + index // self._columns, height),
            in_range(self._column + index % self._columns, width),
        )

    def locate(self, index: Expr, channel: Expr) -> tuple[Expr, Expr]:
        """Return the offset of a channel of a pixel, and the condition that the pixel exists."""
        total_channels, _, width = self._operand.shape
        line, column = self._line + index // self._columns, self._column + index % self._columns
        offset = (line * width + column) * total_channels + self._operand.start + channel
        return offset, self.exists(index)


def _store_expanded(
    product: MatrixProduct, covered: _CoveredPixels, expanded: Buffer
) -> list[Stmt]:
    """Return the statements that run the expansion's steps on the sums and store the results.

    Args:
        product: matrix product of the expansion.
        covered: pixels of the product.
        expanded: target in shared memory, `pixels, channels` of the tile.
    """
    t, body = product.t, product.body
    first = product.launch.block[0] * t.channels

    def store_vector(pixel: Expr, channel: Expr, values: list[Expr]) -> list[Stmt]:
        statements, results = body.apply_steps(
            expansion_steps(body.kernel),
            values,
            lambda step: body.registers.load(body.expansion_bias, first + channel, len(values)),
        )
        exists = covered.exists(pixel)
        inside = [select(exists, value, broadcast(0)) for value in results]
        at = pixel * t.channels + channel
        return [*statements, *body.registers.store(expanded, at, inside)]

    vectors = product.results(product.column_vector)
    return [statement for vector in vectors for statement in store_vector(*vector)]


def _depthwise(
    product: MatrixProduct, schedule: Schedule, expanded: Buffer, row: Expr, column: Expr
) -> list[Stmt]:
    """Return the statements of the depthwise convolution over the tile in shared memory.

    The threads of a block share the pixels and channel vectors of the tile.

    Args:
        product: matrix product of the expansion.
        schedule: tile sizes, see `tiling`.
        expanded: expanded tile in shared memory, `pixels, channels`.
        row, column: first output pixel of the tile.
    """
    body, t = product.body, product.t
    kernel, registers = body.kernel, body.registers
    channels, output_height, output_width = kernel.output
    tile_height, tile_width = schedule["high"], schedule["wide"]
    _, covered_columns = covered_pixels(kernel, schedule)
    lanes = body.channel_vector(t.channels)
    vectors, threads = t.channels // lanes, product.launch.block_threads
    items = tile_height * tile_width * vectors
    first = product.launch.block[0] * t.channels

    def compute_item(iteration: Expr) -> list[Stmt]:
        item = iteration * threads + product.thread_in_slice
        tile_channel = item % vectors * lanes
        y, x = item // vectors // tile_width, item // vectors % tile_width
        channel = first + tile_channel
        statements, sums = registers.zeros(lanes)

        def add_tap(tap_row: Expr, tap_column: int) -> list[Stmt]:
            line = y * kernel.stride + tap_row
            pixel = line * covered_columns + x * kernel.stride + tap_column
            load_values, values = registers.load(expanded, pixel * t.channels + tile_channel, lanes)
            tap_at = (tap_row * kernel.kernel + tap_column) * channels + channel
            load_weights, weights = registers.load(body.weight, tap_at, lanes)
            products = [
                sums.store_float32(v, window.accumulate(kernel, sums.load(v), value, weight))
                for v, (value, weight) in enumerate(zip(values, weights, strict=True))
            ]
            return [*load_values, *load_weights, *products]

        statements += loop(
            kernel.kernel,
            lambda tap_row: [
                statement
                for tap_column in range(kernel.kernel)
                for statement in add_tap(tap_row, tap_column)
            ],
        )
        pixel = (row + y) * output_width + column + x
        values = [sums.load(v) for v in range(lanes)]
        statements += body.store_result(values, pixel, channel, bias_at=channel)
        exists = all_of(
            None if items % threads == 0 else item < items,
            None if output_height % tile_height == 0 else row + y < output_height,
            None if output_width % tile_width == 0 else column + x < output_width,
            None if channels % t.channels == 0 else channel < channels,
        )
        return run_if(exists, statements)

    return loop(-(-items // threads), compute_item)
