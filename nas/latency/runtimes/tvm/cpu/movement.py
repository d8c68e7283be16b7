"""Kernels that move or average tensors: concatenation, shuffle, copies and global pooling."""

from __future__ import annotations

from tvm import tirx

from nas.latency.kernel import Kernel
from nas.latency.runtimes.tvm.cpu import loops
from nas.latency.runtimes.tvm.cpu.loops import Expr, Registers, Stmt
from nas.latency.runtimes.tvm.cpu.nest import Nest, joined_pixels, spans
from nas.latency.runtimes.tvm.templates import Schedule


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
        longest = min(max(lanes // groups, 1) if groups > 2 else lanes, per_group - channel)
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
            if groups == 1:
                found.append(nest.finish(parts[0], p, start, n))
                continue
            order = [j * n + i for i in range(n) for j in range(groups)]
            mixed = tirx.Shuffle(parts, order)
            found.append(nest.finish(mixed, p, start * groups, n * groups))
        return found

    def image(nest: Nest) -> list[Stmt]:
        pixels = joined_pixels(kernel)
        return loops.loop(pixels, lambda p: pixel(nest, p), parallel=nest.parallel)

    return Nest(kernel, lanes, threads).function(image, name)
