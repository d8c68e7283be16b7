"""`nas table build`, `import`, `show`, `diff` and `merge`."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    Batch,
    Dtype,
    Json,
    Plot,
    Runtime,
    Spaces,
    Table,
    Target,
    Threads,
    check_plot,
    job_key,
    load_spaces,
    open_table,
    print_json,
    require_table_file,
    show,
    with_sizes,
)
from nas.cli.table_check import check
from nas.display import console
from nas.display.formatting import format_kernel_latency
from nas.errors import MissingKernelError, RequestError
from nas.figures import KERNEL_UNIT

if TYPE_CHECKING:
    from nas.latency import Comparison, LatencyTable
    from nas.latency.record import Record
    from nas.space import SearchSpace

_COVERAGE_STATUSES = ("ok", "unstable", "disturbed", "failed", "missing")

app = typer.Typer(help="Build, inspect and check latency tables.", no_args_is_help=True)


@app.command()
@with_sizes
def build(
    space: Spaces,
    resolution: Annotated[list[float] | None, job_key("space.resolutions", "--resolution")] = None,
    runtime: Runtime = None,
    target: Target = None,
    threads: Threads = 1,
    dtype: Dtype = None,
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
        typer.Option(help="At the end, time whole networks and fit a correction on them."),
    ] = True,
    as_json: Json = False,
    **sizes: int,
) -> None:
    """Time every kernel of the spaces that the device's table lacks.

    At the end, some whole networks are timed, and two factors, fitted on them, correct all
    predictions. The command may be stopped at any time, and continues when it is started again.
    One table holds the kernels of several batch sizes. --resolution may be repeated. Without
    --runtime it is tvm, or the one that alone has the target.

    \b
    Example: nas table build --space mobilenet --space shufflenet --image-size 32
    Example: nas table build --space mobilenet --image-size 32 --batch 4
    """
    from nas.errors import MeasurementError
    from nas.latency import (
        LatencyTable,
        build_table,
        correct_after_build,
        lacks_correction,
        open_runtime,
        space_kernels,
    )
    from nas.latency.installed_runtimes import completed_device
    from nas.latency.kit import KitDevice
    from nas.latency.worker_process import timers_for
    from nas.run.settings import DeviceSettings

    spaces = load_spaces(space, sizes, resolution)
    given = {"runtime": runtime, "target": target, "dtype": dtype}
    chosen = completed_device(
        {name: value for name, value in given.items() if value is not None}, dict(DeviceSettings())
    )
    device = open_runtime(
        chosen["runtime"], target=chosen["target"], threads=threads, dtype=chosen["dtype"]
    )
    device.check_batch(batch)
    if isinstance(device, KitDevice):
        device.require_transport()
    kernels = [kernel for each in spaces for kernel in space_kernels(each, device, batch)]
    table = LatencyTable.open_or_create(out, device)
    calibration = problem = None
    with console.ProgressBars() as bars:
        bars.begin("latency table", "timing")
        with timers_for(device) as timers:
            built = build_table(
                table,
                kernels,
                timers,
                retry_failed=retry_failed,
                again=again,
                progress=bars.advance,
            )
        if calibrate and (built.added or again or lacks_correction(table, spaces, batch)):
            bars.begin("calibration", "network")
            try:
                calibration = correct_after_build(
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
        "disturbed": built.disturbed,
        "failed": built.failed,
        "seconds": round(built.seconds, 2),
        "seconds_per_kernel": round(seconds_per_kernel, 3),
        "dispatch_us": table.dispatch.parts_us,
    }
    text = (
        f"{table.path}: {built.added} kernels added ({built.failed} failed, {built.unstable} "
        f"unstable, {built.disturbed} disturbed) of {result['kernels_needed']} needed, "
        f"{seconds_per_kernel:.2f} s a kernel."
    )
    if calibration is not None:
        result["calibration"] = calibration.to_json()
        text += f"\n{calibration.text}"
    if problem is not None:
        result["calibration_error"] = problem
        text += f"\n{problem}"
    show(result, text, as_json)


@app.command("import")
def import_results(
    results: Annotated[
        Path, typer.Argument(help="results.jsonl in the folder of a kit, or that folder.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of tables, or the .jsonl file of this table.")
    ] = Path("latency_tables"),
    as_json: Json = False,
) -> None:
    """Add what a kit timed on its device to the latency table of that device.

    The table is like any other. When the program of the kit has gone on, import its results again:
    no timing is added twice.

    Example: nas table import my_kit/results.jsonl
    """
    from nas.latency import LatencyTable
    from nas.latency.kit import RESULTS, device_of

    folder = results if results.is_dir() else results.parent
    if results not in (folder, folder / RESULTS):
        raise RequestError(
            f"The results of a kit are named {RESULTS}, not {results.name}.",
            remedy="Rename the file, in the folder of its kit.",
        )
    device = device_of(folder)
    with console.ProgressBars() as bars:
        bars.begin("latency table", "timing")
        notes = device.import_kernels(folder, out, bars.advance)
    table = LatencyTable.find(out, device)
    assert table is not None  # It was made at the latest by the import.
    status = dict(Counter(record.status for record in table.records("kernel")))
    content: dict[str, Any] = {
        "table": str(table.path),
        "kernels": len(table),
        "status": status,
        "dispatch_us": table.dispatch.parts_us,
        "notes": list(notes),
    }
    counts = ", ".join(f"{count} {name}" for name, count in status.items())
    show(content, "\n".join([f"{table.path}: {len(table)} kernels ({counts}).", *notes]), as_json)


@app.command("show")
@with_sizes
def show_table(
    table: Table,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space", help="Also count the kernels of this space in the table; may be repeated."
        ),
    ] = None,
    batch: Batch = 1,
    as_json: Json = False,
    **sizes: int,
) -> None:
    """Show what a table contains: device, speed of its kernels, noise, failures and coverage.

    \b
    Example: nas table show latency_tables/*.jsonl
    Example: nas table show latency_tables/mine.jsonl --space mobilenet --image-size 32
    """
    from nas.latency.record import UNCERTAIN
    from nas.latency.rounds import Slowdown

    spaces = load_spaces(space or [], sizes)
    opened = open_table(table)
    records = opened.records("kernel")
    usable = [record for record in records if record.latency_us is not None]
    slowdown = Slowdown.of(record.latency for record in usable)
    content: dict[str, Any] = {
        "table": str(table),
        "device": opened.device.to_json(),
        "kernels": len(records),
        "status": dict(Counter(record.status for record in records)),
        "basis": dict(Counter(record.basis for record in usable)),
        "dispatch_us": opened.dispatch.parts_us,
        "uncertain_dispatch": opened.uncertain_dispatch,
        "calibrations": [each.to_json() for each in opened.corrections()],
        "slowdown": None if slowdown is None else slowdown._asdict(),
        "kinds": _kinds(usable),
        "coverage": [_coverage(opened, each, batch) for each in spaces],
        "failed": {r.name: r.error for r in records if r.status == "failed"},
    }
    if as_json:
        print_json(content)
        return
    device = opened.device
    versions = ", ".join(f"{name} {version}" for name, version in device.versions.items())
    console.say(
        f"{table}\n{device.processor}, {device.runtime} ({versions}), {device.dtype}, "
        f"{device.threads} thread(s)"
    )
    costs = ", ".join(
        f"{part} {format_kernel_latency(us, 3)}" for part, us in content["dispatch_us"].items()
    )
    status = ", ".join(f"{count} {name}" for name, count in content["status"].items())
    console.say(f"{len(records)} kernels ({status}); dispatch: {costs or 'not measured'}")
    for basis, count in content["basis"].items():
        if basis != "measured":
            console.say(f"{count} of the kernels are {basis}")
    if opened.uncertain_dispatch or any(each in content["status"] for each in UNCERTAIN):
        console.say(
            "uncertain timings are unstable, as their rounds do not agree, or disturbed, as the "
            "core was slowed at all of them, so that they are too high"
        )
    if opened.uncertain_dispatch:
        console.say(f"uncertain dispatch costs: {', '.join(opened.uncertain_dispatch)}")
    for calibration in opened.corrections():
        images = f"{calibration.batch} images: " if calibration.batch > 1 else ""
        console.say(f"{images}{calibration.text}")
    if slowdown is not None:
        console.say(f"latencies are those of the fastest rounds; kernels {slowdown.text}")
    console.print_table(
        ["kind", "kernels", "share of time",
         *(f"{name}, {KERNEL_UNIT.name}" for name in ("smallest", "median", "largest")),
         "median GFLOP/s", "best"],
        [
            (kind, row["kernels"], f"{row['share_of_time']:.1%}",
             *(f"{row[key]:.4g}" for key in ("smallest_us", "median_us", "largest_us")),
             *("" if row[key] is None else f"{row[key]:.3g}"
               for key in ("median_gflops", "best_gflops")))
            for kind, row in content["kinds"].items()
        ],
    )  # fmt: skip
    if spaces:
        keys = ["space", "image_size", "batch", "kernels", *_COVERAGE_STATUSES]
        console.print_table(
            [key.replace("_", " ") for key in keys],
            [[row.get(key, "unknown") for key in keys] for row in content["coverage"]],
        )
        for row in content["coverage"]:
            if "error" in row:
                console.say(f"{row['space']}: {row['error']}")
    for name, error in content["failed"].items():
        console.say(f"failed: {name}: {error}")


def _kinds(records: list[Record]) -> dict[str, Any]:
    """Return latencies in microseconds and speed by kind of kernel, by their share of the time."""
    from nas.kernels.kernel import Kernel, group_by_kind

    total_us = sum(record.latency_us or 0.0 for record in records)
    kinds: dict[str, Any] = {}
    for kind, own in group_by_kind(records, lambda record: Kernel.parse(record.name)).items():
        latencies = [record.latency_us or 0.0 for record in own]
        macs = [Kernel.parse(record.name).macs for record in own]
        # A multiply-accumulate is two operations, and 1e9 operations per second are 1e3 per us.
        gflops = [2 * m / us / 1e3 for m, us in zip(macs, latencies, strict=True) if m]
        kinds[kind] = {
            "kernels": len(own),
            "smallest_us": min(latencies),
            "median_us": statistics.median(latencies),
            "largest_us": max(latencies),
            "share_of_time": sum(latencies) / total_us,
            "median_gflops": statistics.median(gflops) if gflops else None,
            "best_gflops": max(gflops, default=None),
        }
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["share_of_time"]))


def _coverage(table: LatencyTable, space: SearchSpace, batch: int) -> dict[str, Any]:
    """Return the number of a space's kernels by their status in a table, or why it is unknown."""
    from nas.latency import space_kernels

    asked = {"space": space.name, "image_size": space.image_size, "batch": batch}
    try:
        kernels = space_kernels(space, table.runtime, batch)
    except MissingKernelError as error:
        return {**asked, "error": str(error)}
    records = [table.record(kernel) for kernel in kernels]
    counts = Counter("missing" if record is None else record.status for record in records)
    return {
        **asked,
        "kernels": len(kernels),
        **{status: counts[status] for status in _COVERAGE_STATUSES},
    }


app.command()(check)


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
    from nas.latency import compare_tables

    check_plot(plot)
    comparison = compare_tables(open_table(before), open_table(after))
    if plot is not None:
        if not comparison.ratios:
            raise RequestError(
                f"{before} and {after} have no kernel in common, so there is nothing to draw."
            )
        from nas.cli.table_figures import draw_comparison

        draw_comparison(comparison, (before.stem, after.stem), plot)
    if as_json:
        print_json(comparison.to_json())
    else:
        _show_comparison(comparison, most)


def _show_comparison(comparison: Comparison, most: int) -> None:
    """Print the largest changes, the ratios of each kind, and the counts."""
    for difference in comparison.device_differences:
        console.say(f"another device: {difference}")
    latencies = [f"{when}, {KERNEL_UNIT.name}" for when in ("before", "after")]
    columns = ["changed most", *latencies, "ratio", "before is", "after is"]
    rows = [
        (
            change.key,
            *(f"{each.latency_us:.4g}" for each in (change.before, change.after) if each),
            f"{ratio:.3f}",
            *(", ".join(each.flags) for each in (change.before, change.after) if each),
        )
        for change, ratio in comparison.ratios[:most]
    ]
    console.print_table(columns, rows, left=columns[-2:])
    console.print_table(
        ["kind", "kernels", "median ratio"],
        [(k, len(own), f"{statistics.median(own):.3f}") for k, own in comparison.kinds.items()],
    )
    content = comparison.to_json()
    ratio = comparison.median_ratio
    console.say(
        f"median ratio {'undefined' if ratio is None else f'{ratio:.3f}'}; {content['common']} "
        f"rows have a latency in both tables, {content['only_before']} are only in the first, "
        f"{content['only_after']} only in the second"
    )


@app.command()
def merge(
    table: Annotated[list[Path], typer.Argument(help="One or more latency tables of one device.")],
    out: Annotated[Path, typer.Option(help="New .jsonl file, which must not exist.")],
    as_json: Json = False,
) -> None:
    """Merge several tables of the same device into a new one.

    The new table has the most trustworthy row of each kernel: ok rows come before unstable ones,
    then come disturbed and then failed ones. Among equals it has the row whose samples spread
    least. The tables themselves do not change. A single table is compacted: the new one predicts
    the same, and lacks the rows that later ones superseded. A table merged from several has no
    correction of its predictions until `nas table check --fit`.

    Example: nas table merge mine.jsonl colleagues.jsonl --out latency_tables/both.jsonl
    """
    from nas.latency import merge_tables

    merged = merge_tables([require_table_file(each) for each in table], out)
    taken = "; ".join(f"{count} rows from {path}" for path, count in merged.taken.items())
    dispatch = merged.dispatch_from or "no table, because none has all: continue one with a build"
    text = (
        f"{merged.path}: {merged.kernels} kernels ({merged.failed} failed); {taken}; dispatch "
        f"costs from {dispatch}"
    )
    show(merged.to_json(), text, as_json)
