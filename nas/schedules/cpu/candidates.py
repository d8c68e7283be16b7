"""Which schedules are tried for a kernel.

The register tile decides almost everything, so the candidates are tile shapes that just fit the
register file. Compiling one takes far longer than timing it, and those that waste least by a count
of instructions are within a few percent of each other: two are compiled, where there are several
tiles with different loop orders, and compared by their measured time only.
"""

from __future__ import annotations

import math
from typing import Any

from nas.latency.kernel import Kernel
from nas.schedules.cpu import winograd
from nas.schedules.cpu.dense import Tiling, is_flat
from nas.schedules.cpu.loop_nest import joined_pixels

BEST = 2
"""Register tiles that are compiled, of all that could be."""

ADDER_CYCLES = 8
"""Multiply-adds that have to be under way to keep a processor's units busy."""

WAYS, WAY_BYTES = 8, 4096
"""Of a first-level cache of 32 KiB, as most processors have one or a larger one."""

PARTIAL_SUMS = 4
"""Accumulators that share an output where a tile is too small to hide the adder's latency."""


def first_candidates(kernel: Kernel, lanes: int, registers: int) -> list[dict[str, Any]]:
    """Schedules to time first; at least one. `registers` counts vector registers."""
    if kernel.is_expanded:
        return _expanded_candidates(kernel, lanes, registers)
    if kernel.is_channelwise:
        return _window_candidates(kernel, lanes, registers)
    if kernel.has_weights:
        found = _dense_candidates(kernel, lanes, registers)
        if winograd.applies(kernel):
            found = [found[0], _winograd_candidate(kernel, lanes, registers)]
        return found
    if kernel.kind == "global_pool":
        most = -(-kernel.output[0] // lanes)
        return [{"channels": n} for n in sorted({min(n, most) for n in (1, 4, 8)})]
    return [{}]


def refinements(kernel: Kernel, best: dict[str, Any], lanes: int) -> list[dict[str, Any]]:
    """Variations of the best schedule so far that are worth timing."""
    if not kernel.is_channelwise or kernel.is_expanded:
        return []
    several = kernel.output[0] > best["channels"] * lanes and kernel.output[1] > 1
    return [{**best, "order": "channels"}] if several else []


def _dense_candidates(kernel: Kernel, lanes: int, registers: int) -> list[dict[str, Any]]:
    outputs = kernel.output[0] // kernel.groups
    whole_vectors = -(-outputs // lanes)
    found: list[tuple[float, dict[str, Any]]] = []
    for channels in (1, 2, 3, 4, 6, 8):
        if channels > whole_vectors:
            continue
        # Beside the accumulators: a weight vector each, and one input value.
        pixels = max(1, (registers - channels - 1) // channels)
        rows, columns = _pixel_tile(kernel, pixels)
        inputs = kernel.inputs[0].channels // kernel.groups
        small = rows * columns * channels < 2 * PARTIAL_SUMS and inputs % PARTIAL_SUMS == 0
        sums = PARTIAL_SUMS if small else 1
        size = joined_pixels(kernel) if is_flat(kernel) else kernel.output[2]
        cycles = _cycles(_vectors(outputs, lanes), channels, size, columns, rows * sums) / rows
        if _collide(kernel, rows * columns):
            cycles *= 2
        schedule = {"channels": channels, "rows": rows, "columns": columns}
        found.append((cycles, {**schedule, "order": "pixels", "partial_sums": sums}))
    best = _best(found)
    t = Tiling.of(kernel, best[0], lanes)
    if t.groups * t.tiles > 1 and (t.rows > best[0]["rows"] or t.columns > best[0]["columns"]):
        return [best[0], {**best[0], "order": "channels"}]
    return best


def _collide(kernel: Kernel, pixels: int) -> bool:
    """Whether the pixels of a tile push each other out of the first-level cache.

    Lines a whole number of ways apart share a set of it: pixels of 512 or 1024 channels do.
    """
    stride = 4 * kernel.inputs[0].shape[0]
    return pixels > WAYS * WAY_BYTES // math.gcd(stride, WAY_BYTES)


def _vectors(channels: int, lanes: int) -> float:
    """Vectors that hold so many channels, the last one perhaps half of one."""
    return -(-2 * channels // lanes) / 2


def _cycles(vectors: float, channels: int, size: int, columns: int, repeats: int) -> float:
    """Cycles of one step of the reduction, over all register tiles of a row of pixels.

    Args:
        vectors, channels: of output channels, and of those in a tile.
        size, columns: pixels of the row, and of those in a tile.
        repeats: accumulators for each of the tile's.
    """
    total = 0.0
    for v in _parts(vectors, channels):
        for p in _parts(size, columns):
            # Each weight vector is loaded once a step.
            total += max(p * v * repeats, ADDER_CYCLES) + v
    return total


def _parts(extent: float, size: int) -> list[float]:
    whole, rest = divmod(extent, size)
    return [float(size)] * int(whole) + [rest] * (rest > 0)


def _best(candidates: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The schedules that take the fewest cycles; among equals those that come first."""
    return [schedule for _, schedule in sorted(candidates, key=lambda each: each[0])[:BEST]]


def _winograd_candidate(kernel: Kernel, lanes: int, registers: int) -> dict[str, Any]:
    _, height, width = kernel.output
    # Larger tiles save more multiplications, but not on maps smaller than one.
    m = max(winograd.TILES) if max(height, width) > 2 else min(winograd.TILES)
    channels = min(2, -(-kernel.output[0] // lanes))
    bands = min(2, -(-height // m))
    pixels = _balanced(bands * -(-width // m), (registers - channels - 1) // channels)
    return {"winograd": m, "bands": bands, "channels": channels, "pixels": pixels}


def _pixel_tile(kernel: Kernel, pixels: int) -> tuple[int, int]:
    """Rows and columns of a tile of at most `pixels` output pixels."""
    _, height, width = kernel.output
    if is_flat(kernel):
        return 1, _balanced(joined_pixels(kernel), pixels)
    if width > pixels:
        return 1, _balanced(width, pixels)
    rows = max(n for n in range(1, height + 1) if height % n == 0 and n * width <= pixels)
    return rows, width


def _balanced(extent: int, most: int) -> int:
    """The size of equal tiles that cover `extent` in as few as tiles of `most` would."""
    return -(-extent // -(-extent // most))


def _window_candidates(kernel: Kernel, lanes: int, registers: int) -> list[dict[str, Any]]:
    channels, _, width = kernel.output
    whole_vectors = -(-channels // lanes)
    found = []
    for vectors in sorted({min(n, whole_vectors) for n in (2, 4)}):
        # Wider tiles than these were never faster: their border tiles are written out.
        columns = _balanced(width, max(1, min(8, registers // 2 // vectors)))
        found.append({"channels": vectors, "columns": columns, "order": "rows"})
    return found


def _expanded_candidates(kernel: Kernel, lanes: int, registers: int) -> list[dict[str, Any]]:
    whole_vectors = -(-kernel.groups // lanes)
    width = kernel.inputs[0].shape[2]
    found = []
    for vectors in (1, 2, 3, 4):
        if vectors > whole_vectors:
            continue
        pixels = _balanced(width, (registers - vectors - 1) // vectors)
        schedule = {
            "channels": vectors,
            "pixels": pixels,
            "columns": _balanced(kernel.output[2], max(1, registers // 2 // vectors)),
            "order": "channels",
        }
        cycles = _cycles(_vectors(kernel.groups, lanes), vectors, width, pixels, 1)
        found.append((cycles, schedule))
    best, *others = _best(found)
    return [best, *({**other, "order": "rows"} for other in others)]
