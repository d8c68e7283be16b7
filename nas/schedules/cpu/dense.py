"""Dense and grouped convolutions and linear layers as register-tiled matrix products.

A tile of pixels by vectors of output channels stays in registers over the whole reduction. Each
step loads one packed weight vector for each channel vector and multiplies it with one input value
for each pixel (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication").
A convolution with padding first copies its input into scratch memory with the padding around it.
Weights are packed by tile, output channels padded with zeros to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cpu.loop_nest import LoopNest, flattened_pixels
from nas.schedules.cpu.loops import (
    VectorRegisters,
    computed_widths,
    split_into_vectors,
    tiled_loop,
)
from nas.schedules.cpu.padding import PaddedInput
from nas.schedules.templates import Schedule
from nas.schedules.tir import Expr, Stmt, broadcast, loop, sequence


def is_pointwise(kernel: Kernel) -> bool:
    """Return whether every output pixel reads only the input pixel at its own position."""
    return kernel.kernel == 1 and kernel.stride == 1 and kernel.padding == 0


class DenseTiling:
    """Sizes of the loops of a dense kernel, and its constants in the order in which they read them.

    Args:
        kernel: the kernel.
        schedule: its schedule, see `function`.
        lanes: float32 elements of a vector.

    Attributes:
        groups: groups of the convolution.
        inputs: input channels of one group.
        outputs: output channels of one group.
        rows: rows of output pixels; 1 for a pointwise kernel.
        columns: output pixels of a row; all pixels for a pointwise kernel, see `flattened_pixels`.
        taps: pixels of the kernel's window.
        channels: output channels of a tile, a multiple of the vector width.
        tiles: tiles of output channels in one group.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, lanes: int) -> None:
        outputs, height, width = kernel.output
        self.groups = kernel.groups
        self.inputs = kernel.inputs[0].channels // self.groups
        self.outputs = outputs // self.groups
        pointwise = is_pointwise(kernel)
        self.rows = 1 if pointwise else height
        self.columns = flattened_pixels(kernel) if pointwise else width
        self.taps = kernel.kernel**2
        self.channels: int = schedule["channels"] * lanes
        self.tiles = -(-self.outputs // self.channels)

    def pack_weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pack weights from `Kernel.weight_shape` to `groups, tiles, taps, inputs, channels`."""
        shape = self.groups, self.tiles * self.channels, self.inputs, self.taps
        padded = np.zeros(shape, np.float32)
        padded[:, : self.outputs] = weight.reshape(self.groups, self.outputs, *shape[2:])
        tiled = padded.reshape(self.groups, self.tiles, self.channels, self.inputs, self.taps)
        return np.ascontiguousarray(tiled.transpose(0, 1, 4, 3, 2)).reshape(-1)

    def pack_bias(self, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pack a bias of one value for each output channel to `groups, tiles, channels`, flat."""
        padded = np.zeros((self.groups, self.tiles * self.channels), np.float32)
        padded[:, : self.outputs] = bias.reshape(self.groups, self.outputs)
        return padded.reshape(-1)


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """Return the TIR function of a dense or grouped convolution or of a linear layer.

    The loops, from the outermost: groups, tiles of output channels and tiles of pixels (in the
    schedule's order), kernel rows, kernel columns, input channels, register tile (unrolled).

    Args:
        kernel: kernel to write.
        schedule: `channels` (vectors) by `rows` x `columns` (output pixels) of a register tile;
            `order`, whether the outer loops walk `channels` or `pixels` first; `partial_sums`, how
            many accumulators share one output, to hide the latency of additions in small tiles.
        lanes: float32 elements of a vector.
        threads: number of threads that share the outermost loop.
        name: symbol of the function.
    """
    t = DenseTiling(kernel, schedule, lanes)
    bias_size = t.groups * t.tiles * t.channels
    loop_nest = LoopNest(kernel, lanes, threads, bias_size * t.taps * t.inputs, bias_size)
    return loop_nest.function(lambda image: _DenseLoops(image, schedule, t).image(), name)


class _ChannelTile(NamedTuple):
    """A tile of output channels.

    Args:
        group: group of the convolution.
        index: number of the tile in its group.
        width: channels of the tile that exist; the rest is padding.
    """

    group: Expr
    index: Expr
    width: int


class _PixelTile(NamedTuple):
    """A tile of `height x width` output pixels from (`row`, `column`) on."""

    row: Expr
    column: Expr
    height: int
    width: int


class _DenseLoops:
    """Statements of a dense kernel for one image."""

    def __init__(self, loop_nest: LoopNest, schedule: Schedule, t: DenseTiling) -> None:
        self._nest, self._schedule, self._t = loop_nest, schedule, t
        kernel = loop_nest.kernel
        _, height, width = kernel.output
        overlap = kernel.kernel - kernel.stride
        self._input = PaddedInput(
            loop_nest, height * kernel.stride + overlap, width * kernel.stride + overlap
        )

    def image(self) -> list[Stmt]:
        """Return all statements."""
        parallel = self._nest.is_parallel
        if self._schedule["order"] == "channels":
            tiles = self._channel_tiles(
                lambda channels: self._pixel_tiles(lambda pixels: self._tile(channels, pixels)),
                parallel=parallel,
            )
        else:
            tiles = self._pixel_tiles(
                lambda pixels: self._channel_tiles(lambda channels: self._tile(channels, pixels)),
                parallel=parallel,
            )
        return self._input.fill() + tiles

    def _channel_tiles(
        self, body: Callable[[_ChannelTile], list[Stmt]], *, parallel: bool = False
    ) -> list[Stmt]:
        """Return the loops over groups and their tiles of output channels."""
        t = self._t
        whole, rest = divmod(t.outputs, t.channels)

        def tiles_of_group(group: Expr) -> list[Stmt]:
            tiles = loop(
                whole,
                lambda index: body(_ChannelTile(group, index, t.channels)),
                parallel=parallel and t.groups == 1,
            )
            return tiles + (body(_ChannelTile(group, whole, rest)) if rest else [])

        return loop(t.groups, tiles_of_group, parallel=parallel)

    def _pixel_tiles(
        self, body: Callable[[_PixelTile], list[Stmt]], *, parallel: bool = False
    ) -> list[Stmt]:
        """Return the loops over tiles of output pixels, row by row."""
        height = self._schedule["rows"]
        tile_rows = self._t.rows // height

        def tiles_of_row(tile_row: Expr) -> list[Stmt]:
            return tiled_loop(
                self._t.columns,
                self._schedule["columns"],
                lambda column, width: body(_PixelTile(tile_row * height, column, height, width)),
                parallel=parallel and tile_rows == 1,
            )

        return loop(tile_rows, tiles_of_row, parallel=parallel)

    def _tile(self, channels: _ChannelTile, pixels: _PixelTile) -> list[Stmt]:
        """Return the statements of one register tile: initialise, reduce, and store."""
        loop_nest, t, partial_sums = self._nest, self._t, self._schedule["partial_sums"]
        kernel, lanes = loop_nest.kernel, loop_nest.lanes
        vectors = split_into_vectors(channels.width, lanes)
        widths = computed_widths(channels.width, lanes)
        accumulators = list(product(range(pixels.height), range(pixels.width), range(len(vectors))))
        registers = VectorRegisters("acc", len(accumulators) * partial_sums, lanes)

        def register(accumulator: int, part: int) -> int:
            return accumulator * partial_sums + part

        tile_index = channels.group * t.tiles + channels.index
        statements = registers.allocate()
        next_tile = (tile_index + 1) * t.channels
        statements += loop_nest.prefetch(loop_nest.bias, next_tile, len(vectors) * lanes)
        for k, (_, _, v) in enumerate(accumulators):
            for part in range(partial_sums):
                start = (
                    loop_nest.initial_sum(tile_index * t.channels + v * lanes, widths[v])
                    if part == 0
                    else broadcast(0.0, widths[v])
                )
                statements.append(registers.store(register(k, part), start, widths[v]))

        def step(tap_row: Expr, tap_column: Expr, block: Expr) -> list[Stmt]:
            body: list[Stmt] = []
            for part in range(partial_sums):
                channel = block * partial_sums + part
                tap = tap_row * kernel.kernel + tap_column
                weights_at = ((tile_index * t.taps + tap) * t.inputs + channel) * t.channels
                body += loop_nest.prefetch_weights(
                    weights_at, t.channels, len(vectors), len(accumulators)
                )
                for k, (i, j, v) in enumerate(accumulators):
                    value = self._input.load(
                        (pixels.row + i) * kernel.stride + tap_row,
                        (pixels.column + j) * kernel.stride + tap_column,
                        channels.group * t.inputs + channel,
                    )
                    weights = loop_nest.weight.load(weights_at + v * lanes, widths[v])
                    added = broadcast(value, widths[v]) * weights
                    body.append(registers.add(register(k, part), added, widths[v]))
            return body

        statements += loop(
            kernel.kernel,
            lambda y: loop(
                kernel.kernel,
                lambda x: loop(t.inputs // partial_sums, lambda block: step(y, x, block)),
            ),
        )
        for k, (i, j, v) in enumerate(accumulators):
            offset, width = vectors[v]
            total = registers.load(register(k, 0), width)
            for part in range(1, partial_sums):
                total = total + registers.load(register(k, part), width)
            pixel = (pixels.row + i) * t.columns + pixels.column + j
            channel = channels.group * t.outputs + channels.index * t.channels + offset
            statements.append(loop_nest.store_result(total, pixel, channel, width))
        return [sequence(statements)]
