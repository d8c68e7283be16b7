"""`nas spaces`: lists the search spaces, or shows one space, its networks or published networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import Channels, Classes, ImageSize, Json, Seed, load_adapted_space, print_json
from nas.errors import NasError, RequestError

if TYPE_CHECKING:
    from nas.latency.build_estimate import BuildEstimate
    from nas.space import SearchSpace

Sizes = Mapping[str, int | None]
"""The options --image-size, --channels and --classes, None where they are not given."""


def spaces(
    name: Annotated[str | None, typer.Argument(help="A space's name or Python file.")] = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    runtime: Annotated[
        str | None, typer.Option(help="Estimate only this runtime's table; by default every one's.")
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate/--no-estimate",
            help="Time a few kernels, to say how long a latency table takes.",
        ),
    ] = True,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|REFERENCE|RUN:ID", help="Show one network instead, layer by layer."
        ),
    ] = None,
    references: Annotated[
        bool, typer.Option("--references", help="Compare published networks with their papers.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Print this many random architectures instead.")
    ] = None,
    max_macs: Annotated[float | None, typer.Option(help="Most MACs for --sample.")] = None,
    min_macs: Annotated[float | None, typer.Option(help="Fewest MACs for --sample.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Most parameters for --sample.")] = None,
    seed: Seed = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Write a figure of what is shown, .png or .svg.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the search spaces, or show one: table, size, ranges, kernels and published networks.

    \b
    Example: nas spaces mobilenet --image-size 32 --plot mobilenet.png
    Example: nas spaces --arch mobilenet_v2_1.0
    Example: nas spaces --references --json
    Example: nas spaces mobilenet --sample 10 --max-macs 300e6
    """
    sizes = {"image_size": image_size, "channels": channels, "classes": classes}
    limits = {"max_macs": max_macs, "min_macs": min_macs, "max_params": max_params}
    _check_options(name, arch, references, sample, limits, plot)
    if references:
        _show_references(name, as_json)
    elif arch is not None:
        _show_architecture(name, arch, sizes, plot, as_json)
    elif name is None:
        _show_spaces(sizes, as_json)
    elif sample is not None:
        _print_sample(load_adapted_space(name, **sizes), sample, limits, seed, as_json)
    else:
        _show_space(load_adapted_space(name, **sizes), runtime, estimate, plot, as_json)


def _check_options(
    name: str | None,
    arch: str | None,
    references: bool,
    sample: int | None,
    limits: Mapping[str, float | None],
    plot: Path | None,
) -> None:
    """Raise RequestError for options that exclude each other, before any work is done."""
    modes = {"--arch": arch is not None, "--references": references, "--sample": sample is not None}
    chosen = [option for option, is_given in modes.items() if is_given]
    if len(chosen) > 1:
        raise RequestError(f"{' and '.join(chosen)} do not go together.", remedy="Give one.")
    limiting = [f"--{key.replace('_', '-')}" for key, limit in limits.items() if limit is not None]
    if limiting and sample is None:
        raise RequestError(
            f"{limiting[0]} limits what --sample prints.", remedy="Give --sample N too."
        )
    if sample is not None and name is None:
        raise RequestError(
            "--sample draws from one space.", remedy="Name it: nas spaces mobilenet --sample 10."
        )
    if plot is not None:
        if references or sample is not None or (name is None and arch is None):
            raise RequestError(
                "--plot draws one space or one network.", remedy="Give a NAME, or --arch."
            )
        from nas.plotting import check_picture_path

        check_picture_path(plot)


def _show_spaces(sizes: Sizes, as_json: bool) -> None:
    from nas.describe.spaces import describe_briefly, show_spaces
    from nas.space import space_names

    descriptions = [describe_briefly(load_adapted_space(name, **sizes)) for name in space_names()]
    if as_json:
        print_json(descriptions)
    else:
        show_spaces(descriptions)


def _show_space(
    space: SearchSpace, runtime: str | None, is_timed: bool, plot: Path | None, as_json: bool
) -> None:
    from nas import console
    from nas.describe.spaces import MAX_SAMPLES, describe_space, sample_counts, show_space

    estimates = _estimates(space, runtime, is_timed)
    with console.spinner(f"drawing {MAX_SAMPLES} networks"):
        counts = sample_counts(space)
        description = describe_space(space, counts, estimates)
    if plot is not None:
        from nas.describe.figures import draw_space

        draw_space(description, counts, plot)
    if as_json:
        print_json(description)
    else:
        show_space(description)


def _estimates(space: SearchSpace, runtime: str | None, is_timed: bool) -> dict[str, BuildEstimate]:
    """Return how long the latency table of each runtime takes to build."""
    from nas import console
    from nas.latency import space_kernels
    from nas.latency.build_estimate import BuildEstimate, estimate_build
    from nas.latency.installed_runtimes import runtime_names

    estimates = {}
    for name in runtime_names() if runtime is None else [runtime]:
        kernels = space_kernels(space, name)
        if is_timed:
            with console.spinner(f"timing a few kernels with {name}"):
                estimates[name] = estimate_build(kernels, name)
        else:
            estimates[name] = BuildEstimate(len(kernels), reason="--no-estimate")
    return estimates


def _show_architecture(
    name: str | None, arch: str, sizes: Sizes, plot: Path | None, as_json: bool
) -> None:
    from nas.describe.architectures import (
        describe_architecture,
        resolve_architecture,
        show_architecture,
    )

    description = describe_architecture(resolve_architecture(arch, sizes, name))
    if plot is not None:
        from nas.describe.figures import draw_architecture

        draw_architecture(description, plot)
    if as_json:
        print_json(description)
    else:
        show_architecture(description)


def _show_references(name: str | None, as_json: bool) -> None:
    """Print all published networks. Raises NasError if one differs from what was published."""
    from nas.describe.references import describe_references, disagreements, show_references
    from nas.space import load_definition, space_names

    names = [name] if name else space_names()
    rows = describe_references([load_definition(each) for each in names])
    if as_json:
        print_json(rows)
    else:
        show_references(rows)
    wrong = disagreements(rows)
    if wrong:
        raise NasError(wrong)


def _print_sample(
    space: SearchSpace,
    count: int,
    limits: Mapping[str, float | None],
    seed: int,
    as_json: bool,
) -> None:
    """Print random architectures, a line each or as one list."""
    import numpy as np

    from nas.space import Limit, sample_within

    bounds = [
        Limit(name, smallest=limits.get(f"min_{name}"), largest=limits[f"max_{name}"])
        for name in ("macs", "params")
        if limits.get(f"min_{name}") is not None or limits[f"max_{name}"] is not None
    ]
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = [
        sample_within(space, rng, bounds).to_json() for _ in range(count)
    ]
    if as_json:
        print_json(records)
    else:
        for record in records:
            print(json.dumps(record))
