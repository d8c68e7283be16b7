"""Which schedules are measured for a kernel on a CPU.

The register tile decides almost everything, so candidates are tile shapes that just fit the vector
registers. Compiling a candidate takes far longer than timing it, and tiles with the fewest cycles
by a simple count are within a few percent of each other. Two of them are compiled, with different
loop orders where that can matter, and compared by their measured latency only.
"""

from __future__ import annotations

import math
from typing import Any

from nas.kernels.kernel import Kernel
from nas.schedules.cpu import winograd
from nas.schedules.cpu.dense import DenseTiling, is_pointwise
from nas.schedules.cpu.loop_nest import flattened_pixels
from nas.schedules.cpu.loops import VectorUnit
from nas.schedules.templates import balanced

MAX_REGISTER_TILES = 2
"""Register tiles that are compiled, of all that fit; see the module's docstring."""

FMAS_IN_FLIGHT = 8
"""Independent multiply-adds that keep a CPU busy: two units with a latency of four cycles."""

L1_WAYS = 8
"""Ways of a first-level cache of 32 KiB, which most CPUs have at least."""

L1_WAY_BYTES = 4096
"""Bytes of one way of that cache."""

PARTIAL_SUMS = 4
"""Accumulators that share an output where a tile is too small to hide the latency of additions."""

MAX_PIXELS_OF_SMALL_TILES = 6
"""Largest side of an image, in pixels, whose Winograd tiles are `2 x 2` output pixels, not `4 x 4`.

With `2 x 2` a convolution of 192 channels took 0.52 times as long at 4 pixels, 0.75 at 6, and 1.35
at 7.
"""

MAX_WINDOW_COLUMNS = 8
"""Widest register tile of a depthwise convolution or a pooling, in output pixels.

Wider tiles were never faster, and tiles at the edges of the image are unrolled.
"""


def first_candidates(kernel: Kernel, unit: VectorUnit) -> list[dict[str, Any]]:
    """Return the schedules to measure first, at least one, for a processor's vector unit."""
    if kernel.is_expanded:
        return _expansion_candidates(kernel, unit)
    if kernel.is_channelwise:
        return _window_candidates(kernel, unit)
    if kernel.has_weights:
        dense = _dense_candidates(kernel, unit)
        if winograd.applies(kernel):
            return [dense[0], _winograd_candidate(kernel, unit)]
        return dense
    if kernel.kind == "global_pool":
        vectors = -(-kernel.output[0] // unit.lanes)
        return [{"channels": n} for n in sorted({min(n, vectors) for n in (1, 4, 8)})]
    return [{}]


def refinements(kernel: Kernel, best: dict[str, Any], lanes: int) -> list[dict[str, Any]]:
    """Return variations of the fastest first candidate to measure next; there may be none."""
    if not kernel.is_channelwise or kernel.is_expanded:
        return []
    several_tiles = kernel.output[0] > best["channels"] * lanes and kernel.output[1] > 1
    return [{**best, "order": "channels"}] if several_tiles else []


def _dense_candidates(kernel: Kernel, unit: VectorUnit) -> list[dict[str, Any]]:
    outputs = kernel.output[0] // kernel.groups
    inputs = kernel.inputs[0].channels // kernel.groups
    row_pixels = flattened_pixels(kernel) if is_pointwise(kernel) else kernel.output[2]
    estimates: list[tuple[float, dict[str, Any]]] = []
    for channels, pixels in unit.tile_pixels.items():
        if channels > -(-outputs // unit.lanes):
            continue
        rows, columns = _pixel_tile(kernel, pixels)
        tile = rows * columns * channels
        is_small = tile < 2 * PARTIAL_SUMS and tile * PARTIAL_SUMS < unit.registers
        sums = PARTIAL_SUMS if is_small and inputs % PARTIAL_SUMS == 0 else 1
        vectors = _half_vectors(outputs, unit.lanes)
        cycles = _cycles(vectors, channels, row_pixels, columns, rows * sums) / rows
        if _has_cache_conflicts(kernel, rows * columns):
            cycles *= 2
        schedule = {"channels": channels, "rows": rows, "columns": columns}
        estimates.append((cycles, {**schedule, "order": "pixels", "partial_sums": sums}))
    schedules = _fewest_cycles(estimates)
    best = schedules[0]
    t = DenseTiling(kernel, best, unit.lanes)
    if t.groups * t.tiles > 1 and (t.rows > best["rows"] or t.columns > best["columns"]):
        return [best, {**best, "order": "channels"}]
    return schedules


def _has_cache_conflicts(kernel: Kernel, pixels: int) -> bool:
    """Return whether the pixels of a tile evict each other from the first-level cache.

    Addresses a multiple of a way apart share a cache set: those of neighbouring pixels with 512 or
    1024 channels do.
    """
    pixel_bytes = 4 * kernel.inputs[0].shape[0]
    return pixels > L1_WAYS * L1_WAY_BYTES // math.gcd(pixel_bytes, L1_WAY_BYTES)


def _half_vectors(channels: int, lanes: int) -> float:
    """Return the vectors that hold so many channels, the last counting as a half if it can."""
    return -(-2 * channels // lanes) / 2


def _cycles(vectors: float, channels: int, pixels: int, columns: int, repeats: int) -> float:
    """Estimate the cycles of one step of the reduction for a row of pixels.

    Args:
        vectors: vectors of output channels.
        channels: vectors of a register tile.
        pixels: pixels of the row.
        columns: pixels of a register tile.
        repeats: accumulators for each vector and pixel of a tile.
    """
    total = 0.0
    for v in _tile_sizes(vectors, channels):
        for p in _tile_sizes(pixels, columns):
            # A step loads each weight vector of its tile once.
            total += max(p * v * repeats, FMAS_IN_FLIGHT) + v
    return total


def _tile_sizes(extent: float, size: int) -> list[float]:
    """Return the sizes of the tiles that cover `extent`."""
    whole, rest = divmod(extent, size)
    return [float(size)] * int(whole) + [rest] * (rest > 0)


def _fewest_cycles(estimates: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the schedules with the fewest cycles; among equals, those that come first."""
    ranked = sorted(estimates, key=lambda estimate: estimate[0])
    return [schedule for _, schedule in ranked[:MAX_REGISTER_TILES]]


def _winograd_candidate(kernel: Kernel, unit: VectorUnit) -> dict[str, Any]:
    _, height, width = kernel.output
    # Larger tiles save multiplications. But a small image has one to four of them, so a weight that
    # is loaded is used as few times, and two tiles of 4 pixels exceed an image of 5 or 6.
    is_small = max(height, width) <= MAX_PIXELS_OF_SMALL_TILES
    m, max_bands = (2, 3) if is_small else (4, 2)
    channels = min(2, -(-kernel.output[0] // unit.lanes))
    bands = min(max_bands, -(-height // m))
    pixels = balanced(bands * -(-width // m), unit.tile_pixels[channels])
    return {"winograd": m, "bands": bands, "channels": channels, "pixels": pixels}


def _pixel_tile(kernel: Kernel, pixels: int) -> tuple[int, int]:
    """Return rows and columns of a register tile of at most so many output pixels."""
    _, height, width = kernel.output
    if is_pointwise(kernel):
        return 1, balanced(flattened_pixels(kernel), pixels)
    if width > pixels:
        return 1, balanced(width, pixels)
    rows = max(n for n in range(1, height + 1) if height % n == 0 and n * width <= pixels)
    return rows, width


def _window_candidates(kernel: Kernel, unit: VectorUnit) -> list[dict[str, Any]]:
    channels, _, width = kernel.output
    max_vectors = -(-channels // unit.lanes)
    schedules = []
    for vectors in sorted({min(n, max_vectors) for n in (2, 4)}):
        max_columns = max(1, min(MAX_WINDOW_COLUMNS, unit.registers // 2 // vectors))
        columns = balanced(width, max_columns)
        schedules.append({"channels": vectors, "columns": columns, "order": "rows"})
    return schedules


def _expansion_candidates(kernel: Kernel, unit: VectorUnit) -> list[dict[str, Any]]:
    max_vectors = -(-kernel.groups // unit.lanes)
    width = kernel.inputs[0].shape[2]
    estimates: list[tuple[float, dict[str, Any]]] = []
    for vectors in (1, 2, 3, 4):
        if vectors > max_vectors:
            continue
        pixels = balanced(width, unit.tile_pixels[vectors])
        schedule = {
            "channels": vectors,
            "pixels": pixels,
            "columns": balanced(kernel.output[2], max(1, unit.registers // 2 // vectors)),
            "order": "channels",
        }
        cycles = _cycles(_half_vectors(kernel.groups, unit.lanes), vectors, width, pixels, 1)
        estimates.append((cycles, schedule))
    best, *others = _fewest_cycles(estimates)
    return [best, *({**other, "order": "rows"} for other in others)]
