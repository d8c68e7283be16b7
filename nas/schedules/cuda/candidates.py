"""Which schedules are tried for a kernel on a GPU.

One image is little work for a GPU, so tiles are a trade: large ones read less, small ones give more
blocks to share. The sweep walks tile shapes, shares the reduction where blocks are few, then varies
the best. Schedules are compared by their measured time only; the numbers here decide what is worth
measuring.
"""

from __future__ import annotations

from typing import Any

from nas.latency.kernel import Kernel
from nas.schedules.cuda import dense, depthwise, fused_expansion, grid, vector
from nas.schedules.cuda.body import Body
from nas.schedules.cuda.matrix_product import SIZES

TILES = (
    (128, 64, 8, 8),
    (64, 64, 4, 8),
    (64, 32, 4, 4),
    (32, 64, 4, 4),
    (32, 32, 4, 4),
    (32, 16, 4, 2),
    (16, 32, 2, 4),
    (16, 16, 2, 2),
)
"""Pixels x channels of a block, and rows x columns of each of its threads."""

LARGEST_WASTE = 1.4
"""Tiles that fill up pixels and channels by more than this, against the best, are not tried."""

MOST_TILES = 5
"""Tile shapes that are timed first."""

ENOUGH_THREADS = 1 << 15
"""Some 256 threads on each of 128 multiprocessors: with fewer, slices share the reduction."""

MOST_ROWS = 20
"""Of pixels that a thread of an expanded kernel keeps in registers, four channels each."""

MOST_SLICED_THREADS = 512
"""In a block whose reduction is shared; more of them fit less well on a multiprocessor."""


def first_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    """Schedules to time first; at least one."""
    if kernel.is_expanded:
        return _expanded_candidates(kernel, dtype)
    if kernel.is_channelwise:
        return _window_candidates(kernel, dtype)
    if vector.fits(kernel):
        return _vector_candidates(kernel, dtype)
    if kernel.has_weights:
        return _dense_candidates(kernel, dtype)
    if kernel.kind == "global_pool":
        return _pool_candidates(kernel, dtype)
    return [{"threads": 256, "bytes": 16}, {"threads": 128, "bytes": 8}]


def refinements(kernel: Kernel, best: dict[str, Any], dtype: str) -> list[dict[str, Any]]:
    """Variations of the best schedule so far that are worth timing."""
    if kernel.is_expanded:
        return [{**best, "depth": 8}] if kernel.inputs[0].channels % 16 else []
    if kernel.is_channelwise or kernel.kind in ("concat", "copy"):
        return [{**best, "threads": 64}]
    if vector.fits(kernel):
        return [{**best, "rows": 2 * best["rows"]}] if best["rows"] < kernel.output[0] else []
    if not kernel.has_weights:
        return []
    varied = [
        {**best, "slices": 2 * best["slices"]},
        {**best, "slices": best["slices"] // 2},
        {**best, "depth": 2 * best["depth"]},
        {**best, "depth": best["depth"] // 2},
    ]
    return [each for each in varied if _fits(kernel, each, dtype)]


def _fits(kernel: Kernel, schedule: dict[str, Any], dtype: str) -> bool:
    """Whether a dense schedule is possible, and no slice would be left without work."""
    if schedule["slices"] < 1 or schedule["depth"] < 8:
        return False
    t = dense.tiling(kernel, schedule, dtype)
    across, along, slices = t.threads
    threads = across * along * slices
    if threads > (grid.MOST_THREADS if slices == 1 else MOST_SLICED_THREADS):
        return False
    idle = t.depth * (slices - 1) >= t.reduction and slices > 1
    return t.shared_bytes <= grid.SHARED_BYTES and not idle


def _dense_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    reduction = kernel.inputs[0].channels // kernel.groups * kernel.kernel**2
    depth = 8 if reduction <= 8 else 16
    found: list[tuple[int, dict[str, Any]]] = []
    for pixels, channels, rows, columns in TILES:
        sizes = (pixels, channels, rows, columns, depth, 1)
        schedule = dict(zip(SIZES, sizes, strict=True))
        t = dense.tiling(kernel, schedule, dtype)
        across, down, groups = t.blocks
        waste = across * channels * down * pixels
        along, high, _ = t.threads
        threads = across * down * groups * along * high
        while threads * schedule["slices"] < ENOUGH_THREADS:
            more = {**schedule, "slices": 2 * schedule["slices"]}
            if not _fits(kernel, more, dtype):
                break
            schedule = more
        if _fits(kernel, schedule, dtype):
            found.append((waste, schedule))
    least = min(waste for waste, _ in found)
    kept = [schedule for waste, schedule in found if waste <= LARGEST_WASTE * least]
    # The smaller of equally wasteful tiles come last, and more of them fit a small image.
    return kept[-MOST_TILES:]


def _expanded_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    """Tiles of pixels and channels, the largest first; small images take fewer pixels anyway."""
    _, height, width = kernel.output
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for high, wide, channels, along in (
        (8, 8, 32, 16), (4, 8, 32, 16), (4, 8, 64, 16), (4, 4, 32, 8), (2, 4, 32, 8), (2, 2, 16, 8),
    ):  # fmt: skip
        # Equal tiles that cover the image in as few as these would.
        high, wide = -(-height // -(-height // high)), -(-width // -(-width // wide))
        schedule = {
            "high": high, "wide": wide, "channels": channels, "along": along, "depth": 16,
        }  # fmt: skip
        rows = fused_expansion.tiling(kernel, schedule, dtype).rows
        fits = fused_expansion.shared_bytes(kernel, schedule, dtype) <= grid.SHARED_BYTES
        if fits and rows <= MOST_ROWS:
            found.setdefault((high, wide, channels), schedule)
    return list(found.values())[:4]


def _vector_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    turns = -(-kernel.inputs[0].channels // vector.vector_width(kernel, dtype))
    found = []
    for lanes in (32, 16, 8):
        if lanes > 8 and lanes >= 2 * turns:
            continue
        found.append({"lanes": lanes, "rows": 4 * grid.WARP // lanes})
    return found


def _window_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    width = kernel.output[2]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for most_columns, most_bytes in ((1, 16), (2, 16), (4, 16), (4, 8), (7, 8)):
        columns = -(-width // -(-width // most_columns))
        wide = depthwise.channel_vector(kernel, dtype, most_bytes)
        found.setdefault((columns, wide), {"columns": columns, "bytes": most_bytes, "threads": 128})
    return list(found.values())


def _pool_candidates(kernel: Kernel, dtype: str) -> list[dict[str, Any]]:
    operand = kernel.inputs[0]
    pixels = operand.shape[1] * operand.shape[2]
    wide = Body(kernel, dtype).width(operand.shape[0], operand.start)
    most = -(-operand.channels // wide)
    slices = min(16, 1 << max(0, (pixels - 1).bit_length()))
    found: dict[int, dict[str, Any]] = {}
    for vectors in (8, 16, 32):
        chosen = min(vectors, most)
        found.setdefault(chosen, {"vectors": chosen, "slices": slices, "bytes": 16})
    return list(found.values())
