"""A 1x1 convolution and the depthwise convolution behind it, as one nest.

Expanded maps are the largest tensors of a mobile network: written by one kernel and read by the
next, they go through the second-level cache or the memory twice. Here a few rows of a block of
channels are expanded into scratch memory that stays in the first-level cache, the depthwise window
passes over them, and only its result is written. Rows are kept in a ring of as many as the window
is high, so none is expanded twice. (Line buffers, as in Alwani et al. 2016, "Fused-layer CNN
accelerators".)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cpu import loops
from nas.schedules.cpu.loop_nest import Nest, activated, spans, unrolled
from nas.schedules.cpu.loops import Expr, Registers, Stmt, Tensor
from nas.schedules.templates import Schedule


@dataclass(frozen=True)
class Blocking:
    """Sizes of an expanded kernel's loops.

    Args:
        inputs: channels that are expanded.
        channels: expanded channels of a block, a multiple of the vector width.
        blocks: of channels.
        width: columns of a row in the ring, the window's border included.
        ring: elements of the ring of a block.
    """

    inputs: int
    channels: int
    blocks: int
    width: int
    ring: int

    @classmethod
    def of(cls, kernel: Kernel, schedule: Schedule, lanes: int) -> Blocking:
        """The loops of a kernel with a schedule, for vectors of `lanes` elements."""
        channels = schedule["channels"] * lanes
        read = (kernel.output[2] - 1) * kernel.stride + kernel.kernel
        width = max(kernel.inputs[0].shape[2] + kernel.padding, read)
        return cls(
            inputs=kernel.inputs[0].channels,
            channels=channels,
            blocks=-(-kernel.groups // channels),
            width=width,
            ring=kernel.kernel * width * channels,
        )


def pack_expansion(
    kernel: Kernel, schedule: Schedule, lanes: int, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From `kernel.expansion_shape` to blocks x inputs x block channels, flat."""
    b = Blocking.of(kernel, schedule, lanes)
    padded = np.zeros((b.blocks * b.channels, b.inputs), np.float32)
    padded[: kernel.groups] = weight.reshape(kernel.groups, b.inputs)
    blocked = padded.reshape(b.blocks, b.channels, b.inputs)
    return np.ascontiguousarray(blocked.transpose(0, 2, 1)).reshape(-1)


def pack_weight(
    kernel: Kernel, schedule: Schedule, lanes: int, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From `channels x 1 x kernel x kernel` to blocks x taps x block channels, flat."""
    b = Blocking.of(kernel, schedule, lanes)
    taps = kernel.kernel**2
    padded = np.zeros((b.blocks * b.channels, taps), np.float32)
    padded[: kernel.groups] = weight.reshape(kernel.groups, taps)
    blocked = padded.reshape(b.blocks, b.channels, taps)
    return np.ascontiguousarray(blocked.transpose(0, 2, 1)).reshape(-1)


def pack_bias(
    kernel: Kernel, schedule: Schedule, lanes: int, bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One value a channel, filled up to whole blocks."""
    b = Blocking.of(kernel, schedule, lanes)
    padded = np.zeros(b.blocks * b.channels, np.float32)
    padded[: kernel.groups] = bias
    return padded


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """The TIR function of an expanded depthwise convolution.

    The schedule has `channels` (vectors) of a block, `pixels` of a register tile of the expansion,
    `columns` of one of the window, and `order`: whether all rows of a block of `channels` come
    first, or all blocks of a row (`rows`), which reads the input once but keeps more in the ring.
    """
    b = Blocking.of(kernel, schedule, lanes)
    padded = b.blocks * b.channels
    nest = Nest(
        kernel,
        lanes,
        threads,
        weight_size=padded * kernel.kernel**2,
        bias_size=padded,
        expansion_size=padded * b.inputs,
    )
    return nest.function(lambda image: _image(image, schedule, b), name)


def _image(nest: Nest, schedule: Schedule, b: Blocking) -> list[Stmt]:
    """The statements for one image."""
    by_rows = schedule["order"] == "rows"
    ring = Tensor("ring", (b.blocks if by_rows else 1) * b.ring, scope="global")
    walk = _Walk(nest, schedule, b, ring, by_rows)
    rows = nest.kernel.output[1]
    if by_rows:
        body = [ring.allocate(), *walk.blocks(walk.begin)]
        return body + loops.loop(rows, lambda row: walk.blocks(lambda block: walk.row(block, row)))
    return walk.blocks(
        lambda block: [
            ring.allocate(),
            *walk.begin(block),
            *loops.loop(rows, lambda row: walk.row(block, row)),
        ],
        parallel=nest.parallel,
    )


class _Block(NamedTuple):
    """Block `index` of the expanded channels, of which `exist` are no padding."""

    index: Expr
    exist: int


@dataclass(frozen=True)
class _Walk:
    """Statements of one kernel, over blocks of channels and rows.

    Args:
        by_rows: whether each block has a ring of its own.
    """

    nest: Nest
    schedule: Schedule
    b: Blocking
    ring: Tensor
    by_rows: bool

    def blocks(self, body: Callable[[_Block], list[Stmt]], *, parallel: bool = False) -> list[Stmt]:
        """`body` for every block of channels."""
        size = self.b.channels
        return spans(
            self.nest.kernel.groups,
            size,
            lambda start, count: body(_Block(loops.divided(start, size)[0], count)),
            parallel=parallel,
        )

    def begin(self, block: _Block) -> list[Stmt]:
        """Clears a block's ring, for the borders, and expands the rows before the first own one."""
        kernel = self.nest.kernel
        found = []
        if kernel.padding or self.b.width > kernel.inputs[0].shape[2]:
            found += loops.zero(self.ring, self._start(block), self.b.ring, self.nest.lanes)
        ahead = max(0, kernel.kernel - kernel.padding - kernel.stride)
        return found + loops.loop(
            min(ahead, kernel.inputs[0].shape[1]), lambda line: self._expand(block, line)
        )

    def row(self, block: _Block, row: Expr) -> list[Stmt]:
        """One output row of a block, and the rows that have to be expanded for it."""
        kernel = self.nest.kernel
        first = row * kernel.stride + kernel.kernel - kernel.padding - kernel.stride
        found = []
        for new in range(kernel.stride):
            line = first + new
            inside = loops.guarded(line, kernel.inputs[0].shape[1], self._expand(block, line))
            found += inside
        return found + spans(
            kernel.output[2],
            self.schedule["columns"],
            lambda column, count: self._slide(block, row, column, count),
        )

    def _start(self, block: _Block) -> Expr:
        return block.index * self.b.ring if self.by_rows else 0

    def _at(self, block: _Block, line: Expr) -> Expr:
        """Where a line of the expanded map is kept in the ring."""
        size = self.b.width * self.b.channels
        height = self.nest.kernel.kernel
        _, slot = loops.divided(line, height)
        return self._start(block) + slot * size

    def _expand(self, block: _Block, line: Expr) -> list[Stmt]:
        """Expands a line of the input into the ring."""
        return spans(
            self.nest.kernel.inputs[0].shape[2],
            self.schedule["pixels"],
            lambda column, count: self._expand_tile(block, line, column, count),
        )

    def _expand_tile(self, block: _Block, line: Expr, column: Expr, count: int) -> list[Stmt]:
        nest, b, lanes = self.nest, self.b, self.nest.lanes
        operand = nest.kernel.inputs[0]
        steps, weight, bias = nest.kernel.expansion, nest.expansion, nest.expansion_bias
        assert steps is not None
        assert weight is not None
        assert bias is not None
        sizes = loops.computed(block.exist, lanes)
        tile = list(unrolled(count, len(sizes)))
        registers = Registers("acc", len(tile), lanes)
        found = registers.allocate()
        for at, (_, v) in enumerate(tile):
            start = bias.load(block.index * b.channels + v * lanes, sizes[v])
            found.append(registers.store(at, start, sizes[v]))

        def step(channel: Expr) -> list[Stmt]:
            done: list[Stmt] = []
            first = (block.index * b.inputs + channel) * b.channels
            done += nest.fetch_ahead(first, b.channels, len(sizes), weight)
            for at, (j, v) in enumerate(tile):
                pixel = line * operand.shape[2] + column + j
                value = nest.inputs[0].load(pixel * operand.shape[0] + operand.start + channel)
                weights_at = first + v * lanes
                total = registers.load(at, sizes[v])
                total = total + loops.spread(value, sizes[v]) * weight.load(weights_at, sizes[v])
                done.append(registers.store(at, total, sizes[v]))
            return done

        found += loops.loop(b.inputs, step)
        for at, (j, v) in enumerate(tile):
            value = registers.load(at, sizes[v])
            for kind in steps:
                value = value if kind == "bias" else activated(kind, value, sizes[v])
            column_at = (nest.kernel.padding + column + j) * b.channels
            target = self._at(block, line) + column_at + v * lanes
            found.append(self.ring.store(target, value, sizes[v]))
        return [loops.sequence(found)]

    def _slide(self, block: _Block, row: Expr, column: Expr, count: int) -> list[Stmt]:
        """The window over `count` columns of an output row."""
        nest, b, lanes = self.nest, self.b, self.nest.lanes
        kernel = nest.kernel
        assert nest.weight is not None
        weight = nest.weight
        parts = loops.vectors(block.exist, lanes)
        sizes = loops.computed(block.exist, lanes)
        registers = Registers("sum", count * len(parts), lanes)
        tile = list(unrolled(count, len(parts)))
        found = registers.allocate()
        for at, (_, v) in enumerate(tile):
            start = nest.initial(block.index * b.channels + v * lanes, sizes[v])
            found.append(registers.store(at, start, sizes[v]))

        def window_row(tap_row: Expr) -> list[Stmt]:
            line = row * kernel.stride - kernel.padding + tap_row
            done = []
            for tap in range(kernel.kernel):
                for at, (j, v) in enumerate(tile):
                    x = ((column + j) * kernel.stride + tap) * b.channels + v * lanes
                    value = self.ring.load(self._at(block, line) + x, sizes[v])
                    taps_at = (block.index * kernel.kernel + tap_row) * kernel.kernel + tap
                    taps = weight.load(taps_at * b.channels + v * lanes, sizes[v])
                    total = registers.load(at, sizes[v]) + value * taps
                    done.append(registers.store(at, total, sizes[v]))
            return done

        top = row * kernel.stride - kernel.padding
        found += loops.within(top, kernel.kernel, kernel.inputs[0].shape[1], window_row)
        for at, (j, v) in enumerate(tile):
            offset, exist = parts[v]
            result = registers.load(at, exist)
            pixel = row * kernel.output[2] + column + j
            channel = block.index * b.channels + offset
            found.append(nest.finish(result, pixel, channel, exist))
        return [loops.sequence(found)]
