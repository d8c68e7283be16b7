"""Which schedules are measured for a kernel on a GPU.

One image is little work for a GPU, so the size of tiles is a trade-off: large tiles read less,
small ones give more blocks that can run at once. The sweep goes through tile shapes, lets slices of
threads share the reduction where there are few threads, and then varies the best schedule. The
numbers here only decide what is worth measuring; schedules are compared by their measured latency.
"""

from __future__ import annotations

from typing import Any

from nas.kernels.kernel import Kernel
from nas.schedules.cuda import dense, depthwise, fused_expansion, grid, matrix_vector
from nas.schedules.cuda.body import KernelBody
from nas.schedules.cuda.matrix_product import SCHEDULE_KEYS
from nas.schedules.templates import balanced

DENSE_TILES = (
    (128, 64, 8, 8),
    (64, 64, 4, 8),
    (64, 32, 4, 4),
    (32, 64, 4, 4),
    (32, 32, 4, 4),
    (32, 16, 4, 2),
    (16, 32, 2, 4),
    (16, 16, 2, 2),
)
"""Pixels and channels of a block, and pixels and channels of each of its threads."""

EXPANSION_TILES = (
    (8, 8, 32, 16),
    (4, 8, 32, 16),
    (4, 8, 64, 16),
    (4, 4, 32, 8),
    (2, 4, 32, 8),
    (2, 2, 16, 8),
)
"""Rows and columns of output pixels and channels of a block, and rows of its threads."""

MAX_PADDING_RATIO = 1.4
"""Largest size of all tiles together, padding included, over that of the tiles with least padding.

Tiles with more padding are not measured.
"""

MAX_DENSE_CANDIDATES = 5
"""Most tile shapes of a dense kernel that are measured first."""

MAX_EXPANSION_CANDIDATES = 4
"""Most tile shapes of a depthwise convolution with an expansion that are measured."""

MIN_THREADS = 1 << 15
"""Fewest threads that fill a GPU, about 256 on each of 128 multiprocessors.

With fewer, slices of threads share the reduction.
"""

MAX_THREAD_PIXELS = 20
"""Most pixels of the expanded tensor that a thread keeps in registers, with four channels each."""

MAX_SLICED_BLOCK_THREADS = 512
"""Most threads of a block whose slices share the reduction.

Blocks with more threads fit less well on a multiprocessor.
"""

MIN_DEPTH = 8
"""Smallest chunk of the reduction, in steps."""


def first_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    """Return the schedules to measure first; at least one.

    Args:
        kernel: kernel to find a schedule for.
        dtype: type of weights and activations.
    """
    if kernel.is_expanded:
        return _expansion_candidates(kernel, dtype)
    if kernel.is_channelwise:
        return _window_candidates(kernel, dtype)
    if matrix_vector.applies(kernel):
        return _matrix_vector_candidates(kernel, dtype)
    if kernel.has_weights:
        return _dense_candidates(kernel, dtype)
    if kernel.kind == "global_pool":
        return _global_pool_candidates(kernel, dtype)
    return [{"threads": 256, "bytes": 16}, {"threads": 128, "bytes": 8}]


def refinements(kernel: Kernel, best: dict[str, Any], dtype: str) -> list[dict[str, Any]]:
    """Return variations of the fastest first candidate to measure next; there may be none."""
    if kernel.is_expanded:
        return [{**best, "depth": 8}] if kernel.inputs[0].channels % 16 else []
    if kernel.is_channelwise or kernel.kind in ("concat", "copy"):
        return [{**best, "threads": 64}]
    if matrix_vector.applies(kernel):
        return [{**best, "rows": 2 * best["rows"]}] if best["rows"] < kernel.output[0] else []
    if not kernel.has_weights:
        return []
    varied = [
        {**best, "slices": 2 * best["slices"]},
        {**best, "slices": best["slices"] // 2},
        {**best, "depth": 2 * best["depth"]},
        {**best, "depth": best["depth"] // 2},
    ]
    return [schedule for schedule in varied if _dense_fits(kernel, schedule, dtype)]


def _dense_fits(kernel: Kernel, schedule: dict[str, Any], dtype: str) -> bool:
    """Return whether a dense schedule is possible, and leaves no slice without work."""
    if schedule["slices"] < 1 or schedule["depth"] < MIN_DEPTH:
        return False
    t = dense.tiling(kernel, schedule, dtype)
    threads_x, threads_y, slices = t.threads
    threads = threads_x * threads_y * slices
    if threads > (grid.MAX_BLOCK_THREADS if slices == 1 else MAX_SLICED_BLOCK_THREADS):
        return False
    has_idle_slice = t.depth * (slices - 1) >= t.reduction and slices > 1
    return t.shared_bytes <= grid.MAX_SHARED_BYTES and not has_idle_slice


def _dense_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    reduction = kernel.inputs[0].channels // kernel.groups * kernel.kernel**2
    depth = MIN_DEPTH if reduction <= MIN_DEPTH else 2 * MIN_DEPTH
    padded_sizes: list[tuple[int, dict[str, Any]]] = []
    for pixels, channels, rows, columns in DENSE_TILES:
        values = (pixels, channels, rows, columns, depth, 1)
        schedule: dict[str, Any] = dict(zip(SCHEDULE_KEYS, values, strict=True))
        t = dense.tiling(kernel, schedule, dtype)
        blocks_x, blocks_y, groups = t.blocks
        padded_size = blocks_x * channels * blocks_y * pixels
        threads_x, threads_y, _ = t.threads
        threads = blocks_x * blocks_y * groups * threads_x * threads_y
        while threads * schedule["slices"] < MIN_THREADS:
            with_more_slices = {**schedule, "slices": 2 * schedule["slices"]}
            if not _dense_fits(kernel, with_more_slices, dtype):
                break
            schedule = with_more_slices
        if _dense_fits(kernel, schedule, dtype):
            padded_sizes.append((padded_size, schedule))
    limit = MAX_PADDING_RATIO * min(size for size, _ in padded_sizes)
    schedules = [schedule for size, schedule in padded_sizes if size <= limit]
    # The smallest tiles come last. Of those, a small image gives the most blocks.
    return schedules[-MAX_DENSE_CANDIDATES:]


def _expansion_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    _, height, width = kernel.output
    schedules: dict[tuple[int, int, int], dict[str, Any]] = {}
    for max_rows, max_columns, channels, thread_rows in EXPANSION_TILES:
        rows, columns = balanced(height, max_rows), balanced(width, max_columns)
        schedule = {
            "high": rows,
            "wide": columns,
            "channels": channels,
            "along": thread_rows,
            "depth": 16,
        }
        thread_pixels = fused_expansion.tiling(kernel, schedule, dtype).rows
        fits = fused_expansion.shared_bytes(kernel, schedule, dtype) <= grid.MAX_SHARED_BYTES
        if fits and thread_pixels <= MAX_THREAD_PIXELS:
            # On a small image, several tiles are balanced to the same size.
            schedules.setdefault((rows, columns, channels), schedule)
    return list(schedules.values())[:MAX_EXPANSION_CANDIDATES]


def _matrix_vector_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    vectors = -(-kernel.inputs[0].channels // matrix_vector.vector_width(kernel, dtype))
    return [
        {"lanes": lanes, "rows": 4 * grid.WARP_THREADS // lanes}
        for lanes in (32, 16, 8)
        # With twice as many lanes as vectors or more, half of the lanes are idle.
        if lanes == 8 or lanes < 2 * vectors
    ]


def _window_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    schedules: dict[tuple[int, int], dict[str, Any]] = {}
    for max_columns, max_bytes in ((1, 16), (2, 16), (4, 16), (4, 8), (7, 8)):
        columns = balanced(kernel.output[2], max_columns)
        lanes = depthwise.channel_vector(kernel, dtype, max_bytes)
        schedule = {"columns": columns, "bytes": max_bytes, "threads": 128}
        schedules.setdefault((columns, lanes), schedule)
    return list(schedules.values())


def _global_pool_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    operand = kernel.inputs[0]
    pixels = operand.shape[1] * operand.shape[2]
    lanes = KernelBody(kernel, dtype).channel_vector(operand.shape[0], operand.start)
    max_vectors = -(-operand.channels // lanes)
    slices = min(16, 1 << max(0, (pixels - 1).bit_length()))
    return [
        {"vectors": vectors, "slices": slices, "bytes": 16}
        for vectors in dict.fromkeys(min(n, max_vectors) for n in (8, 16, 32))
    ]
