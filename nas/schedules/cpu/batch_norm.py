"""Batch norm of a training step, in one with the activation behind it.

Torch reads and writes an activation map thirteen times in the forward and the backward pass of a
batch norm and an activation, which are limited by memory. These two kernels do it eight times.

An activation map is a matrix of `rows` (images, height and width) by channels. Both kernels sum
over the rows first, chunk by chunk, which keeps the rounding errors of the sums small. The last
pass goes through the chunks from the end, where the caches still hold the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tvm import tirx

from nas.schedules.cpu.loops import VectorRegisters, VectorUnit, split_into_vectors
from nas.schedules.tir import Buffer, Expr, Stmt, bind, broadcast, function, loop

CHUNK_ROWS = 256
"""Rows that are summed before the sums of the chunks are."""

_COEFFICIENTS = 4
"""Coefficients of each channel that the last pass reads."""

_MAX_VECTORS = 6
"""Most vectors of channels that a pass takes at once; each has two sums in registers."""


class _Activation(NamedTuple):
    """An activation in vectors of `n` elements.

    Attributes:
        value: returns the activation of `z`.
        gradient: returns the gradient of `z`, by `z` and the gradient of the activation.
    """

    value: Callable[[Expr, int], Expr]
    gradient: Callable[[Expr, Expr, int], Expr]


def _positive_part(z: Expr, n: int) -> Expr:
    # Unlike a maximum, this keeps what is not a number.
    return tirx.Select(z < broadcast(0.0, n), broadcast(0.0, n), z)


def _clip_to_6(z: Expr, n: int) -> Expr:
    six, positive = broadcast(6.0, n), _positive_part(z, n)
    return tirx.Select(positive > six, six, positive)


def _hard_swish(z: Expr, n: int) -> Expr:
    zero, six = broadcast(0.0, n), broadcast(6.0, n)
    gate = tirx.min(tirx.max(z + broadcast(3.0, n), zero), six)
    return z * gate * broadcast(1 / 6, n)


def _hard_swish_gradient(z: Expr, gradient: Expr, n: int) -> Expr:
    inner = gradient * (z * broadcast(1 / 3, n) + broadcast(0.5, n))
    outer = tirx.Select(z < broadcast(-3.0, n), broadcast(0.0, n), inner)
    return tirx.Select(z > broadcast(3.0, n), gradient, outer)


def _gradient_between(low: float, high: float) -> Callable[[Expr, Expr, int], Expr]:
    """Return the gradient of an activation that is `z` between two limits, else constant."""

    def gradient(z: Expr, gradient: Expr, n: int) -> Expr:
        is_between = z > broadcast(low, n)
        if high < math.inf:
            is_between = tirx.And(is_between, z < broadcast(high, n))
        return tirx.Select(is_between, gradient, broadcast(0.0, n))

    return gradient


ACTIVATIONS: Mapping[str | None, _Activation] = {
    None: _Activation(lambda z, n: z, lambda z, gradient, n: gradient),
    "relu": _Activation(_positive_part, _gradient_between(0.0, math.inf)),
    "relu6": _Activation(_clip_to_6, _gradient_between(0.0, 6.0)),
    "hard_swish": _Activation(_hard_swish, _hard_swish_gradient),
}
"""Activations that the kernels compute; None for no activation."""


def block_size(channels: int, unit: VectorUnit) -> int:
    """Return how many channels a pass takes at once: the largest divisor that fits the registers.

    Args:
        channels: channels of the activation map.
        unit: vector unit of the processor.
    """
    most = unit.lanes * min(_MAX_VECTORS, unit.registers // 2 - 2)
    return max(size for size in range(1, min(channels, most) + 1) if channels % size == 0)


def scratch_vectors(rows: int) -> int:
    """Return how many elements of memory the kernels need for each channel."""
    return _COEFFICIENTS + 2 * math.ceil(rows / CHUNK_ROWS)


def forward(block: int, activation: str | None, eps: float, lanes: int) -> tirx.PrimFunc:
    """Return the function that normalises a map by its own moments and activates it.

    Its parameters are `rows`, `blocks`, the map `rows x channels`, scale and shift (`channels`
    each), the result `rows x channels`, mean and population variance (`channels` each), and memory
    for `scratch_vectors(rows) x channels` elements.

    Args:
        block: channels that a pass takes at once; there are `blocks` times as many.
        activation: a key of `ACTIVATIONS`.
        eps: epsilon that is added to the variance.
        lanes: float32 elements of a vector register.
    """
    rows, blocks = tirx.Var("rows", "int32"), tirx.Var("blocks", "int32")
    loops = _MapLoops(rows, blocks, block, lanes)
    x, y = loops.map("x"), loops.map("y")
    scale, shift = loops.vector("scale"), loops.vector("shift")
    mean, variance = loops.vector("mean"), loops.vector("variance")
    normalisation = _Normalisation(loops, scale, shift, mean, variance, eps)

    def summands(row: Expr, channel: Expr, n: int) -> tuple[Expr, Expr]:
        # The first row is near the mean, so that the difference of two large numbers is avoided.
        centred = x.load(loops.at(row, channel), n) - x.load(channel, n)
        return centred, centred * centred

    def finish(channel: Expr, n: int, total: Expr, squares: Expr) -> list[Stmt]:
        offset = total / loops.rows_float(n)
        own_mean, own_variance = offset + x.load(channel, n), squares / loops.rows_float(n)
        own_variance = tirx.max(own_variance - offset * offset, broadcast(0.0, n))
        return [
            mean.store(channel, own_mean, n),
            variance.store(channel, own_variance, n),
            *normalisation.store(channel, n),
        ]

    def result(row: Expr, channel: Expr, n: int) -> Stmt:
        at = loops.at(row, channel)
        z = loops.line(x.load(at, n), 0, channel, n)
        return y.store(at, ACTIVATIONS[activation].value(z, n), n)

    body = loops.sums(summands) + loops.for_channels(finish) + loops.for_rows(result)
    parameters = [rows, blocks, x, scale, shift, y, mean, variance, loops.scratch]
    return function(parameters, body, "batch_norm_forward")


def backward(block: int, activation: str | None, eps: float, lanes: int) -> tirx.PrimFunc:
    """Return the function with the gradients of what `forward` computes.

    Its parameters are `rows`, `blocks`, the gradient of the result and the map (`rows x channels`
    each), scale, shift, mean and population variance (`channels` each), the gradient of the map,
    the gradients of scale and shift, and memory for `scratch_vectors(rows) x channels` elements.

    See `forward` for the arguments.
    """
    rows, blocks = tirx.Var("rows", "int32"), tirx.Var("blocks", "int32")
    loops = _MapLoops(rows, blocks, block, lanes)
    gradient, x, x_gradient = loops.map("gradient"), loops.map("x"), loops.map("x_gradient")
    scale, shift = loops.vector("scale"), loops.vector("shift")
    mean, variance = loops.vector("mean"), loops.vector("variance")
    scale_gradient, shift_gradient = loops.vector("scale_gradient"), loops.vector("shift_gradient")
    normalisation = _Normalisation(loops, scale, shift, mean, variance, eps)

    def before_activation(at: Expr, channel: Expr, n: int) -> Expr:
        """Return the gradient of what the activation reads."""
        z = loops.line(x.load(at, n), 0, channel, n)
        return ACTIVATIONS[activation].gradient(z, gradient.load(at, n), n)

    def summands(row: Expr, channel: Expr, n: int) -> tuple[Expr, Expr]:
        at = loops.at(row, channel)
        own = before_activation(at, channel, n)
        return own, own * (x.load(at, n) - mean.load(channel, n))

    def finish(channel: Expr, n: int, total: Expr, products: Expr) -> list[Stmt]:
        deviation = normalisation.deviation(channel, n)
        slope = loops.coefficient(0, channel, n) * scale_gradient.load(channel, n)
        slope = broadcast(0.0, n) - slope / (deviation * loops.rows_float(n))
        level = loops.coefficient(0, channel, n) * shift_gradient.load(channel, n)
        level = level / loops.rows_float(n) + mean.load(channel, n) * loops.coefficient(
            2, channel, n
        )
        return [
            shift_gradient.store(channel, total, n),
            scale_gradient.store(channel, products / deviation, n),
            loops.store_coefficient(2, channel, slope, n),
            loops.store_coefficient(3, channel, broadcast(0.0, n) - level, n),
        ]

    def result(row: Expr, channel: Expr, n: int) -> Stmt:
        at = loops.at(row, channel)
        own = before_activation(at, channel, n) * loops.coefficient(0, channel, n)
        return x_gradient.store(at, own + loops.line(x.load(at, n), 2, channel, n), n)

    body = loops.for_vectors(normalisation.store) + loops.sums(summands)
    body += loops.for_channels(finish) + loops.for_rows(result)
    parameters = [rows, blocks, gradient, x, scale, shift, mean, variance]
    parameters += [x_gradient, scale_gradient, shift_gradient, loops.scratch]
    return function(parameters, body, "batch_norm_backward")


class _Normalisation(NamedTuple):
    """The line that normalises, scales and shifts a map: coefficients 0 and 1 of each channel."""

    loops: _MapLoops
    scale: Buffer
    shift: Buffer
    mean: Buffer
    variance: Buffer
    eps: float

    def deviation(self, channel: Expr, n: int) -> Expr:
        """Return the standard deviation of `n` channels."""
        return tirx.sqrt(self.variance.load(channel, n) + broadcast(self.eps, n))

    def store(self, channel: Expr, n: int) -> list[Stmt]:
        """Return statements that write the coefficients of `n` channels."""
        factor = self.scale.load(channel, n) / self.deviation(channel, n)
        shifted = self.mean.load(channel, n) * self.loops.coefficient(0, channel, n)
        constant = self.shift.load(channel, n) - shifted
        return [
            self.loops.store_coefficient(0, channel, factor, n),
            self.loops.store_coefficient(1, channel, constant, n),
        ]


class _MapLoops:
    """Loops over the rows and channels of an activation map, and the memory between them.

    The memory holds the coefficients of each channel, then two sums of each chunk and channel.

    Args:
        rows: number of rows.
        blocks: number of blocks of channels.
        block: channels of a block.
        lanes: float32 elements of a vector register.
    """

    def __init__(self, rows: Expr, blocks: Expr, block: int, lanes: int) -> None:
        self._rows, self._blocks, self._block = rows, blocks, block
        self._channels = blocks * block
        self._vectors = split_into_vectors(block, lanes)
        self._sums = VectorRegisters("sum", 2 * len(self._vectors), lanes)
        self._chunks = tirx.truncdiv(rows + (CHUNK_ROWS - 1), CHUNK_ROWS)
        self.scratch = Buffer("scratch", (_COEFFICIENTS + 2 * self._chunks) * self._channels)

    def map(self, name: str) -> Buffer:
        """Return a parameter `rows x channels`."""
        return Buffer(name, self._rows * self._channels)

    def vector(self, name: str) -> Buffer:
        """Return a parameter with an element for each channel."""
        return Buffer(name, self._channels)

    def at(self, row: Expr, channel: Expr) -> Expr:
        """Return the position of an element of a map."""
        return row * self._channels + channel

    def rows_float(self, n: int) -> Expr:
        """Return the number of rows, `n` times."""
        return broadcast(tirx.Cast("float32", self._rows), n)

    def coefficient(self, number: int, channel: Expr, n: int) -> Expr:
        """Return one of the coefficients of `n` channels."""
        return self.scratch.load(number * self._channels + channel, n)

    def store_coefficient(self, number: int, channel: Expr, value: Expr, n: int) -> Stmt:
        """Write one of the coefficients of `n` channels."""
        return self.scratch.store(number * self._channels + channel, value, n)

    def line(self, x: Expr, number: int, channel: Expr, n: int) -> Expr:
        """Return a line at `x`: one of the coefficients is its slope, the next its constant."""
        return x * self.coefficient(number, channel, n) + self.coefficient(number + 1, channel, n)

    def for_vectors(self, body: Callable[[Expr, int], list[Stmt]]) -> list[Stmt]:
        """Return statements for `(first channel, number of channels)` of each vector."""
        return loop(
            self._blocks,
            lambda block: [
                statement
                for offset, n in self._vectors
                for statement in body(block * self._block + offset, n)
            ],
        )

    def sums(self, summands: Callable[[Expr, Expr, int], tuple[Expr, Expr]]) -> list[Stmt]:
        """Return a pass that sums two values of `(row, first channel, number of channels)`."""

        def add(row: Expr, channel: Expr) -> list[Stmt]:
            statements = []
            for at, (offset, n) in enumerate(self._vectors):
                for number, value in enumerate(summands(row, channel + offset, n)):
                    statements.append(self._sums.add(2 * at + number, value, n))
            return statements

        def task(index: Expr) -> list[Stmt]:
            chunk = tirx.truncdiv(index, self._blocks)
            channel = tirx.truncmod(index, self._blocks) * self._block
            statements = self._sums.allocate()
            for at, (_, n) in enumerate(self._vectors):
                for number in range(2):
                    statements.append(self._sums.store(2 * at + number, broadcast(0.0, n), n))
            statements += self._chunk_rows(chunk, lambda row: add(row, channel))
            for at, (offset, n) in enumerate(self._vectors):
                for number in range(2):
                    target = self._chunk_sum(chunk, number, channel + offset)
                    value = self._sums.load(2 * at + number, n)
                    statements.append(self.scratch.store(target, value, n))
            return statements

        return loop(self._chunks * self._blocks, task)

    def for_channels(self, finish: Callable[[Expr, int, Expr, Expr], list[Stmt]]) -> list[Stmt]:
        """Return statements for `(first channel, number of channels, total of each sum)`."""

        def vector(channel: Expr, n: int) -> list[Stmt]:
            totals = VectorRegisters("total", 2, n)
            statements = totals.allocate()
            statements += [totals.store(number, broadcast(0.0, n), n) for number in range(2)]
            statements += loop(
                self._chunks,
                lambda chunk: [
                    totals.add(
                        number, self.scratch.load(self._chunk_sum(chunk, number, channel), n), n
                    )
                    for number in range(2)
                ],
            )
            return statements + finish(channel, n, totals.load(0, n), totals.load(1, n))

        return self.for_vectors(vector)

    def for_rows(self, result: Callable[[Expr, Expr, int], Stmt]) -> list[Stmt]:
        """Return a pass for `(row, first channel, number of channels)`, the last chunk first."""

        def task(index: Expr) -> list[Stmt]:
            return self._chunk_rows(
                self._chunks - 1 - index,
                lambda row: self.for_vectors(lambda channel, n: [result(row, channel, n)]),
            )

        return loop(self._chunks, task)

    def _chunk_sum(self, chunk: Expr, number: int, channel: Expr) -> Expr:
        return (_COEFFICIENTS + 2 * chunk + number) * self._channels + channel

    def _chunk_rows(self, chunk: Expr, body: Callable[[Expr], list[Stmt]]) -> list[Stmt]:
        first = chunk * CHUNK_ROWS
        count = tirx.min(CHUNK_ROWS, self._rows - first)
        return loop(count, lambda i: bind(first + i, body))
