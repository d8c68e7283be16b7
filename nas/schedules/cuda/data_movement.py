"""Kernels that move or average tensors: concatenation, shuffle, copies and global pooling."""

from __future__ import annotations

from tvm import tirx

from nas.latency.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import Body
from nas.schedules.cuda.grid import Expr, Grid, Stmt, Tensor
from nas.schedules.templates import Schedule


def global_pool(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """The mean over height and width.

    The schedule has `vectors` of channels of a block, of `bytes` at most, and `slices`: threads
    that share the pixels of each. They leave their sums in shared memory, where the first threads
    add them up.
    """
    operand = kernel.inputs[0]
    total, height, width = operand.shape
    pixels, channels = height * width, operand.channels
    body = Body(kernel, dtype)
    wide = body.width(total, operand.start, most=schedule["bytes"])
    vectors, slices = min(schedule["vectors"], channels // wide), schedule["slices"]
    launch = Grid((-(-channels // (vectors * wide)), 1, 1), (vectors, slices, 1))
    lane, part, _ = launch.thread
    channel = (launch.block[0] * vectors + lane) * wide
    exists = None if channels % (vectors * wide) == 0 else channel < channels
    allocation, sums = body.registers.make(wide)
    shared = Tensor("shared_sums", slices * vectors * wide, "float32", "shared")
    found = [shared.allocate(), allocation, *(sums.put(v, grid.real(0)) for v in range(wide))]

    def add(turn: Expr) -> list[Stmt]:
        pixel = turn * slices + part
        at = pixel * total + operand.start + channel
        inside = None if pixels % slices == 0 else pixel < pixels
        read, values = body.registers.read(body.inputs[0], at, wide, grid.every(exists, inside))
        return read + [sums.put(v, sums.load(v) + value) for v, value in enumerate(values)]

    found += grid.loop(-(-pixels // slices), add)
    own = (part * vectors + lane) * wide
    found += [shared.put(own + v, sums.load(v)) for v in range(wide)]
    found.append(grid.barrier())
    means = []
    for v in range(wide):
        value = shared.load(lane * wide + v)
        for other in range(1, slices):
            value = value + shared.load((other * vectors + lane) * wide + v)
        means.append(value * grid.real(1 / pixels))
    first = None if slices == 1 else part == 0
    found += grid.when(grid.every(first, exists), body.finish(means, 0, channel))
    return body.function(launch, found, name)


def concat(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """Concatenation, channel shuffle and epilogue in one pass, a thread a few channels of a pixel.

    A shuffle of g groups interleaves: output channel `i * g + j` is channel `i` of group `j`, so a
    vector of each group becomes g vectors of output. The schedule has `threads` of a block and
    `bytes` of a vector at most.
    """
    channels, height, width = kernel.output
    body = Body(kernel, dtype)
    groups = kernel.shuffle_groups
    per_group = channels // groups
    starts = _starts(kernel)
    # A vector lies in one input, wherever it starts.
    edges = [edge - group * per_group for group in range(groups) for edge in (*starts, channels)]
    sources = [n for operand in kernel.inputs for n in (operand.shape[0], operand.start)]
    wide = grid.vector_width(dtype, per_group, *edges, *sources, most=schedule["bytes"])
    vectors = per_group // wide
    launch, item, exists = grid.flat_grid(vectors * height * width, schedule["threads"])
    pixel, index = item // vectors, item % vectors * wide
    found: list[Stmt] = []
    parts: list[list[Expr]] = []
    for group in range(groups):
        allocation, register = body.registers.make(wide, dtype)
        value = _source(body, pixel, index, group * per_group, per_group, wide, starts)
        found += [allocation, register.store(0, value, wide)]
        parts.append([register.real(i) for i in range(wide)])
    mixed = [parts[j][i] for i in range(wide) for j in range(groups)]
    step = body.width(wide * groups)
    for at in range(0, len(mixed), step):
        found += body.finish(mixed[at : at + step], pixel, index * groups + at)
    return body.function(launch, grid.when(exists, found), name)


def _starts(kernel: Kernel) -> list[int]:
    """The channel of the concatenation with which each input begins."""
    found = [0]
    for operand in kernel.inputs[:-1]:
        found.append(found[-1] + operand.channels)
    return found


def _source(
    body: Body,
    pixel: Expr,
    index: Expr,
    offset: int,
    extent: int,
    wide: int,
    starts: list[int],
) -> Expr:
    """`wide` channels of the concatenation from `offset + index` on; `index` is below `extent`."""
    value = None
    for tensor, operand, start in reversed(
        list(zip(body.inputs, body.kernel.inputs, starts, strict=True))
    ):
        if start >= offset + extent or start + operand.channels <= offset:
            continue
        at = pixel * operand.shape[0] + operand.start + (offset - start) + index
        loaded = tensor.load(at, wide)
        stop = start + operand.channels - offset
        value = loaded if value is None else grid.chosen(index < stop, loaded, value)
    return value
