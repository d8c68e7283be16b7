"""`nas spaces` and `nas spaces NAME`: all spaces, or one of them in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nas.cli.options import Sizes, load_spaces, print_json
from nas.display import console
from nas.display.formatting import format_bytes, format_count, format_duration, format_size
from nas.figures import COUNTS
from nas.latency import runtime_names, space_kernels
from nas.latency.build_estimate import BuildEstimate, estimate_build
from nas.latency.installed_runtimes import default_runtime
from nas.space import SearchSpace, space_names
from nas.space.summary import (
    MAX_SAMPLES,
    Distribution,
    Options,
    StageSummary,
    count_range,
    count_reference,
    distribution,
    sample_graphs,
    summarise_stages,
)

_FORMATS: tuple[Callable[[float], str], ...] = (format_count, format_count, format_bytes)
"""How the counts of a network are printed, in the order of `COUNTS`."""


def space_document(space: SearchSpace, kernels: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return what `nas spaces --json` prints of a space: numbers that are quick to compute.

    Args:
        space: the space.
        kernels: number of its kernels by runtime; by default those of `_quick_runtimes`.
    """
    if kernels is None:
        kernels = {name: _count_kernels(space, name) for name in _quick_runtimes()}
    strides = zip([stage.name for stage in space.stages], space.strides, strict=True)
    return {
        "name": space.name,
        **space.settings,
        "strides": dict(strides),
        "size": space.size,
        "choices": space.parameters,
        "kernels": kernels,
        **{count: count_range(space, count) for count in COUNTS},
        "references": [count_reference(space, each.name) for each in space.references],
        "digest": space.digest,
    }


def _quick_runtimes() -> list[str]:
    """Return the runtimes whose kernels follow from rules, so that none is asked for each block."""
    return [name for name in runtime_names() if default_runtime(name).fused_blocks is None]


def _count_kernels(space: SearchSpace, runtime: str) -> int:
    return len(space_kernels(space, runtime))


def list_spaces(sizes: Sizes, as_json: bool) -> None:
    """Print a line for each space that ships."""
    spaces = load_spaces(space_names(), sizes)
    if as_json:
        print_json([space_document(space) for space in spaces])
        return
    columns: dict[str, Callable[[SearchSpace], Any]] = {
        "space": lambda space: space.name,
        "px": lambda space: space.image_size,
        "choices": lambda space: len(space.parameters),
        "size": lambda space: format_size(space.size),
        "MACs": lambda space: _range_text(space, "macs"),
        "parameters": lambda space: _range_text(space, "params"),
    }
    for name in _quick_runtimes():
        columns[f"{name} kernels"] = partial(_count_kernels, runtime=name)
    columns["references"] = lambda space: len(space.references)
    console.print_records(spaces, columns)
    console.say("One in full: nas spaces NAME. The published networks: nas spaces --references.")


def _range_text(space: SearchSpace, count: str) -> str:
    ends = count_range(space, count)
    return f"{format_count(ends.smallest)} to {format_count(ends.largest)}"


def show_space(
    space: SearchSpace, runtime: str | None, is_timed: bool, plot: Path | None, as_json: bool
) -> None:
    """Print one space in full, and draw it if `plot` is a path.

    Args:
        space: the space.
        runtime: runtime whose table is estimated; all of them if None.
        is_timed: whether a few kernels are timed for the estimate.
        plot: path of the picture.
        as_json: whether to print JSON.
    """
    runtimes = runtime_names() if runtime is None else [runtime]
    estimates = {name: _estimate(space, name, is_timed) for name in runtimes}
    with console.err.status(f"drawing {MAX_SAMPLES} networks"):
        sample = sample_graphs(space)
        stages = summarise_stages(space)
        distributions = {count: distribution(space, count, sample) for count in COUNTS}
    if plot is not None:
        from nas.cli.space_plot import draw_space

        draw_space(space, sample, plot)
    if as_json:
        print_json(
            {
                **space_document(space, {name: each.kernels for name, each in estimates.items()}),
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


def _estimate(space: SearchSpace, runtime: str, is_timed: bool) -> BuildEstimate:
    """Return how long the latency table of a runtime takes to build."""
    kernels = space_kernels(space, runtime)
    if not is_timed:
        return BuildEstimate(len(kernels), reason="--no-estimate")
    with console.err.status(f"timing a few kernels with {runtime}"):
        return estimate_build(kernels, runtime)


def _estimate_text(estimate: BuildEstimate) -> str:
    kernels = f"{estimate.kernels} kernels"
    if estimate.estimated_seconds is None:
        return f"{kernels}; no estimate of the time to build it: {estimate.reason}"
    return (
        f"{kernels}; an estimate: about {format_duration(estimate.estimated_seconds)} to build on "
        f"this machine, from {estimate.timed_kernels} kernels timed now"
    )


def _print_counts(
    space: SearchSpace, distributions: Mapping[str, Distribution], sampled: int
) -> None:
    """Print how large the networks of a space are, and the published ones among them."""

    def row(name: str, counts: Iterable[int | None]) -> list[str]:
        return [name, *(f(count) for f, count in zip(_FORMATS, counts, strict=True) if count)]

    columns = [
        (each.smallest, each.deciles[0], each.median, each.deciles[8], each.largest)
        for each in distributions.values()
    ]
    names = ("smallest", "10%", "median", "90%", "largest")
    rows: list[list[str] | None] = [
        row(name, counts) for name, counts in zip(names, zip(*columns, strict=True), strict=True)
    ]
    rows += [None] if space.references else []
    for each in (count_reference(space, reference.name) for reference in space.references):
        counts = (each.macs, each.params, each.peak_memory_bytes)
        rows.append([each.name, each.error] if each.error else row(each.name, counts))
    console.print_table(["network", "MACs", "parameters", "peak memory"], rows)
    sample = f"all {sampled}" if sampled == space.size else f"{sampled} uniformly drawn"
    console.say(f"10%, median and 90% of {sample} networks; the smallest and the largest of all")


def print_stages(space: SearchSpace, stages: Sequence[StageSummary]) -> None:
    """Print the table of a space, then what the names of bundles pass to the blocks."""
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
