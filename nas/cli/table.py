"""`nas table`: building, showing, comparing and merging latency tables.

What holds them against the device is in `nas.cli.table_checks`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli import table_checks
from nas.cli.options import (
    Batch,
    Channels,
    Classes,
    Dtype,
    ImageSize,
    Json,
    Plot,
    Runtime,
    Spaces,
    Table,
    Target,
    Threads,
    Trials,
    Tuner,
    all_adapted,
    opened,
    picture,
    print_json,
    runtime_of,
    show,
)

app = typer.Typer(help="Latency tables of this device.", no_args_is_help=True)


@app.command()
def build(
    space: Spaces,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    runtime: Runtime = "tvm",
    target: Target = "cpu",
    threads: Threads = 1,
    dtype: Dtype = "float32",
    batch: Batch = 1,
    out: Annotated[Path, typer.Option(help="Folder or .jsonl file.")] = Path("latency_tables"),
    retry_failed: Annotated[bool, typer.Option(help="Time failed kernels once more.")] = False,
    again: Annotated[
        bool, typer.Option(help="Time what is there once more; the fastest timings count.")
    ] = False,
    tuner: Tuner = "template",
    trials: Trials = None,
    as_json: Json = False,
) -> None:
    """Times every kernel of the spaces that this device's table lacks; safe to stop and start.

    A table holds kernels of several batch sizes side by side. With --tuner metaschedule, kernels
    with weights are then tuned, which takes minutes each; what is faster stays.

    \b
    Example: nas table build --space mobilenet --space shufflenet --image-size 32
    Example: nas table build --space mobilenet --image-size 32 --batch 4
    Example: nas table build --space mobilenet --image-size 32 --tuner metaschedule --trials 64
    """
    from nas.console import ProgressBars
    from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
    from nas.latency.tuning import check_request, tune_table
    from nas.latency.worker_process import timers_for

    spaces = all_adapted(space, image_size, channels, classes)
    device = open_runtime(runtime, target=target, threads=threads, dtype=dtype)
    device.check_batch(batch)
    tries = check_request(device, tuner, trials)
    kernels = [kernel for each in spaces for kernel in space_kernels(each, device, batch)]
    table = LatencyTable.open_or_create(out, device)
    with ProgressBars() as bars, timers_for(device) as timers:
        bars.begin("latency table", "timing")
        built = build_table(
            table,
            kernels,
            timers,
            retry_failed=retry_failed,
            again=again,
            progress=lambda p: bars.advance(p.done, p.total, p.record.name),
        )
        tuned = None
        if tries:
            bars.begin(tuner, "kernel")
            tuned = tune_table(
                table,
                kernels,
                timers,
                tuner=tuner,
                trials=tries,
                progress=lambda p: bars.advance(p.done, p.total, f"{p.gain:.1%} faster so far"),
            )
    mean = built.seconds / built.added if built.added else 0.0
    record: dict[str, Any] = {
        "table": str(table.path),
        "batch": batch,
        "kernels_needed": len(set(kernels)),
        "ok": built.ok,
        "unstable": built.unstable,
        "failed": built.failed,
        "seconds": round(built.seconds, 2),
        "seconds_per_kernel": round(mean, 3),
        "dispatch_us": table.dispatch_us,
    }
    text = (
        f"{table.path}: {built.added} kernels added ({built.failed} failed, {built.unstable} "
        f"unstable) of {record['kernels_needed']} needed, {mean:.2f} s a kernel."
    )
    if tuned is not None:
        record["tuning"] = {"trials": tries, **tuned.to_json()}
        text += f"\n{tuned}"
    show(record, text, as_json)


@app.command("show")
def show_table(
    table: Table,
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="Say how many of its kernels the table has; repeatable."),
    ] = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    batch: Batch = 1,
    peak: Annotated[
        bool,
        typer.Option("--peak", help="Measure what this machine can do, beside what kernels do."),
    ] = False,
    as_json: Json = False,
) -> None:
    """What is in a table: device, kinds of kernels and their speed, noise, failures, coverage.

    \b
    Example: nas table show latency_tables/*.jsonl
    Example: nas table show latency_tables/mine.jsonl --space mobilenet --image-size 32 --peak
    """
    from nas.describe import tables
    from nas.errors import RequestError
    from nas.latency.peak import measure_peak

    spaces = all_adapted(space or [], image_size, channels, classes)
    read = opened(table)
    reached = None
    if peak:
        if read.runtime.is_remote:
            raise RequestError(
                f"{table} belongs to a board elsewhere, and --peak measures this machine.",
                remedy="Leave it out.",
            )
        read.device.require(runtime_of(table).fingerprint, str(table))
        reached = measure_peak(read.device.threads)
    found = tables.table(read, spaces, reached, batch)
    if as_json:
        print_json(found)
    else:
        tables.show_table(found)


@app.command()
def diff(
    before: Table,
    after: Annotated[Path, typer.Argument(help="Another, of any device and runtime.")],
    most: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 15,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """What changed between two tables, kernel by kernel and by kind of kernel.

    \b
    Example: nas table diff old.jsonl latency_tables/mine.jsonl
    Example: nas table diff tvm.jsonl onnxruntime.jsonl --plot runtimes.png
    """
    from nas.describe import table_figures, tables
    from nas.errors import RequestError
    from nas.latency import compare

    picture(plot)
    found = compare(opened(before), opened(after))
    if plot is not None:
        if not found.common:
            raise RequestError(
                f"{before} and {after} have no kernel in common, so there is nothing to draw."
            )
        table_figures.draw_comparison(found, (before.stem, after.stem), plot)
    if as_json:
        print_json(tables.comparison(found))
    else:
        tables.show_comparison(found, most)


@app.command()
def merge(
    table: Annotated[list[Path], typer.Argument(help="Two latency tables or more, of one device.")],
    out: Annotated[Path, typer.Option(help="The new .jsonl file; never one that is there.")],
    as_json: Json = False,
) -> None:
    """Makes one table of several of the same device; for each kernel the row to trust most.

    An ok row goes before an unstable one and that before a failed one; among equals the one whose
    samples spread least. The tables stay as they are.

    Example: nas table merge mine.jsonl colleagues.jsonl --out latency_tables/both.jsonl
    """
    from nas.cli.options import existing
    from nas.describe import tables
    from nas.latency import merge as merge_tables

    found = merge_tables([existing(each) for each in table], out)
    show(found.to_json(), tables.merged(found), as_json)


for _command in (table_checks.check, table_checks.calibrate, table_checks.verify):
    app.command()(_command)
