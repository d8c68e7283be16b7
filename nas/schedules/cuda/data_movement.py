"""Kernels that move or average tensors: concatenation, shuffle, copy and global pooling."""

from __future__ import annotations

from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.body import KernelBody
from nas.schedules.cuda.grid import Grid
from nas.schedules.templates import Schedule
from nas.schedules.tir import Buffer, Expr, Stmt, all_of, broadcast, loop, run_if, select


def global_pool(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """Return the TIR function of the mean over height and width.

    Threads that share the pixels of a channel leave their sums in shared memory, where the first of
    them adds the sums up.

    Args:
        kernel: kernel to write.
        schedule: `vectors` of channels of a block, of at most `bytes` each; and `slices`, threads
            that share the pixels of a vector.
        dtype: type of the activations.
        name: symbol of the function.
    """
    operand = kernel.inputs[0]
    total_channels, height, width = operand.shape
    pixels, channels = height * width, operand.channels
    body = KernelBody(kernel, dtype)
    lanes = body.channel_vector(total_channels, operand.start, max_bytes=schedule["bytes"])
    vectors, slices = min(schedule["vectors"], channels // lanes), schedule["slices"]
    launch = Grid((-(-channels // (vectors * lanes)), 1, 1), (vectors, slices, 1))
    vector, part, _ = launch.thread
    channel = (launch.block[0] * vectors + vector) * lanes
    exists = None if channels % (vectors * lanes) == 0 else channel < channels
    allocation, sums = body.registers.allocate(lanes)
    shared = Buffer("shared_sums", slices * vectors * lanes, scope="shared")
    statements = [shared.allocate(), allocation]
    statements += [sums.store_float32(v, broadcast(0)) for v in range(lanes)]

    def add_pixel(iteration: Expr) -> list[Stmt]:
        pixel = iteration * slices + part
        at = pixel * total_channels + operand.start + channel
        inside = None if pixels % slices == 0 else pixel < pixels
        loads, values = body.registers.load(body.inputs[0], at, lanes, all_of(exists, inside))
        return loads + [sums.store_float32(v, sums.load(v) + x) for v, x in enumerate(values)]

    statements += loop(-(-pixels // slices), add_pixel)
    own = (part * vectors + vector) * lanes
    statements += [shared.store_float32(own + v, sums.load(v)) for v in range(lanes)]
    statements.append(grid.barrier())
    means = []
    for v in range(lanes):
        total = shared.load(vector * lanes + v)
        for other in range(1, slices):
            total = total + shared.load((other * vectors + vector) * lanes + v)
        means.append(total * broadcast(1 / pixels))
    is_first_slice = None if slices == 1 else part == 0
    store = body.store_result(means, 0, channel)
    return body.function(launch, statements + run_if(all_of(is_first_slice, exists), store), name)


def concat(kernel: Kernel, schedule: Schedule, dtype: str, name: str) -> tirx.PrimFunc:
    """Return the TIR function of concatenation, channel shuffle and epilogue in one pass.

    Each thread moves a few channels of one pixel. A shuffle of g groups interleaves them: output
    channel `i * g + j` is channel `i` of group `j`, so one vector of each group becomes g vectors
    of the output.

    Args:
        kernel: `concat` of several inputs, or `copy` of one.
        schedule: `threads` of a block, and `bytes` of a vector at most.
        dtype: type of the activations.
        name: symbol of the function.
    """
    channels, height, width = kernel.output
    body = KernelBody(kernel, dtype)
    groups = kernel.shuffle_groups
    channels_per_group = channels // groups
    starts = _input_starts(kernel)
    # These extents keep every vector inside one input.
    boundaries = [
        boundary - group * channels_per_group
        for group in range(groups)
        for boundary in (*starts, channels)
    ]
    inputs = [n for operand in kernel.inputs for n in (operand.shape[0], operand.start)]
    lanes = grid.vector_width(
        dtype, channels_per_group, *boundaries, *inputs, max_bytes=schedule["bytes"]
    )
    vectors = channels_per_group // lanes
    launch, item, exists = grid.linear_grid(vectors * height * width, schedule["threads"])
    pixel, channel = item // vectors, item % vectors * lanes
    statements: list[Stmt] = []
    parts: list[list[Expr]] = []
    for group in range(groups):
        allocation, array = body.registers.allocate(lanes, dtype)
        value = _load_concatenated(
            body, pixel, channel, group * channels_per_group, channels_per_group, lanes, starts
        )
        statements += [allocation, array.store(0, value, lanes)]
        parts.append([array.load_float32(i) for i in range(lanes)])
    shuffled = [parts[j][i] for i in range(lanes) for j in range(groups)]
    store_width = body.channel_vector(lanes * groups)
    for at in range(0, len(shuffled), store_width):
        values = shuffled[at : at + store_width]
        statements += body.store_result(values, pixel, channel * groups + at)
    return body.function(launch, run_if(exists, statements), name)


def _input_starts(kernel: Kernel) -> list[int]:
    """Return the channel of the concatenation at which each input begins."""
    starts = [0]
    for operand in kernel.inputs[:-1]:
        starts.append(starts[-1] + operand.channels)
    return starts


def _load_concatenated(
    body: KernelBody,
    pixel: Expr,
    channel: Expr,
    offset: int,
    extent: int,
    width: int,
    starts: list[int],
) -> Expr:
    """Return a vector of consecutive channels of the concatenated inputs.

    Args:
        body: body of the kernel.
        pixel: index of the pixel.
        channel: first channel, counted from `offset`; less than `extent`.
        offset: first channel of the group.
        extent: channels of the group.
        width: channels of the vector, all in one input.
        starts: first channel of each input.
    """
    value = None
    for buffer, operand, start in reversed(
        list(zip(body.inputs, body.kernel.inputs, starts, strict=True))
    ):
        if start >= offset + extent or start + operand.channels <= offset:
            continue
        at = pixel * operand.shape[0] + operand.start + (offset - start) + channel
        loaded = buffer.load(at, width)
        stop = start + operand.channels - offset
        value = loaded if value is None else select(channel < stop, loaded, value)
    return value
