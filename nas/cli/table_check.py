"""`nas table check`: whole networks or kernels timed again, and compared with a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    Address,
    Batch,
    DeviceTable,
    Json,
    Plot,
    References,
    Seed,
    check_plot,
    load_spaces,
    open_table_runtime,
    print_json,
    require_table_file,
    with_sizes,
)
from nas.display import console
from nas.display.formatting import format_number, latency_number
from nas.errors import RequestError, TableError
from nas.figures import KERNEL_UNIT, NETWORK_UNIT

if TYPE_CHECKING:
    from nas.latency import KernelCheck, TableCheck

_MAX_SHOWN_NETWORKS = 5
"""Random networks of a check that are shown, those with the largest errors."""

_MAX_SHOWN_KERNELS = 10
"""Kernels of a quick check that are shown, those that changed most."""


@with_sizes
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
    batch: Batch = 1,
    seed: Seed = 0,
    target: Address = None,
    plot: Plot = None,
    as_json: Json = False,
    **sizes: int,
) -> None:
    """Time whole networks or kernels again, and compare them with the table.

    The networks are random networks of the spaces, and the published networks of the spaces at the
    same input size. Each is timed in several rounds. A mean error of 2%, or of twice the
    difference between two timings of the same network, is good.

    With --quick, 40 kernels are timed again instead, which takes a minute. With --fit, networks
    that are spread over the latencies of the spaces are timed, and two factors, fitted on them,
    correct all predictions from then on. A build does so, too.

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
    spaces = load_spaces(space or [], sizes)
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
        console.say(f"from now on, {calibration.text}")


def _show_check(check: TableCheck) -> None:
    """Print the agreement, the published networks, and the random ones with the largest errors."""
    agreements = {"all": check.agreement}
    if check.references.networks and check.random.networks:
        agreements["random"] = check.random.agreement
        agreements["published"] = check.references.agreement
    console.print_records(
        agreements.items(),
        {
            "networks": lambda row: row[0],
            "timed": lambda row: row[1].nets,
            "mean error": lambda row: f"{row[1].mape:.2%}",
            "signed": lambda row: f"{row[1].bias:+.2%}",
            "within 5%": lambda row: f"{row[1].within_5_percent:.0%}",
            "within 10%": lambda row: f"{row[1].within_10_percent:.0%}",
            "Kendall tau": lambda row: format_number(row[1].kendall_tau, ".3f") or "undefined",
        },
    )
    random = check.random.networks
    worst = sorted(random, key=lambda each: -abs(each.relative_error))[:_MAX_SHOWN_NETWORKS]
    is_measured = check.basis == "measured"
    whole = "measured" if is_measured else "estimated"
    console.print_records(
        (*check.references.networks, *worst),
        {
            "network": lambda each: each.reference or f"random, {each.architecture.space.name}",
            f"predicted, {NETWORK_UNIT.name}": lambda each: latency_number(each.predicted_us),
            f"{whole}, {NETWORK_UNIT.name}": lambda each: latency_number(each.measured_us),
            "error": lambda each: f"{each.relative_error:+.2%}",
        },
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
        console.say(f"latencies are those of the fastest rounds; networks {check.slowdown.text}")
    if disturbed := sum(each.latency.is_disturbed for each in check.networks):
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
    console.print_records(
        changed[:_MAX_SHOWN_KERNELS],
        {
            "changed most": lambda each: each.kernel.text,
            f"table, {KERNEL_UNIT.name}": lambda each: f"{each.table_us:.4g}",
            "now over table": lambda each: each.latency.error or f"{each.ratio:.3f}",
        },
    )
    for change in check.changes:
        console.say(f"note: {change}")
    if check.device_ratio is not None:
        console.say(
            f"{len(check.kernels)} kernels took {check.device_ratio:.3f} times what the table says "
            f"(median){'' if check.problem else ': the table holds'}"
        )
    if check.slowdown is not None:
        console.say(f"latencies are those of the fastest rounds; kernels {check.slowdown.text}")
