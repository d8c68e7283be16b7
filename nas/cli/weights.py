"""`nas weights`: which network a file of published weights is of, and how it would be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import Conventions, Json, show
from nas.errors import shortened_text

if TYPE_CHECKING:
    from nas.pretrained import PublishedWeights


MAX_NAMED = 10
"""Most names of what is left out that the text shows; `--json` has all."""


def weights(
    file: Annotated[Path, typer.Argument(help="A .safetensors file, or what torch.save wrote.")],
    reference: Annotated[
        str | None,
        typer.Option(help="Name of the network, from `nas spaces --references`."),
    ] = None,
    conventions: Conventions = None,
    as_json: Json = False,
) -> None:
    """Show which published network the weights in a file are of.

    The network is recognised by the shapes of its layers. The output also says how its padding
    and the epsilon of its norms are treated, and which space can start from it. Files are read
    without running code in them, and nothing is written.

    \b
    Example: nas weights efficientnet-lite0.pth
    Example: nas weights model.safetensors --conventions tensorflow --json
    """
    from nas.pretrained import read_weights

    # Arguments of the command line are checked where they are used.
    read = read_weights(file, reference=reference, conventions=conventions)  # type: ignore[arg-type]
    show(_document(read), _text(read), as_json)


def _document(read: PublishedWeights) -> dict[str, Any]:
    return {
        "path": read.file.path,
        "file_bytes": read.file.file_bytes,
        "sha256": read.file.sha256,
        "entry": read.file.entry or None,
        "left_out": read.file.left_out,
        "reference": read.reference.name,
        "also": read.also,
        "space": read.architecture.space.name,
        "params": read.architecture.params,
        "classes": read.classes,
        "sources": read.sources,
        "conventions": read.conventions._asdict(),
        "mean": read.mean,
        "std": read.std,
        "license": read.license,
        "differences": read.differences,
    }


def _text(read: PublishedWeights) -> str:
    from nas.display.formatting import format_bytes
    from nas.torch_network import NORM_EPS

    space = read.architecture.space
    first, *_, last = read.sources.items()
    epsilon = f"{read.conventions.epsilon:g}"
    if read.conventions.epsilon != NORM_EPS:
        epsilon += f", here {NORM_EPS:g}: the ratio is part of the scales"
    lines = {
        "network": f"{read.reference.name}, {read.architecture.params:,} parameters, "
        f"{read.classes} classes",
        "also fits": ", ".join(read.also),
        "space": space.name,
        "file": f"{format_bytes(read.file.file_bytes)}, SHA-256 {read.file.sha256}",
        "entry": read.file.entry,
        "left out": _names(read.file.left_out),
        "layers": f"all {len(read.sources)} match: {first[1]} is {first[0]}, ..., "
        f"{last[1]} is {last[0]}",
        "conventions": f"{read.conventions.name}, {read.known_by}",
        "epsilon": epsilon,
        "inputs": "normalisation unknown"
        if read.mean is None or read.std is None
        else f"(pixel - {_numbers(read.mean)}) / {_numbers(read.std)}, of RGB in [0, 1]",
        "license": read.license or "unknown: see where the file comes from",
        "differences": "; ".join(read.differences) or "none: it computes what was published",
    }
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:{width}}{text}" for name, text in lines.items() if text)


def _names(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(shortened_text, names[:MAX_NAMED])) + more


def _numbers(values: tuple[float, ...]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.4g}"
    return f"({', '.join(f'{value:.4g}' for value in values)})"
