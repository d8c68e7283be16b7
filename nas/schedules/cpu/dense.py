"""Dense and grouped convolutions and linear layers as register-tiled matrix products.

A tile of pixels by channel vectors is accumulated in registers over the whole reduction: each step
loads one packed weight vector a channel vector, and multiplies it with one input value a pixel
(Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication"). A convolution
with padding first copies its input into scratch memory with the border around it, so that the
inner loops have no conditions. Weights are packed by tile, and padded with zeros to whole vectors.
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
from nas.schedules.cpu.loop_nest import Nest, joined_pixels, spans, unrolled
from nas.schedules.cpu.loops import Expr, Registers, Stmt
from nas.schedules.cpu.padding import Border
from nas.schedules.templates import Schedule


@dataclass(frozen=True)
class Tiling:
    """Sizes of a dense kernel's loops; `rows` and `columns` count output pixels.

    A convolution of single pixels has one row of all its columns, see `nest.joined_pixels`.
    """

    groups: int
    inputs: int  # channels of one group
    outputs: int  # channels of one group
    rows: int
    columns: int
    taps: int  # pixels of the window
    channels: int  # output channels of a tile, a multiple of the vector width
    tiles: int  # tiles of output channels in one group

    @classmethod
    def of(cls, kernel: Kernel, schedule: Schedule, lanes: int) -> Tiling:
        """The loops of a kernel with a schedule, for vectors of `lanes` elements."""
        outputs, height, width = kernel.output
        flat = is_flat(kernel)
        channels = schedule["channels"] * lanes
        per_group = outputs // kernel.groups
        return cls(
            groups=kernel.groups,
            inputs=kernel.inputs[0].channels // kernel.groups,
            outputs=per_group,
            rows=1 if flat else height,
            columns=joined_pixels(kernel) if flat else width,
            taps=kernel.kernel**2,
            channels=channels,
            tiles=-(-per_group // channels),
        )


def is_flat(kernel: Kernel) -> bool:
    """Whether every output pixel reads exactly the input pixel in its place."""
    return kernel.kernel == 1 and kernel.stride == 1 and kernel.padding == 0


def pack_weight(
    kernel: Kernel, schedule: Schedule, lanes: int, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From `kernel.weight_shape` to groups x tiles x taps x inputs x tile channels, flat."""
    t = Tiling.of(kernel, schedule, lanes)
    grouped = weight.reshape(t.groups, t.outputs, t.inputs, t.taps)
    padded = np.zeros((t.groups, t.tiles * t.channels, t.inputs, t.taps), np.float32)
    padded[:, : t.outputs] = grouped
    tiled = padded.reshape(t.groups, t.tiles, t.channels, t.inputs, t.taps)
    return np.ascontiguousarray(tiled.transpose(0, 1, 4, 3, 2)).reshape(-1)


def pack_bias(
    kernel: Kernel, schedule: Schedule, lanes: int, bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From one value an output channel to groups x tiles x tile channels, flat."""
    t = Tiling.of(kernel, schedule, lanes)
    padded = np.zeros((t.groups, t.tiles * t.channels), np.float32)
    padded[:, : t.outputs] = bias.reshape(t.groups, t.outputs)
    return padded.reshape(-1)


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """The TIR function of a dense kernel.

    The schedule has `channels` (vectors) by `rows` x `columns` (pixels) of a register tile;
    `order`, which of channels and pixels the outer loops walk; `partial_sums`, how many
    accumulators share one output, to hide the latency of additions in tiny tiles.
    """
    t = Tiling.of(kernel, schedule, lanes)
    bias_size = t.groups * t.tiles * t.channels
    nest = Nest(kernel, lanes, threads, bias_size * t.taps * t.inputs, bias_size)
    return nest.function(lambda image: _image(image, schedule, t), name)


def _image(nest: Nest, schedule: Schedule, t: Tiling) -> list[Stmt]:
    """The statements for one image."""
    source = _source(nest.kernel, nest)
    high, wide = schedule["rows"], schedule["columns"]
    whole_tiles, narrow = loops.tiles(t.outputs, t.channels)

    def channel_tiles(
        body: Callable[[_ChannelTile], list[Stmt]], *, parallel: bool = False
    ) -> list[Stmt]:
        def of_group(group: Expr) -> list[Stmt]:
            found = loops.loop(
                whole_tiles,
                lambda index: body(_ChannelTile(group, index, t.channels)),
                parallel=parallel and t.groups == 1,
            )
            return found + (body(_ChannelTile(group, whole_tiles, narrow)) if narrow else [])

        return loops.loop(t.groups, of_group, parallel=parallel)

    def pixel_tiles(
        body: Callable[[_PixelTile], list[Stmt]], *, parallel: bool = False
    ) -> list[Stmt]:
        bands = t.rows // high

        def of_band(band: Expr) -> list[Stmt]:
            return spans(
                t.columns,
                wide,
                lambda column, count: body(_PixelTile(band * high, column, high, count)),
                parallel=parallel and bands == 1,
            )

        return loops.loop(bands, of_band, parallel=parallel)

    def tile(channels: _ChannelTile, pixels: _PixelTile) -> list[Stmt]:
        return _tile(nest, source, t, schedule["partial_sums"], channels, pixels)

    if schedule["order"] == "channels":
        body = channel_tiles(
            lambda channels: pixel_tiles(lambda pixels: tile(channels, pixels)),
            parallel=nest.parallel,
        )
    else:
        body = pixel_tiles(
            lambda pixels: channel_tiles(lambda channels: tile(channels, pixels)),
            parallel=nest.parallel,
        )
    return source.prepare() + body


class _ChannelTile(NamedTuple):
    """Tile `index` of a group's output channels, of which `width` exist; the rest is padding."""

    group: Expr
    index: Expr
    width: int


class _PixelTile(NamedTuple):
    """`high x wide` output pixels from `row` and `column` on."""

    row: Expr
    column: Expr
    high: int
    wide: int


def _tile(
    nest: Nest,
    source: Border,
    t: Tiling,
    sums: int,
    channels: _ChannelTile,
    pixels: _PixelTile,
) -> list[Stmt]:
    """One register tile: accumulators set, reduced and stored; `sums` share an output."""
    kernel, lanes, weight = nest.kernel, nest.lanes, nest.weight
    assert weight is not None
    group, index, width = channels
    row, column, high, wide = pixels
    stores = loops.vectors(width, lanes)
    sizes = loops.computed(width, lanes)
    position = list(unrolled(high, wide, len(stores)))
    registers = Registers("acc", len(position) * sums, lanes)

    def register(at: int, part: int) -> int:
        return at * sums + part

    packed_at = group * t.tiles + index
    found = registers.allocate()
    for at, (_, _, v) in enumerate(position):
        n = sizes[v]
        for part in range(sums):
            start = (
                nest.initial(packed_at * t.channels + v * lanes, n)
                if part == 0
                else loops.spread(0.0, n)
            )
            found.append(registers.store(register(at, part), start, n))

    def step(tap_row: Expr, tap_column: Expr, block: Expr) -> list[Stmt]:
        done: list[Stmt] = []
        for part in range(sums):
            channel = block * sums + part
            tap = tap_row * kernel.kernel + tap_column
            weights_at = ((packed_at * t.taps + tap) * t.inputs + channel) * t.channels
            done += nest.fetch_ahead(weights_at, t.channels, len(stores))
            for at, (i, j, v) in enumerate(position):
                n = sizes[v]
                value = source.load(
                    (row + i) * kernel.stride + tap_row,
                    (column + j) * kernel.stride + tap_column,
                    group * t.inputs + channel,
                )
                total = registers.load(register(at, part), n)
                weights = weight.load(weights_at + v * lanes, n)
                total = total + loops.spread(value, n) * weights
                done.append(registers.store(register(at, part), total, n))
        return done

    found += loops.loop(
        kernel.kernel,
        lambda y: loops.loop(
            kernel.kernel,
            lambda x: loops.loop(t.inputs // sums, lambda block: step(y, x, block)),
        ),
    )
    for at, (i, j, v) in enumerate(position):
        offset, exist = stores[v]
        total = registers.load(register(at, 0), exist)
        for part in range(1, sums):
            total = total + registers.load(register(at, part), exist)
        pixel = (row + i) * t.columns + column + j
        channel = group * t.outputs + index * t.channels + offset
        found.append(nest.finish(total, pixel, channel, exist))
    return [loops.sequence(found)]


def _source(kernel: Kernel, nest: Nest) -> Border:
    _, height, width = kernel.output
    reach = kernel.kernel - kernel.stride
    return Border(nest, height * kernel.stride + reach, width * kernel.stride + reach)
