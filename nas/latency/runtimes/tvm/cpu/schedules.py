"""Which schedules are tried for a kernel.

The register tile decides almost everything, so the candidates are tile shapes that just fit the
register file. Compiling one takes far longer than timing it, and those that waste least by a count
of instructions are within a few percent of each other: two of them are compiled, then the best
one's other loop order. Schedules are compared by their measured time only.
"""

from __future__ import annotations

from typing import Any

from nas.latency.kernel import Kernel
from nas.latency.runtimes.tvm.cpu import winograd
from nas.latency.runtimes.tvm.cpu.dense import Tiling, is_flat

BEST = 2
"""Register tiles that are compiled, of all that could be."""

ADDER_CYCLES = 8
"""Multiply-adds that have to be under way to keep a processor's units busy."""

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
    if kernel.kind == "global_pool" or not best:
        return []
    if kernel.is_expanded:
        return [{**best, "order": "rows"}] if kernel.groups > best["channels"] * lanes else []
    if "winograd" in best:
        return []
    if not kernel.is_channelwise:
        t = Tiling.of(kernel, best, lanes)
        one_tile = t.groups * t.tiles == 1 or (
            t.rows <= best["rows"] and t.columns <= best["columns"]
        )
        return [] if one_tile else [{**best, "order": "channels"}]
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
        size = kernel.output[1] * kernel.output[2] if is_flat(kernel) else kernel.output[2]
        cycles = _cycles(whole_vectors, channels, size, columns, rows * sums) / rows
        schedule = {"channels": channels, "rows": rows, "columns": columns}
        found.append((cycles, {**schedule, "order": "pixels", "partial_sums": sums}))
    return _best(found)


def _cycles(vectors: int, channels: int, size: int, columns: int, repeats: int) -> float:
    """Cycles of one step of the reduction, over all register tiles of a row of pixels.

    Args:
        vectors, channels: of output channels, and of those in a tile.
        size, columns: pixels of the row, and of those in a tile.
        repeats: accumulators for each of the tile's.
    """
    total = 0
    for v in _parts(vectors, channels):
        for p in _parts(size, columns):
            # Each weight vector is loaded once a step.
            total += max(p * v * repeats, ADDER_CYCLES) + v
    return total


def _parts(extent: int, size: int) -> list[int]:
    whole, rest = divmod(extent, size)
    return [size] * whole + [rest] * (rest > 0)


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
        return 1, _balanced(height * width, pixels)
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
        columns = _balanced(width, max(1, registers // 2 // vectors))
        found.append({"channels": vectors, "columns": columns, "order": "rows"})
    return found


def _expanded_candidates(kernel: Kernel, lanes: int, registers: int) -> list[dict[str, Any]]:
    whole_vectors = -(-kernel.groups // lanes)
    width = kernel.inputs[0].shape[2]
    found = []
    for vectors in (1, 2, 3, 4):
        if vectors > whole_vectors:
            continue
        padded = -(-whole_vectors // vectors) * vectors
        pixels = _balanced(width, (registers - vectors - 1) // vectors)
        schedule = {
            "channels": vectors,
            "pixels": pixels,
            "columns": _balanced(kernel.output[2], max(1, registers // 2 // vectors)),
            "order": "channels",
        }
        found.append((_cycles(padded, vectors, width, pixels, 1), schedule))
    return _best(found)
