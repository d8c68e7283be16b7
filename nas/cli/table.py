"""`nas table build`, `show`, `check`, `diff` and `merge`."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    Address,
    Batch,
    Channels,
    Classes,
    DeviceTable,
    Dtype,
    ImageSize,
    Json,
    Plot,
    References,
    Runtime,
    Seed,
    Spaces,
    Table,
    Target,
    Threads,
    check_plot,
    job_key,
    load_adapted_spaces,
    open_table,
    open_table_runtime,
    print_json,
    require_table_file,
    show,
)
from nas.display import console
from nas.errors import RequestError, TableError

if TYPE_CHECKING:
    from nas.latency import Comparison, KernelCheck, LatencyTable, TableCheck
    from nas.latency.check import CheckedNetwork
    from nas.latency.record import Record
    from nas.space import SearchSpace
    from nas.statistics import LatencyAgreement

_COVERAGE_STATUSES = ("ok", "unstable", "disturbed", "failed", "missing")

_MAX_SHOWN_NETWORKS = 5
"""Random networks of a check that are shown, those with the largest errors."""

_MAX_SHOWN_KERNELS = 10
"""Kernels of a quick check that are shown, those that changed most."""

app = typer.Typer(help="Build, inspect and check latency tables.", no_args_is_help=True)


@app.command()
def build(
    space: Spaces,
    image_size: ImageSize = None,
    resolution: Annotated[list[float] | None, job_key("space.resolutions", "--resolution")] = None,
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

    At the end, eight whole networks are timed, and a factor and a constant, fitted on them, correct
    all predictions. The command may be stopped at any time, and continues when it is started again.
    One table holds the kernels of several batch sizes. --resolution may be repeated.

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
    from nas.latency.worker_process import timers_for

    spaces = load_adapted_spaces(space, image_size, channels, classes)
    if resolution:
        spaces = [each.at_resolutions(sorted(resolution)) for each in spaces]
    device = open_runtime(runtime, target=target, threads=threads, dtype=dtype)
    device.check_batch(batch)
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
        text += f"\npredictions are corrected: {calibration.text}"
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
    as_json: Json = False,
) -> None:
    """Show what a table contains: device, speed of its kernels, noise, failures and coverage.

    \b
    Example: nas table show latency_tables/*.jsonl
    Example: nas table show latency_tables/mine.jsonl --space mobilenet --image-size 32
    """
    from nas.latency.moments import Slowdown
    from nas.latency.record import UNCERTAIN

    spaces = load_adapted_spaces(space or [], image_size, channels, classes)
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
    costs = ", ".join(f"{part} {us:.3g} us" for part, us in content["dispatch_us"].items())
    status = ", ".join(f"{count} {name}" for name, count in content["status"].items())
    console.say(f"{len(records)} kernels ({status}); dispatch: {costs or 'not measured'}")
    for basis, count in content["basis"].items():
        if basis != "measured":
            console.say(f"{count} of the kernels are {basis}")
    if opened.uncertain_dispatch or any(each in content["status"] for each in UNCERTAIN):
        console.say(
            "uncertain timings are unstable, as their moments do not agree, or disturbed, as the "
            "core was slowed at all of them, so that they are too high"
        )
    if opened.uncertain_dispatch:
        console.say(f"uncertain dispatch costs: {', '.join(opened.uncertain_dispatch)}")
    for calibration in opened.corrections():
        images = f" of {calibration.batch} images" if calibration.batch > 1 else ""
        console.say(f"predictions{images} are corrected: {calibration.text}")
    if slowdown is not None:
        console.say(f"latencies are those of quiet moments; kernels {slowdown.text}")
    console.print_table(
        ["kind", "kernels", "share of time", "smallest, us", "median, us", "largest, us",
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
            [[row[key] for key in keys] for row in content["coverage"]],
        )
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
    """Return the number of a space's kernels by their status in a table."""
    from nas.latency import space_kernels

    kernels = space_kernels(space, table.runtime, batch)
    records = [table.record(kernel) for kernel in kernels]
    counts = Counter("missing" if record is None else record.status for record in records)
    return {
        "space": space.name,
        "image_size": space.image_size,
        "batch": batch,
        "kernels": len(kernels),
        **{status: counts[status] for status in _COVERAGE_STATUSES},
    }


@app.command()
def check(
    table: DeviceTable,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            help="Name or Python file of a search space; may be repeated. Required "
            "unless --quick is given.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Only time some kernels again; exit with 1 if the table does not hold."
        ),
    ] = False,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit", help="Fit the correction of predictions on these networks, and store it."
        ),
    ] = False,
    nets: Annotated[int, typer.Option(min=1, help="Number of random networks to time.")] = 20,
    references: References = True,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    batch: Batch = 1,
    seed: Seed = 0,
    target: Address = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Time whole networks or kernels again, and compare them with the table.

    The networks are random networks of the spaces, and the published networks of the spaces at the
    same input size. Each is timed at several moments. A mean error of 2%, or of twice the
    difference between two timings of the same network, is good.

    With --quick, 40 kernels are timed again instead, which takes a minute. With --fit, networks
    that are spread over the latencies of the spaces are timed, and a factor and a constant, fitted
    on them, correct all predictions from then on; a build does so with eight networks.

    \b
    Example: nas table check latency_tables/*.jsonl --space mobilenet --image-size 32
    Example: nas table check mine.jsonl --space mobilenet --nets 50 --no-references --plot check.png
    Example: nas table check mine.jsonl --quick
    Example: nas table check mine.jsonl --space mobilenet --fit
    """
    import numpy as np

    from nas.latency import LatencyTable, check_table, correct_table
    from nas.latency.check import check_networks
    from nas.latency.correction import MIN_NETWORKS, spread_networks

    check_plot(plot)
    if not space and not quick:
        raise RequestError("No space is named.", remedy="Add --space, or --quick to need none.")
    if quick and fit:
        raise RequestError("--quick times no networks to fit on.", remedy="Leave one of them out.")
    if fit and nets < MIN_NETWORKS:
        raise RequestError(f"--nets is {nets}.", remedy=f"--fit needs {MIN_NETWORKS} or more.")
    runtime = open_table_runtime(require_table_file(table), target)
    runtime.check_batch(batch)
    if quick:
        _check_kernels(table, runtime, as_json)
        return
    spaces = load_adapted_spaces(space or [], image_size, channels, classes)
    opened = LatencyTable.open(table, runtime=runtime)
    rng = np.random.default_rng(seed)
    with console.ProgressBars() as bars:
        bars.begin("whole networks", "step")
        if fit:
            with opened.writing():  # One that cannot be written is refused before the timing.
                pass
            drawn = spread_networks(opened, spaces, nets, rng, batch)
            result = check_networks(opened, drawn, runtime, batch=batch, progress=bars.advance)
            correct_table(opened, result, spaces)
        else:
            result = check_table(
                opened, spaces, runtime, nets=nets, rng=rng, references=references, batch=batch,
                progress=bars.advance,
            )  # fmt: skip
    if plot is not None:
        from nas.cli.table_figures import draw_check

        draw_check(result, f"{table.stem}: mean error {result.agreement.mape:.2%}", plot)
    calibration = opened.correction(batch, spaces[0].digest)
    if as_json:
        fitted = calibration.to_json() if fit and calibration else None
        print_json({**result.to_json(), "calibration": fitted})
        return
    _show_check(result)
    if fit and calibration:
        console.say(f"predictions are corrected from now on: {calibration.text}")


def _show_check(check: TableCheck) -> None:
    """Print the agreement, the published networks, and the random ones with the largest errors."""
    rows = [_agreement_row("all", check.agreement)]
    if check.references.networks and check.random.networks:
        rows.append(_agreement_row("random", check.random.agreement))
        rows.append(_agreement_row("published", check.references.agreement))
    console.print_table(
        ["networks", "timed", "mean error", "signed", "within 5%", "within 10%", "Kendall tau"],
        rows,
    )
    random = check.random.networks
    worst = sorted(random, key=lambda each: -abs(each.relative_error))[:_MAX_SHOWN_NETWORKS]
    is_measured = check.basis == "measured"
    console.print_table(
        ["network", "predicted, us", f"{'measured' if is_measured else 'estimated'}, us", "error"],
        [_network_row(each) for each in (*check.references.networks, *worst)],
    )
    if len(worst) < len(random):
        console.say(f"the {len(worst)} of {len(random)} random networks with the largest errors")
    if not is_measured:
        console.say(f"nothing was measured: whole networks are {check.basis}")
    predictions = [each.prediction for each in check.networks]
    uncertain = sum(each.uncertain_launches > 0 for each in predictions)
    estimated = sum(each.estimated_launches > 0 for each in predictions)
    console.say(
        f"of {len(check.networks)} networks, {uncertain} have kernels with uncertain timings, "
        f"{estimated} have estimated ones"
    )
    if check.batch > 1:
        console.say(f"latencies are those of {check.batch} images at once")
    if check.retiming_spread is not None:
        console.say(
            "two halves of the timings of the same network: "
            f"{check.retiming_spread:.2%} apart (median)"
        )
    if check.slowdown is not None:
        console.say(f"latencies are those of quiet moments; networks {check.slowdown.text}")
    if disturbed := sum(each.timings.latency.is_disturbed for each in check.networks):
        console.say(
            f"{disturbed} of the networks are disturbed: the core was slowed whenever they were "
            "timed, so that what was measured is too high"
        )
    if check.device_ratio is not None:
        console.say(
            f"networks of the table's calibration took {check.device_ratio:.3f} times what they "
            "took then (median); the latencies above are divided by that"
        )
    mape, target = check.agreement.mape, check.target_mape
    console.say(
        f"mean error {mape:.2%}, without the correction "
        f"{check.uncorrected_agreement.mape:.2%}; the target, 2% or twice that spread, is "
        f"{target:.2%}: {'met' if mape <= target else 'missed'}"
    )


def _agreement_row(name: str, agreement: LatencyAgreement) -> list[Any]:
    tau = agreement.kendall_tau
    return [
        name,
        agreement.nets,
        f"{agreement.mape:.2%}",
        f"{agreement.bias:+.2%}",
        f"{agreement.within_5_percent:.0%}",
        f"{agreement.within_10_percent:.0%}",
        "undefined" if tau is None else f"{tau:.3f}",
    ]


def _network_row(network: CheckedNetwork) -> list[str]:
    return [
        network.reference or f"random, {network.architecture.space.name}",
        f"{network.predicted_us:.4g}",
        f"{network.measured_us:.4g}",
        f"{network.relative_error:+.2%}",
    ]


def _check_kernels(path: Path, runtime: Any, as_json: bool) -> None:
    """Time some kernels of a table again. Raises TableError if the table does not hold."""
    from nas.latency import LatencyTable, check_kernels
    from nas.latency.worker_process import WorkerTimer

    opened = LatencyTable.open(path, runtime=runtime)
    with console.ProgressBars() as bars, WorkerTimer(runtime) as timer:
        bars.begin("kernels", "timing")
        result = check_kernels(opened, timer, runtime.fingerprint, progress=bars.advance)
    if as_json:
        print_json(result.to_json())
    else:
        _show_kernels(result)
    if result.problem:
        raise TableError(
            f"{path} does not hold: {result.problem}.",
            remedy="See `nas doctor`, or build a new one with `nas table build --out NEW.jsonl`.",
        )


def _show_kernels(check: KernelCheck) -> None:
    changed = sorted(check.kernels, key=lambda each: -abs((each.ratio or 0.0) - 1))
    console.print_table(
        ["changed most", "table, us", "now over table"],
        [
            (
                each.kernel.text,
                f"{each.table_us:.4g}",
                each.error or f"{each.ratio:.3f}",
            )
            for each in changed[:_MAX_SHOWN_KERNELS]
        ],
    )
    for change in check.changes:
        console.say(f"note: {change}")
    if check.device_ratio is not None:
        console.say(
            f"{len(check.kernels)} kernels took {check.device_ratio:.3f} times what the table says "
            f"(median){'' if check.problem else ': the table holds'}"
        )
    if check.slowdown is not None:
        console.say(f"latencies are those of quiet moments; kernels {check.slowdown.text}")


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
    columns = ["changed most", "before, us", "after, us", "ratio", "before is", "after is"]
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
