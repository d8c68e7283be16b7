"""`nas table build`, `show`, `diff` and `merge`.

`nas.cli.table_checks` has the commands that compare a table with its device.
"""

from __future__ import annotations

from dataclasses import asdict
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
    check_plot,
    load_adapted_spaces,
    open_table,
    open_table_runtime,
    print_json,
    show,
)

app = typer.Typer(help="Build, inspect and check latency tables.", no_args_is_help=True)


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
    out: Annotated[
        Path, typer.Option(help="Folder of tables, or the .jsonl file of this table.")
    ] = Path("latency_tables"),
    retry_failed: Annotated[
        bool, typer.Option(help="Also time the kernels again that failed before.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option(help="Also time the kernels again that are in the table; all timings count."),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(help="At the end, time eight whole networks and fit a correction on them."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Time every kernel of the spaces that the device's table lacks.

    At the end, eight whole networks are timed. If a factor and costs of launches, fitted on them,
    are expected to predict other networks better, they correct all predictions. The command may be
    stopped at any time, and continues when it is started again. One table holds the kernels of
    several batch sizes.

    \b
    Example: nas table build --space mobilenet --space shufflenet --image-size 32
    Example: nas table build --space mobilenet --image-size 32 --batch 4
    """
    from nas.console import ProgressBars
    from nas.errors import MeasurementError
    from nas.latency import (
        LatencyTable,
        build_table,
        calibrate_after_build,
        calibration_text,
        lacks_calibration,
        open_runtime,
        space_kernels,
    )
    from nas.latency.worker_process import timers_for

    spaces = load_adapted_spaces(space, image_size, channels, classes)
    device = open_runtime(runtime, target=target, threads=threads, dtype=dtype)
    device.check_batch(batch)
    kernels = [kernel for each in spaces for kernel in space_kernels(each, device, batch)]
    table = LatencyTable.open_or_create(out, device)
    calibration = problem = None
    with ProgressBars() as bars:
        bars.begin("latency table", "timing")
        with timers_for(device) as timers:
            built = build_table(
                table,
                kernels,
                timers,
                retry_failed=retry_failed,
                again=again,
                progress=lambda p: bars.advance(p.done, p.total, p.record.name),
            )
        if calibrate and (built.added or again or lacks_calibration(table, spaces, batch)):
            bars.begin("calibration", "network")
            try:
                calibration = calibrate_after_build(
                    table, spaces, device, batch=batch, progress=bars.advance
                )
            except MeasurementError as error:
                problem = f"predictions stay uncorrected: {error}"
    seconds_per_kernel = built.seconds / built.added if built.added else 0.0
    result: dict[str, Any] = {
        "table": str(table.path),
        "batch": batch,
        "kernels_needed": len(set(kernels)),
        "ok": built.ok,
        "unstable": built.unstable,
        "failed": built.failed,
        "seconds": round(built.seconds, 2),
        "seconds_per_kernel": round(seconds_per_kernel, 3),
        "dispatch_us": table.dispatch_us,
    }
    text = (
        f"{table.path}: {built.added} kernels added ({built.failed} failed, {built.unstable} "
        f"unstable) of {result['kernels_needed']} needed, {seconds_per_kernel:.2f} s a kernel."
    )
    if calibration is not None:
        result["calibration"] = asdict(calibration)
        text += f"\n{calibration_text(asdict(calibration))}"
    if problem is not None:
        result["calibration_error"] = problem
        text += f"\n{problem}"
    show(result, text, as_json)


@app.command("show")
def show_table(
    table: Table,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space", help="Also count the kernels of this space in the table; may be repeated."
        ),
    ] = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    batch: Batch = 1,
    peak: Annotated[
        bool,
        typer.Option(
            "--peak", help="Also measure the speed of a matrix product, to compare kernels with."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a table contains: device, speed of its kernels, noise, failures and coverage.

    \b
    Example: nas table show latency_tables/*.jsonl
    Example: nas table show latency_tables/mine.jsonl --space mobilenet --image-size 32 --peak
    """
    from nas.describe import tables
    from nas.errors import RequestError
    from nas.latency.matrix_benchmark import measure_peak

    spaces = load_adapted_spaces(space or [], image_size, channels, classes)
    latency_table = open_table(table)
    measured_peak = None
    if peak:
        if latency_table.runtime.is_remote:
            raise RequestError(
                f"{table} belongs to a remote board, but --peak measures this machine.",
                remedy="Leave --peak out.",
            )
        latency_table.device.require_match(open_table_runtime(table).fingerprint, str(table))
        measured_peak = measure_peak(latency_table.device.threads)
    description = tables.describe_table(latency_table, spaces, measured_peak, batch)
    if as_json:
        print_json(description)
    else:
        tables.show_table(description)


@app.command()
def diff(
    before: Table,
    after: Annotated[Path, typer.Argument(help="A second table, of any device and runtime.")],
    most: Annotated[int, typer.Option(min=1, help="Number of kernels to show.")] = 15,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Show what changed between two tables, by kernel and by kind of kernel.

    \b
    Example: nas table diff old.jsonl latency_tables/mine.jsonl
    Example: nas table diff tvm.jsonl onnxruntime.jsonl --plot runtimes.png
    """
    from nas.describe import table_comparison
    from nas.errors import RequestError
    from nas.latency import compare_tables

    check_plot(plot)
    comparison = compare_tables(open_table(before), open_table(after))
    if plot is not None:
        if not comparison.common:
            raise RequestError(
                f"{before} and {after} have no kernel in common, so there is nothing to draw."
            )
        table_comparison.draw_comparison(comparison, (before.stem, after.stem), plot)
    if as_json:
        print_json(table_comparison.describe_comparison(comparison))
    else:
        table_comparison.show_comparison(comparison, most)


@app.command()
def merge(
    table: Annotated[list[Path], typer.Argument(help="One or more latency tables of one device.")],
    out: Annotated[Path, typer.Option(help="New .jsonl file, which must not exist.")],
    as_json: Json = False,
) -> None:
    """Merge several tables of the same device into a new one.

    The new table has the most trustworthy row of each kernel: an ok row before an unstable one, and
    an unstable one before a failed one. Among equals it has the row whose samples spread least. The
    tables themselves do not change. A single table is compacted: the new one predicts the same, and
    lacks the rows that later ones superseded.

    Example: nas table merge mine.jsonl colleagues.jsonl --out latency_tables/both.jsonl
    """
    from nas.cli.options import require_table_file
    from nas.describe import tables
    from nas.latency import merge_tables

    merged = merge_tables([require_table_file(each) for each in table], out)
    show(merged.to_json(), tables.merge_text(merged), as_json)


for _command in (table_checks.check, table_checks.calibrate, table_checks.verify):
    app.command()(_command)
