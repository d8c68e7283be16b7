"""`nas table`: building, showing and checking latency tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import (
    Channels,
    Classes,
    Dtype,
    ImageSize,
    Json,
    Runtime,
    Seed,
    Spaces,
    Target,
    Threads,
    adapted,
    existing,
    print_json,
    show,
)

if TYPE_CHECKING:
    from nas.latency import Check, LatencyTable

app = typer.Typer(help="Latency tables of this device.", no_args_is_help=True)


@app.command("build")
def table_build(
    space: Spaces,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    runtime: Runtime = "tvm",
    target: Target = "cpu",
    threads: Threads = 1,
    dtype: Dtype = "float32",
    out: Annotated[Path, typer.Option(help="Folder or .jsonl file.")] = Path("latency_tables"),
    retry_failed: Annotated[bool, typer.Option(help="Time failed kernels once more.")] = False,
    as_json: Json = False,
) -> None:
    """Times every kernel of the spaces that this device's table lacks; safe to stop and start.

    Example: nas table build --space mobilenet --space shufflenet --image-size 32
    """
    from nas.console import Bars
    from nas.latency import LatencyTable, build_table, open_runtime, space_kernels

    spaces = [adapted(each, image_size, channels, classes) for each in space]
    opened = open_runtime(runtime, target=target, threads=threads, dtype=dtype)
    table = LatencyTable.open_or_create(out, opened)
    kernels = [kernel for each in spaces for kernel in space_kernels(each, runtime)]
    with Bars() as bars:
        bars.begin("latency table", "kernel")
        built = build_table(
            table,
            kernels,
            opened,
            retry_failed=retry_failed,
            progress=lambda p: bars.advance(p.done, p.total, p.record.name),
        )
    mean = built.seconds / built.added if built.added else 0.0
    record = {
        "table": str(table.path),
        "kernels_needed": len(set(kernels)),
        "ok": built.ok,
        "unstable": built.unstable,
        "failed": built.failed,
        "seconds": round(built.seconds, 2),
        "seconds_per_kernel": round(mean, 3),
        "dispatch_us": table.dispatch_us,
    }
    show(
        record,
        f"{table.path}: {built.added} kernels added ({built.failed} failed, {built.unstable} "
        f"unstable) of {record['kernels_needed']} needed, {mean:.2f} s a kernel.",
        as_json,
    )


@app.command("show")
def tableshow(
    table: Annotated[Path, typer.Argument(help="A latency table.")], as_json: Json = False
) -> None:
    """What is in a table: device, coverage by kind of kernel, noise, failures.

    Example: nas table show latency_tables/*.jsonl
    """
    from nas.describe import tables
    from nas.latency import LatencyTable

    found = tables.table(LatencyTable.open(existing(table)))
    if as_json:
        print_json(found)
    else:
        tables.show_table(found)


@app.command("check")
def table_check(
    table: Annotated[Path, typer.Argument(help="A latency table of this device.")],
    space: Spaces,
    nets: Annotated[int, typer.Option(min=1, help="Networks to compile and time.")] = 20,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a scatter plot to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Compiles and times random whole networks and compares them with the table's predictions.

    Example: nas table check latency_tables/*.jsonl --space mobilenet --image-size 32
    """
    _, check = _check(table, space, image_size, channels, classes, nets, seed)
    if plot is not None:
        check.plot(plot)
    show(check.to_json(), check.summary(), as_json)


@app.command("calibrate")
def table_calibrate(
    table: Annotated[Path, typer.Argument(help="A latency table of this device.")],
    space: Spaces,
    nets: Annotated[int, typer.Option(min=8, help="Networks to compile and time.")] = 20,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Fits a line from predicted to measured on random whole networks and keeps it in the table.

    Predictions stay as they are; the corrected latency is shown beside them.
    Example: nas table calibrate latency_tables/*.jsonl --space mobilenet --image-size 32
    """
    from dataclasses import asdict

    from nas.latency.calibration import calibrate

    opened, check = _check(table, space, image_size, channels, classes, nets, seed)
    found = calibrate(opened, check)
    show(
        asdict(found),
        f"latency = {found.slope:.4f} x predicted + {found.offset_us:.3g} us; mean error "
        f"{found.mape_before:.1%} before, {found.mape_after:.1%} after (each network predicted by "
        "a fit on the others).",
        as_json,
    )


@app.command("diff")
def table_diff(
    before: Annotated[Path, typer.Argument(help="A latency table.")],
    after: Annotated[Path, typer.Argument(help="Another, of any device.")],
    most: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 15,
    as_json: Json = False,
) -> None:
    """What changed between two tables, kernel by kernel.

    Example: nas table diff old.jsonl latency_tables/mine.jsonl
    """
    from nas.describe import tables
    from nas.latency import LatencyTable
    from nas.latency.comparison import compare

    found = compare(LatencyTable.open(existing(before)), LatencyTable.open(existing(after)))
    if as_json:
        print_json(tables.comparison(found))
    else:
        tables.show_comparison(found, most)


def _check(
    path: Path,
    names: list[str],
    image_size: int | None,
    channels: int | None,
    classes: int | None,
    nets: int,
    seed: int,
) -> tuple[LatencyTable, Check]:
    import numpy as np

    from nas.console import Bars
    from nas.latency import LatencyTable, check_table, open_runtime

    device = LatencyTable.open(existing(path)).device
    runtime = open_runtime(
        device.runtime, target=device.target, threads=device.threads, dtype=device.dtype
    )
    spaces = [adapted(name, image_size, channels, classes) for name in names]
    table = LatencyTable.open_or_create(path, runtime)
    with Bars() as bars:
        bars.begin("whole networks", "step")
        rng = np.random.default_rng(seed)
        check = check_table(table, spaces, runtime, nets=nets, rng=rng, progress=bars.advance)
    return table, check
