"""Tables of the files of an exported model, as the command line prints them."""

from __future__ import annotations

from collections.abc import Sequence

from nas import console
from nas.formatting import format_bytes
from nas.records import ExportedFile


def print_files(files: Sequence[ExportedFile]) -> None:
    """Print one row for each file: accuracy, latency, memory, size, int8 layers and versions."""
    console.print_table(
        [
            "format",
            "precision",
            "test accuracy",
            "ms (95% interval)",
            "peak memory",
            "size",
            "int8 layers",
            "versions",
        ],
        [_row(file) for file in files],
        left=("precision", "versions"),
    )


def _row(file: ExportedFile) -> list[str]:
    latency, layers = file.latency, file.quantised_layers
    return [
        file.format,
        file.precision,
        "" if file.accuracy is None else f"{file.accuracy:.2%}",
        ""
        if latency is None
        else f"{latency.median_us / 1000:.4g} "
        f"({latency.low_us / 1000:.4g} to {latency.high_us / 1000:.4g})",
        "" if file.peak_memory_bytes is None else format_bytes(file.peak_memory_bytes),
        format_bytes(file.size_bytes),
        "" if layers is None else f"{layers[0]} of {layers[1]}",
        ", ".join(f"{name} {version}" for name, version in file.versions.items())
        if file.runs_here
        else "not run here",
    ]
