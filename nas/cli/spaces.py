"""`nas spaces`: the search spaces, one of them, one network, or the published networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    Channels,
    Classes,
    ImageSize,
    Json,
    Seed,
    check_plot,
    load_adapted_space,
    print_json,
)
from nas.errors import RequestError
from nas.formatting import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from nas.cli.architecture import Sizes
    from nas.latency.build_estimate import BuildEstimate
    from nas.space import SearchSpace
    from nas.space.space import GraphCount
    from nas.space.summary import CountRange, Distribution, Options, StageSummary


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
    from nas.cli import networks

    sizes = {"image_size": image_size, "channels": channels, "classes": classes}
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
    if plot is not None and (references or sample is not None or (name is None and arch is None)):
        raise RequestError(
            "--plot draws one space or one network.", remedy="Give a NAME, or --arch."
        )
    check_plot(plot)
    if references:
        networks.compare_published(name, as_json)
    elif arch is not None:
        networks.show_network(arch, sizes, name, plot, as_json)
    elif sample is not None:
        if name is None:
            raise RequestError(
                "--sample draws from one space.",
                remedy="Name it: nas spaces mobilenet --sample 10.",
            )
        limits = {"macs": (min_macs, max_macs), "params": (None, max_params)}
        networks.print_sample(load_adapted_space(name, **sizes), sample, limits, seed, as_json)
    elif name is None:
        _list_spaces(sizes, as_json)
    else:
        _show_space(load_adapted_space(name, **sizes), runtime, estimate, plot, as_json)


def space_document(space: SearchSpace) -> dict[str, Any]:
    """Return what `nas spaces --json` prints of a space: numbers that are quick to compute."""
    from nas.space.summary import COUNTS, count_range, count_reference

    strides = zip([stage.name for stage in space.stages], space.strides, strict=True)
    return {
        "name": space.name,
        **space.settings,
        "strides": dict(strides),
        "size": space.size,
        "choices": space.parameters,
        "kernels": _count_kernels(space),
        **{count: count_range(space, count) for count in COUNTS},
        "references": [count_reference(space, each.name) for each in space.references],
        "digest": space.digest,
    }


def _count_kernels(space: SearchSpace) -> dict[str, int]:
    """Return the number of kernels of a space by runtime."""
    from nas.latency import runtime_names, space_kernels

    return {name: len(space_kernels(space, name)) for name in runtime_names()}


def _list_spaces(sizes: Sizes, as_json: bool) -> None:
    from nas import console
    from nas.latency import runtime_names
    from nas.space import space_names
    from nas.space.summary import count_range

    listed = [load_adapted_space(name, **sizes) for name in space_names()]
    if as_json:
        print_json([space_document(space) for space in listed])
        return
    columns = ["space", "px", "choices", "size", "MACs", "parameters"]
    columns += [*(f"{name} kernels" for name in runtime_names()), "references"]
    rows = [
        (
            space.name,
            space.image_size,
            len(space.parameters),
            format_size(space.size),
            _range_text(count_range(space, "macs")),
            _range_text(count_range(space, "params")),
            *_count_kernels(space).values(),
            len(space.references),
        )
        for space in listed
    ]
    console.print_table(columns, rows)
    console.say("One in full: nas spaces NAME. The published networks: nas spaces --references.")


def _show_space(
    space: SearchSpace, runtime: str | None, is_timed: bool, plot: Path | None, as_json: bool
) -> None:
    from nas import console
    from nas.space.summary import (
        COUNTS,
        MAX_SAMPLES,
        distribution,
        sample_graphs,
        summarise_stages,
    )

    estimates = _estimates(space, runtime, is_timed)
    with console.err.status(f"drawing {MAX_SAMPLES} networks"):
        sample = sample_graphs(space)
        stages = summarise_stages(space)
        distributions = {count: distribution(space, count, sample) for count in COUNTS}
    if plot is not None:
        from nas.cli.space_plots import draw_space

        draw_space(space, sample, plot)
    if as_json:
        print_json(
            {
                **space_document(space),
                "activation": space.activation,
                "norm": space.norm,
                "network_choices": {each.name: each.to_json() for each in space.network_choices},
                "stages": stages,
                "sampled": len(sample),
                **distributions,
                "table": estimates,
            }
        )
        return
    console.say(
        f"{space.name} at {space.image_size} px, {space.channels} channels, {space.classes} "
        f"classes: {format_size(space.size)} different networks, activation {space.activation}, "
        f"{'with' if space.norm else 'without'} norms"
    )
    print_stages(space, stages)
    _print_counts(space, distributions, len(sample))
    for name, estimate in estimates.items():
        console.say(f"latency table, {name}: {_estimate_text(estimate)}")


def _estimates(space: SearchSpace, runtime: str | None, is_timed: bool) -> dict[str, BuildEstimate]:
    """Return how long the latency table of each runtime takes to build."""
    from nas import console
    from nas.latency import runtime_names, space_kernels
    from nas.latency.build_estimate import BuildEstimate, estimate_build

    estimates = {}
    for name in runtime_names() if runtime is None else [runtime]:
        kernels = space_kernels(space, name)
        if is_timed:
            with console.err.status(f"timing a few kernels with {name}"):
                estimates[name] = estimate_build(kernels, name)
        else:
            estimates[name] = BuildEstimate(len(kernels), reason="--no-estimate")
    return estimates


def _estimate_text(estimate: BuildEstimate) -> str:
    kernels = f"{estimate.kernels} kernels"
    if estimate.estimated_seconds is None:
        return f"{kernels}; no estimate of the time to build it: {estimate.reason}"
    return (
        f"{kernels}; an estimate: about {format_duration(estimate.estimated_seconds)} to build on "
        f"this machine, from {estimate.timed_kernels} kernels timed now"
    )


def _print_counts(
    space: SearchSpace, distributions: Mapping[GraphCount, Distribution], sampled: int
) -> None:
    """Print how large the networks of a space are, and the published ones among them."""
    from nas import console
    from nas.space.summary import count_reference

    formats: tuple[Callable[[float], str], ...] = (format_count, format_count, format_bytes)
    quantiles: dict[str, Callable[[Distribution], int]] = {
        "smallest": lambda counts: counts.smallest,
        "10%": lambda counts: counts.deciles[0],
        "median": lambda counts: counts.median,
        "90%": lambda counts: counts.deciles[8],
        "largest": lambda counts: counts.largest,
    }
    rows: list[Sequence[str] | None] = [
        (
            name,
            *(form(of(each)) for form, each in zip(formats, distributions.values(), strict=True)),
        )
        for name, of in quantiles.items()
    ]
    rows += [None] if space.references else []
    for each in (count_reference(space, row.name) for row in space.references):
        counts = (each.macs, each.params, each.peak_memory_bytes)
        cells = [form(count) for form, count in zip(formats, counts, strict=True) if count]
        rows.append((each.name, *(cells or [each.error])))
    console.print_table(["network", "MACs", "parameters", "peak memory"], rows)
    sample = (
        f"all {sampled} networks"
        if sampled == space.size
        else f"{sampled} networks drawn uniformly"
    )
    console.say(f"10%, median and 90% of {sample}; the smallest and the largest of all")


def format_size(size: int) -> str:
    """Return a size exactly up to a million, then in powers of ten; a float could overflow."""
    return f"{size:,}" if size < 10**6 else f"{Decimal(size):.2e}".replace("e+", "e")


def _range_text(ends: CountRange) -> str:
    return f"{format_count(ends.smallest)} to {format_count(ends.largest)}"


def print_stages(space: SearchSpace, stages: Sequence[StageSummary]) -> None:
    """Print the table of a space, then what the names of bundles pass to the blocks."""
    from nas import console

    console.print_records(
        stages,
        {
            "stage": lambda row: row.name,
            "block": lambda row: f"{row.entry}, {row.block} ..." if row.entry else row.block,
            "width": lambda row: _list_text(row.width),
            "depth": lambda row: _list_text(row.depth),
            "stride": _stride_text,
            "further choices": lambda row: "; ".join(_further_choices(row)),
            "output": lambda row: " or ".join(f"{h}x{w}" for h, w in row.output_sizes),
        },
        left=("block", "further choices"),
    )
    network_choices = {each.name: each.to_json() for each in space.network_choices}
    for name, options in network_choices.items():
        console.say(f"whole network: {name} {_list_text(options)}")
    tables = [
        network_choices,
        *(table for row in stages for table in (row.per_stage, row.per_block)),
    ]
    for line in dict.fromkeys(line for choices in tables for line in _bundle_lines(choices)):
        console.say(line)


def _list_text(options: Options) -> str:
    return ", ".join(map(str, options))


def _stride_text(row: StageSummary) -> str:
    def text(stride: int | dict[Any, int]) -> str:
        if isinstance(stride, int):
            return str(stride)
        return ", ".join(f"{value} ({option})" for option, value in stride.items())

    in_table, adapted = text(row.table_stride), text(row.stride)
    return in_table if in_table == adapted else f"{in_table}, here {adapted}"


def _further_choices(row: StageSummary) -> Iterator[str]:
    """Iterate over the choices beside width and depth, fixed values of all blocks among them."""
    fixed = {key: options for key, options in row.per_block.items() if len(options) == 1}
    for key, options in {**row.per_stage, **fixed}.items():
        yield f"{key} {_list_text(options)}"
    each = [f"{k} {_list_text(o)}" for k, o in row.per_block.items() if k not in fixed]
    if each:
        yield f"each block: {'; '.join(each)}"


def _bundle_lines(choices: Mapping[str, Options]) -> Iterator[str]:
    for key, options in choices.items():
        if isinstance(options, dict):
            for name, bundle in options.items():
                text = ", ".join(f"{k} {v}" for k, v in (bundle or {}).items())
                yield f"{key} {name}: {text or 'the block is left out'}"
