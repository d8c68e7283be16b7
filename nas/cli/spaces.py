"""`nas spaces`: the search spaces, one of them in full, its networks, and the published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import Channels, Classes, ImageSize, Json, Seed, print_json
from nas.errors import NasError, RequestError

if TYPE_CHECKING:
    from nas.describe.building import Estimate
    from nas.space import SearchSpace

Sizes = Mapping[str, int | None]


def spaces(
    name: Annotated[str | None, typer.Argument(help="A space's name or Python file.")] = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    runtime: Annotated[
        str | None, typer.Option(help="Estimate this runtime's table only; by default every one's.")
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
        int | None, typer.Option(min=1, help="Print so many random architectures instead.")
    ] = None,
    max_macs: Annotated[float | None, typer.Option(help="Most MACs for --sample.")] = None,
    min_macs: Annotated[float | None, typer.Option(help="Fewest MACs for --sample.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Most parameters for --sample.")] = None,
    seed: Seed = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture, .png or .svg, of what is shown.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The search spaces; for one of them its table, size, range, kernels and published networks.

    \b
    Example: nas spaces mobilenet --image-size 32 --plot mobilenet.png
    Example: nas spaces --arch mobilenet_v2_1.0
    Example: nas spaces --references --json
    Example: nas spaces mobilenet --sample 10 --max-macs 300e6
    """
    sizes = {"image_size": image_size, "channels": channels, "classes": classes}
    limits = {"max_macs": max_macs, "min_macs": min_macs, "max_params": max_params}
    _check(name, arch, references, sample, limits, plot)
    if references:
        _references(name, as_json)
    elif arch is not None:
        _network(name, arch, sizes, plot, as_json)
    elif name is None:
        _list(sizes, as_json)
    elif sample is not None:
        _sample(_adapted(name, sizes), sample, limits, seed, as_json)
    else:
        _space(_adapted(name, sizes), runtime, estimate, plot, as_json)


def _check(
    name: str | None,
    arch: str | None,
    references: bool,
    sample: int | None,
    limits: Mapping[str, float | None],
    plot: Path | None,
) -> None:
    """Raises RequestError for options that do not go together, before any work is done."""
    asked = {"--arch": arch is not None, "--references": references, "--sample": sample is not None}
    chosen = [option for option, given in asked.items() if given]
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
        from nas.describe.figures import check_suffix

        check_suffix(plot)


def _adapted(name: str, sizes: Sizes) -> SearchSpace:
    from nas.describe.architectures import adapted
    from nas.space import load_definition

    return adapted(load_definition(name), sizes)


def _list(sizes: Sizes, as_json: bool) -> None:
    from nas.describe import spaces as described
    from nas.space import space_names

    found = [described.overview(_adapted(each, sizes)) for each in space_names()]
    if as_json:
        print_json(found)
    else:
        described.show_spaces(found)


def _space(
    space: SearchSpace, runtime: str | None, timed: bool, plot: Path | None, as_json: bool
) -> None:
    from nas import console
    from nas.describe import spaces as described

    estimates = _estimates(space, runtime, timed)
    with console.busy(f"drawing {described.DRAWN} networks"):
        counts = described.draw(space)
        found = described.space(space, counts, estimates)
    if plot is not None:
        from nas.describe.figures import draw_space

        draw_space(found, counts, plot)
    if as_json:
        print_json(found)
    else:
        described.show_space(found)


def _estimates(space: SearchSpace, runtime: str | None, timed: bool) -> dict[str, Estimate]:
    from nas import console
    from nas.describe.building import Estimate, estimate
    from nas.latency import space_kernels
    from nas.latency.runtime import runtime_names

    found = {}
    for each in runtime_names() if runtime is None else [runtime]:
        kernels = space_kernels(space, each)
        if timed:
            with console.busy(f"timing a few kernels with {each}"):
                found[each] = estimate(kernels, each)
        else:
            found[each] = Estimate(len(kernels), reason="--no-estimate")
    return found


def _network(name: str | None, arch: str, sizes: Sizes, plot: Path | None, as_json: bool) -> None:
    from nas.describe import layers
    from nas.describe.architectures import find

    found = layers.network(find(arch, sizes, name))
    if plot is not None:
        from nas.describe.figures import draw_network

        draw_network(found, plot)
    if as_json:
        print_json(found)
    else:
        layers.show_network(found)


def _references(name: str | None, as_json: bool) -> None:
    """Prints all, and fails where one is not what was published."""
    from nas.describe import references as described
    from nas.space import load_definition, space_names

    rows = described.references(
        [load_definition(each) for each in ([name] if name else space_names())]
    )
    if as_json:
        print_json(rows)
    else:
        described.show_references(rows)
    wrong = described.disagreements(rows)
    if wrong:
        raise NasError(wrong)


def _sample(
    space: SearchSpace,
    count: int,
    limits: Mapping[str, float | None],
    seed: int,
    as_json: bool,
) -> None:
    """Prints architectures, a line each or as one list."""
    import numpy as np

    from nas.space.limits import Limit, sample_within

    bounds = [
        Limit(measure, smallest=limits.get(f"min_{measure}"), largest=limits[f"max_{measure}"])
        for measure in ("macs", "params")
        if limits.get(f"min_{measure}") is not None or limits[f"max_{measure}"] is not None
    ]
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, Any]] = [
        sample_within(space, rng, bounds).to_json() for _ in range(count)
    ]
    if as_json:
        print_json(drawn)
    else:
        for each in drawn:
            print(json.dumps(each))
