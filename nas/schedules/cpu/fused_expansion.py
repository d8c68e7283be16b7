"""A 1x1 convolution and the depthwise convolution behind it, as one loop nest.

Expanded maps are the largest tensors of a mobile network. Written by one kernel and read by the
next, they pass through the second-level cache or main memory twice. Here a few rows of a block of
channels are expanded into scratch memory that stays in the first-level cache, the depthwise window
slides over them, and only its result is written. The rows form a ring buffer as high as the window,
so that no row is expanded twice (line buffers, as in Alwani et al. 2016, "Fused-layer CNN
accelerators").
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cpu.loop_nest import LoopNest
from nas.schedules.cpu.loops import (
    VectorRegisters,
    clipped_loop,
    computed_widths,
    div_mod,
    split_into_vectors,
    tiled_loop,
    zero_elements,
)
from nas.schedules.epilogue import apply_steps, expansion_steps
from nas.schedules.templates import Schedule
from nas.schedules.tir import Buffer, Expr, Stmt, broadcast, in_range, loop, run_if, sequence


class ExpansionTiling:
    """Sizes of the loops of a depthwise convolution with an expansion, and its packed constants.

    Args:
        kernel: the kernel.
        schedule: its schedule, see `function`.
        lanes: float32 elements of a vector.

    Attributes:
        inputs: input channels of the 1x1 convolution.
        channels: depthwise channels of a block, a multiple of the vector width.
        blocks: blocks of depthwise channels.
        padded_channels: channels of all blocks.
        width: pixels of a row in the ring buffer, padding included.
        ring_size: elements of the ring buffer of one block, `kernel x width x channels`.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, lanes: int) -> None:
        self.inputs = kernel.inputs[0].channels
        self.channels: int = schedule["channels"] * lanes
        self.blocks = -(-kernel.groups // self.channels)
        self.padded_channels = self.blocks * self.channels
        columns_read = (kernel.output[2] - 1) * kernel.stride + kernel.kernel
        self.width = max(kernel.inputs[0].shape[2] + kernel.padding, columns_read)
        self.ring_size = kernel.kernel * self.width * self.channels

    def pack_weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pack weights of the 1x1 convolution, or of the window, to `blocks, weights, channels`.

        The weights of a channel come together: `channels, inputs` or `channels, 1, kernel, kernel`.
        """
        rows = weight.reshape(len(weight), -1)
        padded = np.pad(rows, ((0, self.padded_channels - len(rows)), (0, 0)))
        blocked = padded.reshape(self.blocks, self.channels, -1)
        return np.ascontiguousarray(blocked.transpose(0, 2, 1)).reshape(-1)

    def pack_bias(self, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pad a bias of one value for each channel with zeros to whole blocks."""
        return np.pad(bias, (0, self.padded_channels - len(bias)))


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """Return the TIR function of a depthwise convolution with an expansion.

    The loops, from the outermost: blocks of channels and output rows (in the schedule's order);
    then, for each new input row, tiles of pixels, input channels, register tile (unrolled); and,
    for the output row, tiles of pixels, window rows, window columns and register tile (unrolled).

    Args:
        kernel: kernel to write.
        schedule: `channels` (vectors) of a block; `pixels` of a register tile of the expansion;
            `columns` of a register tile of the window; and `order`. With `channels`, all rows of a
            block come first. With `rows`, all blocks of a row do, which reads the input once but
            needs a ring buffer for every block.
        lanes: float32 elements of a vector.
        threads: number of threads that share the loop over blocks.
        name: symbol of the function.
    """
    t = ExpansionTiling(kernel, schedule, lanes)
    sizes = (kernel.kernel**2 * t.padded_channels, t.padded_channels, t.inputs * t.padded_channels)
    loop_nest = LoopNest(kernel, lanes, threads, *sizes)
    return loop_nest.function(lambda image: _FusedLoops(image, schedule, t).image(), name)


class _Block(NamedTuple):
    """A block of channels, by its index and the number of its channels that are not padding."""

    index: Expr
    width: int


class _FusedLoops:
    """Statements of a depthwise convolution with an expansion, for one image."""

    def __init__(self, loop_nest: LoopNest, schedule: Schedule, t: ExpansionTiling) -> None:
        self._nest, self._schedule, self._t = loop_nest, schedule, t
        self._by_rows = schedule["order"] == "rows"
        self._ring = Buffer("ring", (t.blocks if self._by_rows else 1) * t.ring_size)

    def image(self) -> list[Stmt]:
        """Return all statements."""
        rows = self._nest.kernel.output[1]
        if self._by_rows:
            return [
                self._ring.allocate(),
                *self._blocks(self._begin),
                *loop(rows, lambda row: self._blocks(lambda block: self._row(block, row))),
            ]
        return self._blocks(
            lambda block: [
                self._ring.allocate(),
                *self._begin(block),
                *loop(rows, lambda row: self._row(block, row)),
            ],
            parallel=self._nest.is_parallel,
        )

    def _blocks(
        self, body: Callable[[_Block], list[Stmt]], *, parallel: bool = False
    ) -> list[Stmt]:
        """Return the loop over blocks of channels."""
        size = self._t.channels
        return tiled_loop(
            self._nest.kernel.groups,
            size,
            lambda start, count: body(_Block(div_mod(start, size)[0], count)),
            parallel=parallel,
        )

    def _begin(self, block: _Block) -> list[Stmt]:
        """Return the statements before the first output row of a block.

        They prefetch what the block reads once, clear the ring buffer, for the padding, and expand
        the input rows that the first output row needs beyond those that `_row` expands.
        """
        kernel = self._nest.kernel
        statements = self._prefetch(block)
        if kernel.padding or self._t.width > kernel.inputs[0].shape[2]:
            statements += zero_elements(
                self._ring, self._ring_start(block), self._t.ring_size, self._nest.lanes
            )
        rows = max(0, kernel.kernel - kernel.padding - kernel.stride)
        return statements + loop(
            min(rows, kernel.inputs[0].shape[1]), lambda line: self._expand_row(block, line)
        )

    def _prefetch(self, block: _Block) -> list[Stmt]:
        """Return statements that prefetch the few constants that the processor does not expect.

        These are the window and the bias of a block, and the bias of the next block's expansion.
        Without them, a kernel of 7x7 pixels with its weights in main memory is 15% slower.
        """
        loop_nest, size = self._nest, self._t.channels
        window = loop_nest.kernel.kernel**2 * size
        return [
            *loop_nest.prefetch(loop_nest.weight, block.index * window, window),
            *loop_nest.prefetch(loop_nest.bias, block.index * size, size),
            *loop_nest.prefetch(loop_nest.expansion_bias, (block.index + 1) * size, size),
        ]

    def _row(self, block: _Block, row: Expr) -> list[Stmt]:
        """Return the statements of one output row: expand the new input rows, slide the window."""
        kernel = self._nest.kernel
        first = row * kernel.stride + kernel.kernel - kernel.padding - kernel.stride
        statements = []
        for new in range(kernel.stride):
            exists = in_range(first + new, kernel.inputs[0].shape[1])
            statements += run_if(exists, self._expand_row(block, first + new))
        return statements + tiled_loop(
            kernel.output[2],
            self._schedule["columns"],
            lambda column, count: self._depthwise_tile(block, row, column, count),
        )

    def _ring_start(self, block: _Block) -> Expr:
        """Return the offset of a block's ring buffer."""
        return block.index * self._t.ring_size if self._by_rows else 0

    def _ring_row(self, block: _Block, line: Expr) -> Expr:
        """Return the offset of an expanded row in the ring buffer."""
        _, slot = div_mod(line, self._nest.kernel.kernel)
        return self._ring_start(block) + slot * (self._t.width * self._t.channels)

    def _expand_row(self, block: _Block, line: Expr) -> list[Stmt]:
        """Return the statements that expand an input row into the ring buffer."""
        return tiled_loop(
            self._nest.kernel.inputs[0].shape[2],
            self._schedule["pixels"],
            lambda column, count: self._expansion_tile(block, line, column, count),
        )

    def _expansion_tile(self, block: _Block, line: Expr, column: Expr, count: int) -> list[Stmt]:
        """Return the statements of a register tile of the 1x1 convolution, `count` pixels wide."""
        loop_nest, t, lanes = self._nest, self._t, self._nest.lanes
        operand = loop_nest.kernel.inputs[0]
        weight, bias = loop_nest.expansion_weight, loop_nest.expansion_bias
        widths = computed_widths(block.width, lanes)
        tile = list(product(range(count), range(len(widths))))
        registers = VectorRegisters("acc", len(tile), lanes)
        statements = registers.allocate()
        for k, (_, v) in enumerate(tile):
            start = bias.load(block.index * t.channels + v * lanes, widths[v])
            statements.append(registers.store(k, start, widths[v]))

        def step(channel: Expr) -> list[Stmt]:
            weights_at = (block.index * t.inputs + channel) * t.channels
            body = loop_nest.prefetch_weights(
                weights_at, t.channels, len(widths), len(tile), weight
            )
            for k, (j, v) in enumerate(tile):
                pixel = line * operand.shape[2] + column + j
                value = loop_nest.inputs[0].load(pixel * operand.shape[0] + operand.start + channel)
                weights = weight.load(weights_at + v * lanes, widths[v])
                body.append(registers.add(k, broadcast(value, widths[v]) * weights, widths[v]))
            return body

        statements += loop(t.inputs, step)
        for k, (j, v) in enumerate(tile):
            value = apply_steps(
                expansion_steps(loop_nest.kernel),
                registers.load(k, widths[v]),
                lambda step: None,  # The accumulators started from the bias.
                widths[v],
            )
            column_at = (loop_nest.kernel.padding + column + j) * t.channels
            target = self._ring_row(block, line) + column_at + v * lanes
            statements.append(self._ring.store(target, value, widths[v]))
        return [sequence(statements)]

    def _depthwise_tile(self, block: _Block, row: Expr, column: Expr, count: int) -> list[Stmt]:
        """Return the statements of a register tile of the window, `count` output pixels wide."""
        loop_nest, t, lanes = self._nest, self._t, self._nest.lanes
        kernel, weight = loop_nest.kernel, loop_nest.weight
        vectors = split_into_vectors(block.width, lanes)
        widths = computed_widths(block.width, lanes)
        registers = VectorRegisters("sum", count * len(vectors), lanes)
        tile = list(product(range(count), range(len(vectors))))
        statements = registers.allocate()
        for k, (_, v) in enumerate(tile):
            start = loop_nest.initial_sum(block.index * t.channels + v * lanes, widths[v])
            statements.append(registers.store(k, start, widths[v]))

        def window_row(tap_row: Expr) -> list[Stmt]:
            line = row * kernel.stride - kernel.padding + tap_row
            body = []
            for tap in range(kernel.kernel):
                for k, (j, v) in enumerate(tile):
                    x = ((column + j) * kernel.stride + tap) * t.channels + v * lanes
                    value = self._ring.load(self._ring_row(block, line) + x, widths[v])
                    tap_at = (block.index * kernel.kernel + tap_row) * kernel.kernel + tap
                    weights = weight.load(tap_at * t.channels + v * lanes, widths[v])
                    body.append(registers.add(k, value * weights, widths[v]))
            return body

        top = row * kernel.stride - kernel.padding
        statements += clipped_loop(top, kernel.kernel, kernel.inputs[0].shape[1], window_row)
        for k, (j, v) in enumerate(tile):
            offset, width = vectors[v]
            pixel = row * kernel.output[2] + column + j
            channel = block.index * t.channels + offset
            result = registers.load(k, width)
            statements.append(loop_nest.store_result(result, pixel, channel, width))
        return [sequence(statements)]
