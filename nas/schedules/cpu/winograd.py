"""3x3 convolutions with fewer multiplications: Winograd's minimal filtering.

A tile of `m x m` output pixels is computed from the `n x n` input pixels that it reads, with
`n = m + 2`. Input tile and 3x3 filter are transformed to `n x n` matrices, multiplied element by
element, summed over the input channels, and the sum is transformed back:

    Y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A

That takes `n^2` multiplications for each pair of channels and tile, where a direct convolution
takes `9 m^2`: 16 in place of 36 for m = 2, 36 in place of 144 for m = 4. Filters are transformed
when they are packed.

Results are those of the direct convolution up to rounding: in float32 they differ by about 1e-6 of
the largest output for m = 2, and by about 1e-5 for m = 4. Larger tiles save more multiplications,
but their transforms have larger factors and lose accuracy.

Reference: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"; the matrices
are those of its sections 4.1 and 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cpu.loop_nest import LoopNest
from nas.schedules.cpu.loops import VectorRegisters, div_mod, tiled_loop
from nas.schedules.cpu.padding import PaddedInput
from nas.schedules.templates import Schedule
from nas.schedules.tir import Buffer, Expr, Stmt, broadcast, loop, sequence

Matrix = Sequence[Sequence[float]]

_INPUT_TRANSFORM: dict[int, Matrix] = {
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
"""`B^T` of the paper, `n x n`, by the side m of an output tile."""

_FILTER_TRANSFORM: dict[int, Matrix] = {
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
"""`G` of the paper, `n x 3`, by m."""

_OUTPUT_TRANSFORM: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: (
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 0),
        (0, 1, 1, 4, 4, 0),
        (0, 1, -1, 8, -8, 1),
    ),
}
"""`A^T` of the paper, `m x n`, by m."""


def applies(kernel: Kernel) -> bool:
    """Return whether a kernel is a dense 3x3 convolution of stride 1 with more than one row and
    column."""
    return (
        kernel.kind == "conv2d"
        and (kernel.kernel, kernel.stride, kernel.groups) == (3, 1, 1)
        and min(kernel.output[1:]) > 1
    )


def output_gain(m: int) -> float:
    """Return the standard deviation of an output of one input channel, if inputs and transformed
    weights are independent and have the standard deviation 1; the mean over the outputs of a tile.
    """
    inputs = np.square(np.array(_INPUT_TRANSFORM[m])).sum(axis=1)
    return float(np.sqrt(np.square(np.array(_OUTPUT_TRANSFORM[m])) @ inputs).mean() ** 2)


class WinogradTiling:
    """Sizes of the loops of a Winograd convolution, and its packed constants.

    Args:
        kernel: the kernel.
        schedule: its schedule, see `function`.
        lanes: float32 elements of a vector.

    Attributes:
        m: side of an output tile in pixels.
        n: side of an input tile in pixels, m + 2.
        inputs: input channels.
        channels: output channels of a block, a multiple of the vector width.
        blocks: blocks of output channels.
        padded_channels: channels of all blocks.
        rows: tiles that cover the height of the output; the last may exceed it.
        columns: tiles that cover its width.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, lanes: int) -> None:
        outputs, height, width = kernel.output
        self.m: int = schedule["winograd"]
        self.n = self.m + 2
        self.inputs = kernel.inputs[0].channels
        self.channels: int = schedule["channels"] * lanes
        self.blocks = -(-outputs // self.channels)
        self.padded_channels = self.blocks * self.channels
        self.rows = -(-height // self.m)
        self.columns = -(-width // self.m)

    def pack_weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform weights of `outputs, inputs, 3, 3` to `blocks, n, n, inputs, channels`."""
        transform = np.array(_FILTER_TRANSFORM[self.m])
        padded = np.zeros((self.padded_channels, self.inputs, 3, 3))
        padded[: len(weight)] = weight
        transformed = np.einsum("ap,oipq,bq->abio", transform, padded, transform)
        blocked = transformed.reshape(self.n, self.n, self.inputs, self.blocks, self.channels)
        packed = blocked.transpose(3, 0, 1, 2, 4).astype(np.float32)
        return np.ascontiguousarray(packed).reshape(-1)

    def pack_bias(self, bias: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pad a bias of one value for each output channel with zeros to whole blocks."""
        return np.pad(bias, (0, self.padded_channels - len(bias)))


def function(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """Return the TIR function of a 3x3 convolution.

    For each band of tiles: transform all input tiles; then, for each block of output channels,
    multiply the `n^2` elements one after the other (tiles of pixels, input channels, register tile
    unrolled), and transform the products back.

    Args:
        kernel: kernel to write, for which `applies` holds.
        schedule: `winograd`, the side m of an output tile in pixels; `bands`, rows of tiles that
            are transformed together; `channels` (vectors) by `pixels` (tiles) of a register tile.
        lanes: float32 elements of a vector.
        threads: number of threads that share the tiles, then the blocks of channels, of a band.
        name: symbol of the function.
    """
    t = WinogradTiling(kernel, schedule, lanes)
    weight_size = t.padded_channels * t.inputs * t.n**2
    loop_nest = LoopNest(kernel, lanes, threads, weight_size, t.padded_channels)
    return loop_nest.function(lambda image: _WinogradLoops(image, schedule, t).image(), name)


class _WinogradLoops:
    """Statements of a Winograd convolution, for one image."""

    def __init__(self, loop_nest: LoopNest, schedule: Schedule, t: WinogradTiling) -> None:
        self._nest, self._schedule, self._t = loop_nest, schedule, t
        self._input = PaddedInput(loop_nest, t.rows * t.m + 2, t.columns * t.m + 2)
        tiles = schedule["bands"] * t.columns
        # Layouts: n^2, tiles of a band, inputs; and n^2, tiles of a band, channels of a block.
        self._transformed = Buffer("v", t.n**2 * tiles * t.inputs)
        self._products = Buffer("m", t.n**2 * tiles * t.channels)

    def image(self) -> list[Stmt]:
        """Return all statements."""
        t, rows = self._t, self._schedule["bands"]
        whole, rest = divmod(t.rows, rows)
        # The last band is written apart: its last tiles may exceed the output.
        whole -= rest == 0
        bands = loop(whole, lambda i: self._band(i * rows, rows, None))
        last_height = self._nest.kernel.output[1] - (t.rows - 1) * t.m
        bands += self._band(whole * rows, t.rows - whole * rows, last_height)
        return [*self._input.fill(), self._transformed.allocate(), *bands]

    def _band(self, row: Expr, rows: int, last_height: int | None) -> list[Stmt]:
        """Return the statements of a band of tiles.

        Args:
            row: first row of tiles.
            rows: number of rows of tiles.
            last_height: output rows of the last row of tiles; None where all `m` exist.
        """
        t, parallel = self._t, self._nest.is_parallel
        tiles = rows * t.columns

        def transform_tile(index: Expr) -> list[Stmt]:
            tile_row, tile_column = div_mod(index, t.columns)
            return tiled_loop(
                t.inputs,
                self._nest.lanes,
                lambda c, n: self._transform_input(row + tile_row, tile_column, index, tiles, c, n),
            )

        def compute_block(start: Expr, count: int) -> list[Stmt]:
            block, _ = div_mod(start, t.channels)
            return [
                self._products.allocate(),
                *loop(t.n**2, lambda element: self._multiply(block, element, tiles)),
                *self._transform_block_back(start, count, row, rows, last_height),
            ]

        statements = loop(tiles, transform_tile, parallel=parallel)
        return statements + tiled_loop(
            self._nest.kernel.output[0], t.channels, compute_block, parallel=parallel
        )

    def _transform_input(
        self, row: Expr, column: Expr, tile: Expr, tiles: int, channel: Expr, width: int
    ) -> list[Stmt]:
        """Return the statements that transform `width` channels of an input tile.

        Args:
            row, column: position of the tile, in tiles.
            tile: number of the tile in its band.
            tiles: tiles of the band.
            channel: first channel.
            width: number of channels.
        """
        t, matrix = self._t, _INPUT_TRANSFORM[self._t.m]
        pixels = [
            [self._input.load(row * t.m + i, column * t.m + j, channel, width) for j in range(t.n)]
            for i in range(t.n)
        ]
        statements, results = _matrix_sandwich(matrix, matrix, pixels, width, self._nest.lanes)
        for i, j in product(range(t.n), range(t.n)):
            at = ((i * t.n + j) * tiles + tile) * t.inputs + channel
            statements.append(self._transformed.store(at, results[i][j], width))
        return [sequence(statements)]

    def _multiply(self, block: Expr, element: Expr, tiles: int) -> list[Stmt]:
        """Return the matrix product of one of the `n^2` elements: tiles by a block of channels."""
        t, lanes, weight = self._t, self._nest.lanes, self._nest.weight
        vectors = t.channels // lanes

        def register_tile(first: Expr, count: int) -> list[Stmt]:
            accumulators = list(product(range(count), range(vectors)))
            registers = VectorRegisters("acc", len(accumulators), lanes)
            statements = registers.allocate()
            for k in range(len(accumulators)):
                statements.append(registers.store(k, broadcast(0.0, lanes), lanes))

            def step(channel: Expr) -> list[Stmt]:
                weights_at = ((block * t.n**2 + element) * t.inputs + channel) * t.channels
                body = self._nest.prefetch_weights(
                    weights_at, t.channels, vectors, len(accumulators)
                )
                for k, (j, v) in enumerate(accumulators):
                    value_at = (element * tiles + first + j) * t.inputs + channel
                    value = self._transformed.load(value_at)
                    weights = weight.load(weights_at + v * lanes, lanes)
                    body.append(registers.add(k, broadcast(value, lanes) * weights, lanes))
                return body

            statements += loop(t.inputs, step)
            for k, (j, v) in enumerate(accumulators):
                target = (element * tiles + first + j) * t.channels + v * lanes
                statements.append(self._products.store(target, registers.load(k, lanes), lanes))
            return [sequence(statements)]

        return tiled_loop(tiles, self._schedule["pixels"], register_tile)

    def _transform_block_back(
        self, start: Expr, count: int, row: Expr, rows: int, last_height: int | None
    ) -> list[Stmt]:
        """Return the statements that transform the products of a block of channels back.

        Args:
            start: first output channel of the block.
            count: channels of the block that exist.
            row, rows, last_height: band of tiles, see `_band`.
        """
        t = self._t
        last_width = self._nest.kernel.output[2] - (t.columns - 1) * t.m
        tiles = rows * t.columns

        def tile_row(index: Expr, height: int) -> list[Stmt]:
            def tile(column: Expr, width: int) -> list[Stmt]:
                return tiled_loop(
                    count,
                    self._nest.lanes,
                    lambda c, n: self._transform_back(
                        start, c, n, row + index, column, index * t.columns + column, tiles,
                        (height, width),
                    ),
                )  # fmt: skip

            whole = loop(t.columns - 1, lambda column: tile(column, t.m))
            return whole + tile(t.columns - 1, last_width)

        if last_height is None:
            return loop(rows, lambda index: tile_row(index, t.m))
        whole = loop(rows - 1, lambda index: tile_row(index, t.m))
        return whole + tile_row(rows - 1, last_height)

    def _transform_back(
        self,
        start: Expr,
        channel: Expr,
        width: int,
        row: Expr,
        column: Expr,
        tile: Expr,
        tiles: int,
        size: tuple[int, int],
    ) -> list[Stmt]:
        """Return the statements that transform `width` channels of a tile back and store them.

        Args:
            start: first output channel of the block.
            channel: first channel, counted from `start`.
            width: number of channels.
            row, column: position of the tile, in tiles.
            tile: number of the tile in its band.
            tiles: tiles of the band.
            size: rows and columns of output pixels of the tile that exist.
        """
        t, loop_nest, matrix = self._t, self._nest, _OUTPUT_TRANSFORM[self._t.m]
        products = [
            [
                self._products.load(((i * t.n + j) * tiles + tile) * t.channels + channel, width)
                for j in range(t.n)
            ]
            for i in range(t.n)
        ]
        rows, columns = size
        statements, results = _matrix_sandwich(
            matrix[:rows], matrix[:columns], products, width, loop_nest.lanes
        )
        for i, j in product(range(rows), range(columns)):
            pixel = (row * t.m + i) * loop_nest.kernel.output[2] + column * t.m + j
            value = results[i][j] + loop_nest.initial_sum(start + channel, width)
            statements.append(loop_nest.store_result(value, pixel, start + channel, width))
        return [sequence(statements)]


def _matrix_sandwich(
    left: Matrix, right: Matrix, values: Sequence[Sequence[Expr]], width: int, lanes: int
) -> tuple[list[Stmt], list[list[Expr]]]:
    """Return `left @ values @ right.T` for a matrix of vectors.

    Args:
        left, right: constant matrices.
        values: matrix of vectors of `width` elements.
        width: elements of each vector.
        lanes: elements of a vector register.

    Returns:
        Statements to run first, and the elements of the result.
    """
    columns = len(values[0])
    registers = VectorRegisters("t", len(values) * columns + len(left) * columns, lanes)
    statements = registers.allocate()
    for k, (i, j) in enumerate(product(range(len(values)), range(columns))):
        statements.append(registers.store(k, values[i][j], width))
    offset = len(values) * columns
    for i, j in product(range(len(left)), range(columns)):
        column = [registers.load(k * columns + j, width) for k in range(len(values))]
        total = _linear_combination(left[i], column)
        statements.append(registers.store(offset + i * columns + j, total, width))
    results = [
        [
            _linear_combination(
                factors,
                [registers.load(offset + i * columns + k, width) for k in range(columns)],
            )
            for factors in right
        ]
        for i in range(len(left))
    ]
    return statements, results


def _linear_combination(factors: Sequence[float], values: Sequence[Expr]) -> Expr:
    """Return the sum of values times factors, without multiplying by 0, 1 and -1."""
    total = None
    for factor, value in zip(factors, values, strict=True):
        if factor == 0:
            continue
        constant = broadcast(float(factor), value.ty.dtype.lanes)
        if total is None:
            total = value if factor == 1 else value * constant
        elif abs(factor) == 1:
            total = total + value if factor == 1 else total - value
        else:
            total = total + value * constant
    return total
