"""Tables of the files of an exported model, as the command line prints them."""

from __future__ import annotations

from collections.abc import Sequence

from nas import console
from nas.formatting import format_bytes
from nas.run.model_card import ExportedFile, ScriptCheck


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


def describe_script(script: ScriptCheck | None, reason: str) -> str:
    """Return what a verification of `run.py` compared, or why there was none."""
    if script is None:
        return f"run.py was not verified. {reason}"
    kinds = "; ".join(script.kinds)
    text = f"run.py agrees with torch on {script.images} images of the data"
    text += f" and on a file of each kind in it ({kinds})" if kinds else " (it has no image files)"
    text += f", difference {script.difference:.2g} of {script.tolerance:g}."
    if script.unchecked:
        text += (
            f" Not verified, because the files are large or rare: {'; '.join(script.unchecked)}."
        )
    return text


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
