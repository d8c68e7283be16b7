"""`nas spaces`: the search spaces, one of them, one network, or the published networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, Seed, check_plot, load_spaces, with_sizes
from nas.errors import RequestError


@with_sizes
def spaces(
    name: Annotated[str | None, typer.Argument(help="A space's name or Python file.")] = None,
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
        Path | None, typer.Option(help="Draw the space to this .png or .svg file.")
    ] = None,
    as_json: Json = False,
    **sizes: int,
) -> None:
    """List the search spaces, or show one: table, size, ranges, kernels and published networks.

    \b
    Example: nas spaces mobilenet --image-size 32 --plot mobilenet.png
    Example: nas spaces --arch mobilenet_v2_1.0
    Example: nas spaces --references --json
    Example: nas spaces mobilenet --sample 10 --max-macs 300e6
    """
    from nas.cli import networks, space_tables
    from nas.space import Limit

    modes = {"--arch": arch is not None, "--references": references, "--sample": sample is not None}
    chosen = [option for option, is_given in modes.items() if is_given]
    if len(chosen) > 1:
        raise RequestError(f"{' and '.join(chosen)} do not go together.", remedy="Give one.")
    has_limits = any(limit is not None for limit in (max_macs, min_macs, max_params))
    if has_limits and sample is None:
        raise RequestError(
            "--max-macs, --min-macs and --max-params limit what --sample prints.",
            remedy="Give --sample N too.",
        )
    if plot is not None and (chosen or name is None):
        raise RequestError("--plot draws one space.", remedy="Give a NAME.")
    check_plot(plot)
    if references:
        networks.compare_published(name, as_json)
    elif arch is not None:
        networks.show_network(arch, sizes, name, as_json)
    elif sample is not None:
        if name is None:
            raise RequestError(
                "--sample draws from one space.",
                remedy="Name it: nas spaces mobilenet --sample 10.",
            )
        limits = []
        if (min_macs, max_macs) != (None, None):
            limits.append(Limit("macs", min_macs, max_macs))
        if max_params is not None:
            limits.append(Limit("params", largest=max_params))
        networks.print_sample(load_spaces([name], sizes)[0], sample, limits, seed, as_json)
    elif name is None:
        space_tables.list_spaces(sizes, as_json)
    else:
        (space,) = load_spaces([name], sizes)
        space_tables.show_space(space, runtime, estimate, plot, as_json)
