"""Which schedules are tried for a kernel.

The register tile decides almost everything, so the sweep walks tile shapes that just fit the
register file, then the loop order of the best. Schedules are compared by their measured time only.
"""

from __future__ import annotations

from typing import Any

from nas.latency.kernel import Kernel
from nas.latency.runtimes.tvm.cpu.dense import Tiling, is_flat

LARGEST_WASTE = 1.2
"""Tiles that pad the channels by more than this, against whole vectors, are not tried."""

PARTIAL_SUMS = 4
"""Accumulators that share an output where a tile is too small to hide the adder's latency."""


def first_candidates(kernel: Kernel, lanes: int, registers: int) -> list[dict[str, Any]]:
    """Schedules to time first; at least one. `registers` counts vector registers."""
    if kernel.is_channelwise:
        return _window_candidates(kernel, lanes, registers)
    if kernel.has_weights:
        return _dense_candidates(kernel, lanes, registers)
    if kernel.kind == "global_pool":
        most = -(-kernel.output[0] // lanes)
        return [{"channels": n} for n in sorted({min(n, most) for n in (1, 4, 8)})]
    return [{}]


def refinements(kernel: Kernel, best: dict[str, Any], lanes: int) -> list[dict[str, Any]]:
    """Variations of the best schedule so far that are worth timing."""
    if kernel.kind == "global_pool" or not best:
        return []
    if not kernel.is_channelwise:
        t = Tiling.of(kernel, best, lanes)
        one_tile = t.groups * t.tiles == 1 or (
            t.rows <= best["rows"] and t.columns <= best["columns"]
        )
        return [] if one_tile else [{**best, "order": "channels"}]
    found = []
    if kernel.output[0] > best["channels"] * lanes and kernel.output[1] > 1:
        found.append({**best, "order": "channels"})
    if best["columns"] > 3:
        found.append({**best, "columns": _balanced(kernel.output[2], -(-best["columns"] // 2))})
    return found


def _dense_candidates(kernel: Kernel, lanes: int, registers: int) -> list[dict[str, Any]]:
    outputs = kernel.output[0] // kernel.groups
    whole_vectors = -(-outputs // lanes)
    found: list[dict[str, Any]] = []
    for channels in (1, 2, 3, 4, 6, 8):
        tiles = -(-whole_vectors // channels)
        if channels > whole_vectors or tiles * channels > LARGEST_WASTE * whole_vectors:
            continue
        # Beside the accumulators: a weight vector each, and one input value.
        pixels = max(1, (registers - channels - 1) // channels)
        rows, columns = _pixel_tile(kernel, pixels)
        inputs = kernel.inputs[0].channels // kernel.groups
        small = rows * columns * channels < 2 * PARTIAL_SUMS and inputs % PARTIAL_SUMS == 0
        found.append(
            {
                "channels": channels,
                "rows": rows,
                "columns": columns,
                "order": "pixels",
                "partial_sums": PARTIAL_SUMS if small else 1,
            }
        )
    return found


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
    for vectors in (1, 2, 4):
        if vectors > whole_vectors and vectors > 1:
            continue
        columns = _balanced(width, max(1, registers // 2 // vectors))
        found.append({"channels": vectors, "columns": columns, "order": "rows"})
    return found
