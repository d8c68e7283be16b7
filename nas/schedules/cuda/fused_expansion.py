"""A depthwise convolution behind the 1x1 convolution that makes its input, in one kernel.

A block computes a tile of output pixels for some channels: first the 1x1 convolution of all pixels
that its windows reach, as a matrix product (see `product`), into shared memory; then the windows
slide over that. What lies outside the image is zero there, whatever the 1x1 convolution's bias and
activation are. Windows of neighbouring tiles overlap, so some pixels are made more than once; the
expanded tensor, the largest of its block, never travels through memory, and one launch is saved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.graph import ACTIVATIONS
from nas.latency.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import Body, activated
from nas.schedules.cuda.grid import Expr, Grid, Stmt, Tensor
from nas.schedules.cuda.matrix_product import Product, Tiling
from nas.schedules.templates import Expansion, Schedule

_COLUMNS = 4
"""Channels of a thread in the product."""


def reach(kernel: Kernel, schedule: Schedule) -> tuple[int, int]:
    """Rows and columns of input pixels that the windows of a tile cover."""
    return (
        (schedule["high"] - 1) * kernel.stride + kernel.kernel,
        (schedule["wide"] - 1) * kernel.stride + kernel.kernel,
    )


def tiling(kernel: Kernel, schedule: Schedule, dtype: str) -> Tiling:
    """The product behind a tile. Raises ValueError for a tile that does not fit.

    The schedule has `high` x `wide` output pixels and `channels` of a block's tile, `along`, the
    rows of threads that share the pixels, and `depth` of a piece of the reduction.
    """
    high, wide = reach(kernel, schedule)
    rows = -(-high * wide // schedule["along"])
    return Tiling(
        pixels=rows * schedule["along"],
        channels=schedule["channels"],
        rows=rows,
        columns=_COLUMNS,
        depth=schedule["depth"],
        slices=1,
        groups=1,
        outputs=kernel.groups,
        positions=rows * schedule["along"],
        reduction=kernel.inputs[0].channels,
        item=np.dtype(dtype).itemsize,
    )


def shared_bytes(kernel: Kernel, schedule: Schedule, dtype: str) -> int:
    """Shared memory of a block: for the product, and for its result."""
    t = tiling(kernel, schedule, dtype)
    return t.shared_bytes + t.pixels * t.channels * t.item


def pack(
    kernel: Kernel, schedule: Schedule, dtype: str, expansion: Expansion
) -> list[NDArray[np.float32]]:
    """The constants of the expansion: its weight, and its bias where it has one."""
    t = tiling(kernel, schedule, dtype)
    found = [t.packed(expansion.weight.reshape(1, t.outputs, t.reduction))]
    assert kernel.expansion is not None
    return found + ([t.packed_bias(expansion.bias)] if "bias" in kernel.expansion else [])


def function(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """The TIR function of an expanded depthwise convolution; see `tiling` for its schedule."""
    if shared_bytes(kernel, schedule, dtype) > grid.SHARED_BYTES:
        raise ValueError(f"a tile of {dict(schedule)} does not fit into shared memory")
    t = tiling(kernel, schedule, dtype)
    operand = kernel.inputs[0]
    _, out_height, out_width = kernel.output
    tiles_down, tiles_across = -(-out_height // schedule["high"]), -(-out_width // schedule["wide"])
    assert kernel.expansion is not None
    weight = Tensor("ew", t.weight_size, dtype)
    bias = Tensor("eb", t.blocks[0] * t.channels, dtype)
    constants = [weight, bias] if "bias" in kernel.expansion else [weight]
    body = Body(kernel, dtype, kernel.kernel**2 * kernel.groups, kernel.groups, constants)
    launch = Grid((t.blocks[0], tiles_down * tiles_across, 1), t.threads)
    tile = launch.block[1]
    row, column = tile // tiles_across * schedule["high"], tile % tiles_across * schedule["wide"]
    vector = grid.vector_width(dtype, operand.channels, operand.start, operand.shape[0], t.depth)
    halo = _Halo(kernel, schedule, row, column)
    product = Product(body, t, launch, weight, halo.source, vector)
    shared = Tensor("shared_expanded", t.pixels * t.channels, dtype, "shared")
    found = [shared.allocate(), *product.reduce()]
    found += _keep(product, halo, bias, shared)
    found.append(grid.barrier())
    return body.function(launch, found + _slide(product, schedule, shared, row, column), name)


class _Halo:
    """The input pixels of a tile, numbered row by row from 0.

    Args:
        kernel, schedule: which say how far windows reach.
        row, column: of the tile's first output pixel.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, row: Expr, column: Expr) -> None:
        self._operand = kernel.inputs[0]
        self._high, self._wide = reach(kernel, schedule)
        self._line = row * kernel.stride - kernel.padding
        self._column = column * kernel.stride - kernel.padding

    def exists(self, index: Expr) -> Expr:
        """Whether pixel `index` is of the tile, and inside the image."""
        _, height, width = self._operand.shape
        return grid.every(
            index < self._high * self._wide,
            grid.within(self._line + index // self._wide, height),
            grid.within(self._column + index % self._wide, width),
        )

    def source(self, index: Expr, at: Expr) -> tuple[Expr, Expr]:
        """Offset of channel `at` of a pixel, and whether it exists."""
        total, _, width = self._operand.shape
        line, column = self._line + index // self._wide, self._column + index % self._wide
        return (line * width + column) * total + self._operand.start + at, self.exists(index)


def _keep(product: Product, halo: _Halo, bias: Tensor, shared: Tensor) -> list[Stmt]:
    """Runs the expansion's steps on the sums, and leaves them in shared memory."""
    t, registers = product.t, product.body.registers
    steps = product.body.kernel.expansion or ()
    first = product.launch.block[0] * t.channels
    found: list[Stmt] = []
    for pixel, channel, values in product.tile_of(product.column_vector):
        if "bias" in steps:
            read, terms = registers.read(bias, first + channel, len(values))
            found += read
            values = [value + term for value, term in zip(values, terms, strict=True)]
        for step in steps:
            if step in ACTIVATIONS:
                allocation, kept = registers.make(len(values))
                found.append(allocation)
                found += [kept.put(i, value) for i, value in enumerate(values)]
                values = [activated(step, kept.load(i)) for i in range(len(values))]
        exists = halo.exists(pixel)
        values = [grid.chosen(exists, value, grid.real(0)) for value in values]
        found += registers.write(shared, pixel * t.channels + channel, values)
    return found


def _slide(
    product: Product, schedule: Schedule, shared: Tensor, row: Expr, column: Expr
) -> list[Stmt]:
    """The depthwise convolution over what is in shared memory; threads share pixels x vectors."""
    body, t = product.body, product.t
    kernel, registers = body.kernel, body.registers
    channels, out_height, out_width = kernel.output
    high, across = schedule["high"], schedule["wide"]
    _, halo_wide = reach(kernel, schedule)
    wide = body.width(t.channels, most=16)
    vectors, threads = t.channels // wide, product.launch.count
    first = product.launch.block[0] * t.channels

    def item(turn: Expr) -> list[Stmt]:
        number = turn * threads + product.mate
        inner = number % vectors * wide
        y, x = number // vectors // across, number // vectors % across
        channel = first + inner
        allocation, sums = registers.make(wide)
        done = [allocation, *(sums.put(v, grid.real(0)) for v in range(wide))]

        def tap(tap_row: Expr, tap_column: int) -> list[Stmt]:
            pixel = (y * kernel.stride + tap_row) * halo_wide + x * kernel.stride + tap_column
            read, values = registers.read(shared, pixel * t.channels + inner, wide)
            at = (tap_row * kernel.kernel + tap_column) * channels + channel
            more, weights = registers.read(body.weight, at, wide)
            return [
                *read,
                *more,
                *(
                    sums.put(v, sums.load(v) + value * weight)
                    for v, (value, weight) in enumerate(zip(values, weights, strict=True))
                ),
            ]

        done += grid.loop(
            kernel.kernel,
            lambda tap_row: [
                each for tap_column in range(kernel.kernel) for each in tap(tap_row, tap_column)
            ],
        )
        pixel = (row + y) * out_width + column + x
        done += body.finish([sums.load(v) for v in range(wide)], pixel, channel, bias_at=channel)
        exists = grid.every(
            None if high * across * vectors % threads == 0 else number < high * across * vectors,
            None if out_height % high == 0 else row + y < out_height,
            None if out_width % across == 0 else column + x < out_width,
            None if channels % t.channels == 0 else channel < channels,
        )
        return grid.when(exists, done)

    return grid.loop(-(-high * across * vectors // threads), item)
