"""3x3 convolutions with fewer multiplications: Winograd's minimal filtering.

A tile of `m x m` output pixels is the inverse transform of a product, element by element, of the
transformed `(m + 2) x (m + 2)` input tile and the transformed window: summed over the input
channels, `(m + 2)^2` matrix products in place of `9 m^2` (Lavin and Gray 2016, "Fast algorithms for
convolutional neural networks"; matrices of sections 4.1 and 4.3). The sums are those of the direct
convolution, rounded elsewhere: in float32 they differ by some 1e-6 of the largest output for
`m = 2`, some 1e-5 for `m = 4`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cpu import loops
from nas.schedules.cpu.loop_nest import Nest, spans, unrolled
from nas.schedules.cpu.loops import Expr, Registers, Stmt, Tensor
from nas.schedules.cpu.padding import Border
from nas.schedules.templates import Schedule

Matrix = Sequence[Sequence[float]]

_INPUT: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_WINDOW: dict[int, Matrix] = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_OUTPUT: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: (
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 0),
        (0, 1, 1, 4, 4, 0),
        (0, 1, -1, 8, -8, 1),
    ),
}

TILES = tuple(_INPUT)
"""Sizes of output tiles that there are transforms for."""


def applies(kernel: Kernel) -> bool:
    """Whether a kernel can be computed so."""
    return (
        kernel.kind == "conv2d"
        and (kernel.kernel, kernel.stride, kernel.groups) == (3, 1, 1)
        and min(kernel.output[1:]) > 1
    )


@dataclass(frozen=True)
class Tiling:
    """Sizes of a kernel's loops.

    Args:
        m, n: pixels of a side of an output tile and of an input tile.
        inputs: channels.
        channels: output channels of a block, a multiple of the vector width.
        blocks: of output channels.
        rows, columns: tiles that cover the output.
    """

    m: int
    n: int
    inputs: int
    channels: int
    blocks: int
    rows: int
    columns: int

    @classmethod
    def of(cls, kernel: Kernel, schedule: Schedule, lanes: int) -> Tiling:
        """The loops of a kernel with a schedule, for vectors of `lanes` elements."""
        m, channels = schedule["winograd"], schedule["channels"] * lanes
        outputs, height, width = kernel.output
        return cls(
            m=m,
            n=m + 2,
            inputs=kernel.inputs[0].channels,
            channels=channels,
            blocks=-(-outputs // channels),
            rows=-(-height // m),
            columns=-(-width // m),
        )


def pack_weight(
    kernel: Kernel, schedule: Schedule, lanes: int, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From `outputs x inputs x 3 x 3` to blocks x n x n x inputs x block channels, flat."""
    t = Tiling.of(kernel, schedule, lanes)
    window = np.array(_WINDOW[t.m])
    padded = np.zeros((t.blocks * t.channels, t.inputs, 3, 3))
    padded[: kernel.output[0]] = weight
    transformed = np.einsum("ap,oipq,bq->abio", window, padded, window)
    blocked = transformed.reshape(t.n, t.n, t.inputs, t.blocks, t.channels)
    packed = blocked.transpose(3, 0, 1, 2, 4).astype(np.float32)
    return np.ascontiguousarray(packed).reshape(-1)


def pack_bias(
    kernel: Kernel, schedule: Schedule, lanes: int, bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One value an output channel, filled up to whole blocks."""
    t = Tiling.of(kernel, schedule, lanes)
    padded = np.zeros(t.blocks * t.channels, np.float32)
    padded[: kernel.output[0]] = bias
    return padded


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """The TIR function of a 3x3 convolution.

    The schedule has `winograd`, the pixels of a side of an output tile; `bands`, rows of tiles that
    are worked on together; `channels` (vectors) by `pixels` (tiles) of a register tile.
    """
    t = Tiling.of(kernel, schedule, lanes)
    padded = t.blocks * t.channels
    nest = Nest(kernel, lanes, threads, padded * t.inputs * t.n**2, padded)
    return nest.function(lambda image: _image(image, schedule, t), name)


def _image(nest: Nest, schedule: Schedule, t: Tiling) -> list[Stmt]:
    """The statements for one image."""
    border = Border(nest, t.rows * t.m + 2, t.columns * t.m + 2)
    work = _Work(nest, schedule, t, border)
    whole, rest = loops.tiles(t.rows, schedule["bands"])
    # The last band may have a row of tiles that hangs over the output.
    whole -= rest == 0
    body = loops.loop(whole, lambda i: work.band(i * schedule["bands"], schedule["bands"], None))
    body += work.band(
        whole * schedule["bands"],
        t.rows - whole * schedule["bands"],
        nest.kernel.output[1] - (t.rows - 1) * t.m,
    )
    return [*border.prepare(), work.transformed.allocate(), *body]


class _Work:
    """Statements of one kernel, a band of tiles after the other."""

    def __init__(self, nest: Nest, schedule: Schedule, t: Tiling, border: Border) -> None:
        self._nest, self._schedule, self._t, self._border = nest, schedule, t, border
        tiles = schedule["bands"] * t.columns
        self.transformed = Tensor("v", t.n**2 * tiles * t.inputs)
        self._products = Tensor("m", t.n**2 * tiles * t.channels)

    def band(self, row: Expr, rows: int, last_height: int | None) -> list[Stmt]:
        """`rows` of tiles from `row` on; `last_height` pixels of the last one exist, if given."""
        t, parallel = self._t, self._nest.parallel
        tiles = rows * t.columns

        def block(start: Expr, count: int) -> list[Stmt]:
            index, _ = loops.divided(start, t.channels)
            return [
                self._products.allocate(),
                *loops.loop(t.n**2, lambda at: self._multiply(index, at, tiles)),
                *self._finish(start, count, row, rows, last_height),
            ]

        def tile(index: Expr) -> list[Stmt]:
            at_row, at_column = loops.divided(index, t.columns)
            return spans(
                t.inputs,
                self._nest.lanes,
                lambda c, n: self._transform(row + at_row, at_column, index, tiles, c, n),
            )

        found = loops.loop(tiles, tile, parallel=parallel)
        return found + spans(self._nest.kernel.output[0], t.channels, block, parallel=parallel)

    def _transform(
        self, row: Expr, column: Expr, tile: Expr, tiles: int, channel: Expr, width: int
    ) -> list[Stmt]:
        """Transforms `width` channels of an input tile."""
        t, matrix = self._t, _INPUT[self._t.m]
        pixels = [
            [self._border.load(row * t.m + i, column * t.m + j, channel, width) for j in range(t.n)]
            for i in range(t.n)
        ]
        found, results = _sandwich(matrix, matrix, pixels, width, self._nest.lanes)
        for i, j in unrolled(t.n, t.n):
            at = ((i * t.n + j) * tiles + tile) * t.inputs + channel
            found.append(self.transformed.store(at, results[i][j], width))
        return [loops.sequence(found)]

    def _multiply(self, block: Expr, at: Expr, tiles: int) -> list[Stmt]:
        """The products of one element of all tiles with a block of channels, summed over inputs."""
        t, lanes, weight = self._t, self._nest.lanes, self._nest.weight
        assert weight is not None

        def register_tile(tile: Expr, count: int) -> list[Stmt]:
            position = list(unrolled(count, t.channels // lanes))
            registers = Registers("acc", len(position), lanes)
            found = registers.allocate()
            zero = loops.spread(0.0, lanes)
            found += [registers.store(k, zero, lanes) for k in range(len(position))]

            def step(channel: Expr) -> list[Stmt]:
                weights_at = ((block * t.n**2 + at) * t.inputs + channel) * t.channels
                vectors = t.channels // lanes
                done = self._nest.fetch_ahead(weights_at, t.channels, vectors)
                for k, (j, v) in enumerate(position):
                    value = self.transformed.load((at * tiles + tile + j) * t.inputs + channel)
                    weights = weight.load(weights_at + v * lanes, lanes)
                    total = registers.load(k, lanes) + loops.spread(value, lanes) * weights
                    done.append(registers.store(k, total, lanes))
                return done

            found += loops.loop(t.inputs, step)
            for k, (j, v) in enumerate(position):
                target = (at * tiles + tile + j) * t.channels + v * lanes
                found.append(self._products.store(target, registers.load(k, lanes), lanes))
            return [loops.sequence(found)]

        return spans(tiles, self._schedule["pixels"], register_tile)

    def _finish(
        self, start: Expr, count: int, row: Expr, rows: int, last_height: int | None
    ) -> list[Stmt]:
        """Transforms the products of a block of `count` channels back, and stores what exists."""
        t, width = self._t, self._nest.kernel.output[2]
        last_width = width - (t.columns - 1) * t.m
        tiles = rows * t.columns

        def of_row(at_row: Expr, high: int) -> list[Stmt]:
            def tile(column: Expr, wide: int) -> list[Stmt]:
                return spans(
                    count,
                    self._nest.lanes,
                    lambda c, n: self._inverse(
                        start, c, n, row + at_row, column, at_row * t.columns + column, tiles,
                        (high, wide),
                    ),
                )  # fmt: skip

            found = loops.loop(t.columns - 1, lambda column: tile(column, t.m))
            return found + tile(t.columns - 1, last_width)

        if last_height is None:
            return loops.loop(rows, lambda at_row: of_row(at_row, t.m))
        found = loops.loop(rows - 1, lambda at_row: of_row(at_row, t.m))
        return found + of_row(rows - 1, last_height)

    def _inverse(
        self,
        start: Expr,
        channel: Expr,
        width: int,
        row: Expr,
        column: Expr,
        tile: Expr,
        tiles: int,
        exist: tuple[int, int],
    ) -> list[Stmt]:
        t, nest, matrix = self._t, self._nest, _OUTPUT[self._t.m]
        products = [
            [
                self._products.load(((i * t.n + j) * tiles + tile) * t.channels + channel, width)
                for j in range(t.n)
            ]
            for i in range(t.n)
        ]
        high, wide = exist
        found, results = _sandwich(matrix[:high], matrix[:wide], products, width, self._nest.lanes)
        for i, j in unrolled(high, wide):
            pixel = (row * t.m + i) * nest.kernel.output[2] + column * t.m + j
            value = results[i][j] + nest.initial(start + channel, width)
            found.append(nest.finish(value, pixel, start + channel, width))
        return [loops.sequence(found)]


def _sandwich(
    left: Matrix, right: Matrix, values: Sequence[Sequence[Expr]], width: int, lanes: int
) -> tuple[list[Stmt], list[list[Expr]]]:
    """`left @ values @ right.T`: statements to run first, and the elements."""
    columns = len(values[0])
    kept = Registers("t", len(values) * columns + len(left) * columns, lanes)
    found = kept.allocate()
    for k, (i, j) in enumerate(unrolled(len(values), columns)):
        found.append(kept.store(k, values[i][j], width))
    offset = len(values) * columns
    for i, j in unrolled(len(left), columns):
        total = _combined(left[i], [kept.load(k * columns + j, width) for k in range(len(values))])
        found.append(kept.store(offset + i * columns + j, total, width))
    results = [
        [
            _combined(each, [kept.load(offset + i * columns + k, width) for k in range(columns)])
            for each in right
        ]
        for i in range(len(left))
    ]
    return found, results


def _combined(factors: Sequence[float], values: Sequence[Expr]) -> Expr:
    """The sum of values times factors, few of which are neither zero nor one."""
    total = None
    for factor, value in zip(factors, values, strict=True):
        if factor == 0:
            continue
        if total is None:
            total = value if factor == 1 else value * _constant(factor, value)
        elif abs(factor) == 1:
            total = total + value if factor == 1 else total - value
        else:
            total = total + value * _constant(factor, value)
    return total


def _constant(factor: float, like: Expr) -> Expr:
    return loops.spread(float(factor), like.ty.dtype.lanes)
