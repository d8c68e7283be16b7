"""Kernels that move or average tensors: concatenation, shuffle, copy and global pooling."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cpu.loop_nest import LoopNest, flattened_pixels
from nas.schedules.cpu.loops import VectorRegisters, split_into_vectors, tiled_loop
from nas.schedules.templates import Schedule
from nas.schedules.tir import Expr, Stmt, broadcast, loop, sequence


def global_pool(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """Return the TIR function of the mean over height and width.

    The loops, from the outermost: tiles of channels, pixels, register tile (unrolled).

    Args:
        kernel: kernel to write.
        schedule: `channels` (vectors) of a register tile.
        lanes: float32 elements of a vector.
        threads: number of threads that share the outermost loop.
        name: symbol of the function.
    """
    operand = kernel.inputs[0]
    total_channels, height, width = operand.shape

    def tile(loop_nest: LoopNest, channel: Expr, count: int) -> list[Stmt]:
        vectors = split_into_vectors(count, lanes)
        registers = VectorRegisters("acc", len(vectors), lanes)
        statements = registers.allocate()
        for v, (_, n) in enumerate(vectors):
            statements.append(registers.store(v, broadcast(0.0, n), n))

        def add_pixel(pixel: Expr) -> list[Stmt]:
            at = pixel * total_channels + operand.start + channel
            return [
                registers.add(v, loop_nest.inputs[0].load(at + offset, n), n)
                for v, (offset, n) in enumerate(vectors)
            ]

        statements += loop(height * width, add_pixel)
        for v, (offset, n) in enumerate(vectors):
            mean = registers.load(v, n) * broadcast(1.0 / (height * width), n)
            statements.append(loop_nest.store_result(mean, 0, channel + offset, n))
        return [sequence(statements)]

    def image(loop_nest: LoopNest) -> list[Stmt]:
        return tiled_loop(
            operand.channels,
            schedule["channels"] * lanes,
            lambda channel, count: tile(loop_nest, channel, count),
            parallel=loop_nest.is_parallel,
        )

    return LoopNest(kernel, lanes, threads).function(image, name)


def concat(kernel: Kernel, lanes: int, threads: int, name: str) -> tirx.PrimFunc:
    """Return the TIR function of concatenation, channel shuffle and epilogue in one pass.

    The loop over pixels is the only one; channels are unrolled. A shuffle of g groups interleaves
    them: output channel `i * g + j` is channel `i` of group `j`, so one vector of each group
    becomes g vectors of the output.

    Args:
        kernel: `concat` of several inputs, or `copy` of one.
        lanes: float32 elements of a vector.
        threads: number of threads that share the loop over pixels.
        name: symbol of the function.
    """
    groups = kernel.shuffle_groups
    runs = _runs(kernel, lanes)
    origins = _origins(kernel)
    channels_per_group = kernel.output[0] // groups

    def move_pixel(loop_nest: LoopNest, pixel: Expr) -> list[Stmt]:
        statements = []
        for start, n in runs:
            parts = []
            for j in range(groups):
                position, channel = origins[j * channels_per_group + start]
                total_channels = kernel.inputs[position].shape[0]
                parts.append(loop_nest.inputs[position].load(pixel * total_channels + channel, n))
            for v, value in enumerate(_interleave(parts, n)):
                statements.append(loop_nest.store_result(value, pixel, start * groups + v * n, n))
        return statements

    def image(loop_nest: LoopNest) -> list[Stmt]:
        return loop(
            flattened_pixels(kernel),
            lambda pixel: move_pixel(loop_nest, pixel),
            parallel=loop_nest.is_parallel,
        )

    return LoopNest(kernel, lanes, threads).function(image, name)


def _origins(kernel: Kernel) -> list[tuple[int, int]]:
    """Return where each concatenated channel comes from: `(input, channel of its tensor)`."""
    return [
        (position, channel)
        for position, operand in enumerate(kernel.inputs)
        for channel in range(operand.start, operand.stop)
    ]


def _runs(kernel: Kernel, lanes: int) -> list[tuple[int, int]]:
    """Return `(start, count)` of runs of channels that each group reads as one vector.

    In every group, the channels of a run lie side by side in one input.
    """
    groups = kernel.shuffle_groups
    channels_per_group = kernel.output[0] // groups
    origins = _origins(kernel)

    def run_length(start: int) -> int:
        longest = min(lanes, channels_per_group - start)
        if groups > 2 and longest > 1:
            # `_interleave` halves the vectors of more than two groups.
            longest -= longest % 2
        for n in range(1, longest):
            if any(
                origins[j * channels_per_group + start + n][0]
                != origins[j * channels_per_group + start][0]
                for j in range(groups)
            ):
                return n
        return longest

    runs: list[tuple[int, int]] = []
    start = 0
    while start < channels_per_group:
        runs.append((start, run_length(start)))
        start += runs[-1][1]
    return runs


def _interleave(parts: Sequence[Expr], n: int) -> list[Expr]:
    """Return vectors of the first elements of all parts, then of the second ones, and so on.

    A permutation instruction reads two vectors, and so does each step here. An even number of parts
    is split into two halves, which are interleaved by themselves and then with each other. The
    parts of an odd number are inserted one after the other.

    Args:
        parts: vectors of `n` elements; an even number, unless there is one part or `n` is 1.
        n: elements of each vector.

    Returns:
        As many vectors of `n` elements as there are parts.
    """
    count = len(parts)
    if count == 1:
        return list(parts)
    if count % 2 == 0 and n % 2 == 0:
        even, odd = _interleave(parts[::2], n), _interleave(parts[1::2], n)
        order = [n * j + i for i in range(n) for j in range(2)]
        return [
            tirx.Shuffle([first, second], half)
            for first, second in zip(even, odd, strict=True)
            for half in (order[:n], order[n:])
        ]
    results = []
    for start in range(0, count * n, n):
        mixed = parts[0]
        # Element and part that each element of the result comes from.
        sources = [divmod(position, count) for position in range(start, start + n)]
        for j in range(1, count):
            order = [n + i if part == j else k for k, (i, part) in enumerate(sources)]
            if j == 1:
                order = [n + i if part == 1 else i for i, part in sources]
            mixed = tirx.Shuffle([mixed, parts[j]], order)
        results.append(mixed)
    return results
