"""Kernels that move or average tensors: concatenation, shuffle, copies and global pooling."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cpu import loops
from nas.schedules.cpu.loop_nest import Nest, joined_pixels, spans
from nas.schedules.cpu.loops import Expr, Registers, Stmt
from nas.schedules.templates import Schedule


def global_pool(
    kernel: Kernel, schedule: Schedule, lanes: int, threads: int, name: str
) -> tirx.PrimFunc:
    """The mean over height and width; the schedule has `channels` (vectors) of a register tile."""
    operand = kernel.inputs[0]
    total, height, width = operand.shape

    def tile(nest: Nest, channel: Expr, count: int) -> list[Stmt]:
        parts = loops.vectors(count, lanes)
        registers = Registers("acc", len(parts), lanes)
        found = registers.allocate()
        found += [registers.store(v, loops.spread(0.0, n), n) for v, (_, n) in enumerate(parts)]

        def pixel(p: Expr) -> list[Stmt]:
            at = p * total + operand.start + channel
            return [
                registers.store(
                    v,
                    registers.load(v, n) + nest.inputs[0].load(at + offset, n),
                    n,
                )
                for v, (offset, n) in enumerate(parts)
            ]

        found += loops.loop(height * width, pixel)
        for v, (offset, n) in enumerate(parts):
            mean = registers.load(v, n) * loops.spread(1.0 / (height * width), n)
            found.append(nest.finish(mean, 0, channel + offset, n))
        return [loops.sequence(found)]

    def image(nest: Nest) -> list[Stmt]:
        size = schedule["channels"] * lanes
        return spans(operand.channels, size, lambda c, n: tile(nest, c, n), parallel=nest.parallel)

    return Nest(kernel, lanes, threads).function(image, name)


def concat(kernel: Kernel, lanes: int, threads: int, name: str) -> tirx.PrimFunc:
    """Concatenation, channel shuffle and epilogue in one pass over the pixels.

    A shuffle of g groups interleaves: output channel `i * g + j` is channel `i` of group `j`, so a
    vector of each group becomes g vectors of output.
    """
    groups = kernel.shuffle_groups
    per_group = kernel.output[0] // groups
    # Where each concatenated channel comes from: (input, channel of that input's tensor).
    origin = [
        (position, channel)
        for position, operand in enumerate(kernel.inputs)
        for channel in range(operand.start, operand.stop)
    ]

    def run_length(channel: int) -> int:
        """Channels of each group, from `channel` on, that lie side by side in one input."""
        longest = min(lanes, per_group - channel)
        if groups > 2 and longest > 1:
            longest -= longest % 2
        for n in range(1, longest):
            if any(
                origin[j * per_group + channel + n][0] != origin[j * per_group + channel][0]
                for j in range(groups)
            ):
                return n
        return longest

    pieces = []
    channel = 0
    while channel < per_group:
        pieces.append((channel, run_length(channel)))
        channel += pieces[-1][1]

    def pixel(nest: Nest, p: Expr) -> list[Stmt]:
        found = []
        for start, n in pieces:
            parts = []
            for j in range(groups):
                position, at = origin[j * per_group + start]
                tensor, total = nest.inputs[position], kernel.inputs[position].shape[0]
                parts.append(tensor.load(p * total + at, n))
            for v, mixed in enumerate(_interleaved(parts, n)):
                found.append(nest.finish(mixed, p, start * groups + v * n, n))
        return found

    def image(nest: Nest) -> list[Stmt]:
        pixels = joined_pixels(kernel)
        return loops.loop(pixels, lambda p: pixel(nest, p), parallel=nest.parallel)

    return Nest(kernel, lanes, threads).function(image, name)


def _interleaved(parts: Sequence[Expr], n: int) -> list[Expr]:
    """The first elements of all parts, then the second ones and so on, in as many vectors.

    A processor's permutation reads two vectors. Each step here does, too: an even number of parts
    is two halves, each interleaved by itself and then with the other; an odd number is put in one
    after the other.

    Args:
        parts: vectors of `n` elements; an even number, unless there is one part or `n` is 1.
        n: elements of each.
    """
    count = len(parts)
    if count == 1:
        return list(parts)
    if count % 2 == 0 and n % 2 == 0:
        even, odd = _interleaved(parts[::2], n), _interleaved(parts[1::2], n)
        order = [n * j + i for i in range(n) for j in range(2)]
        return [
            tirx.Shuffle([first, second], half)
            for first, second in zip(even, odd, strict=True)
            for half in (order[:n], order[n:])
        ]
    found = []
    for start in range(0, count * n, n):
        mixed = parts[0]
        # Where each element comes from; those of a later part are put in when it is its turn.
        sources = [divmod(place, count) for place in range(start, start + n)]
        for j in range(1, count):
            order = [n + i if part == j else k for k, (i, part) in enumerate(sources)]
            if j == 1:
                order = [n + i if part == 1 else i for i, part in sources]
            mixed = tirx.Shuffle([mixed, parts[j]], order)
        found.append(mixed)
    return found
