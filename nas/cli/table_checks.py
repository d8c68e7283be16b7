"""`nas table check`, `calibrate` and `verify`: holding a table against the device it belongs to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import (
    Address,
    Batch,
    Channels,
    Classes,
    DeviceTable,
    ImageSize,
    Json,
    Plot,
    References,
    Seed,
    Spaces,
    all_adapted,
    existing,
    picture,
    print_json,
    runtime_of,
)

if TYPE_CHECKING:
    from nas.latency import Check, LatencyTable
    from nas.space import SearchSpace


def check(
    table: DeviceTable,
    space: Spaces,
    nets: Annotated[int, typer.Option(min=1, help="Random networks to compile and time.")] = 20,
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
    """Compiles and times whole networks and compares them with the table's predictions.

    Random networks of the spaces, and the spaces' published networks at the same input size. Each
    is timed at two moments or more; a mean error of 2%, or of twice what those differ by, is good.

    \b
    Example: nas table check latency_tables/*.jsonl --space mobilenet --image-size 32
    Example: nas table check mine.jsonl --space mobilenet --nets 50 --no-references --plot check.png
    Example: nas table check pi.jsonl --space mobilenet --target rpc://127.0.0.1:9090
    """
    from nas.describe import checks, table_figures

    picture(plot)
    spaces = all_adapted(space, image_size, channels, classes)
    checked, found = _check(table, target, spaces, nets, seed, references, batch)
    if plot is not None:
        title = f"{checked.path.stem}: mean error {found.agreement.mape:.2%}"
        table_figures.draw_check(found, title, plot)
    if as_json:
        print_json(found.to_json())
    else:
        checks.show_check(found)


def calibrate(
    table: DeviceTable,
    space: Spaces,
    nets: Annotated[int, typer.Option(min=8, help="Random networks to fit the line on.")] = 20,
    references: References = True,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    batch: Batch = 1,
    seed: Seed = 1,
    target: Address = None,
    as_json: Json = False,
) -> None:
    """Fits a line from predicted to measured on random whole networks and keeps it in the table.

    Predictions stay as they are; the corrected latency is shown beside them. Judged on networks
    that it was not fitted on: each random one by a fit on the others, and the published ones. Every
    batch size has a line of its own.

    Example: nas table calibrate latency_tables/*.jsonl --space mobilenet --image-size 32
    """
    from nas.describe import checks
    from nas.latency import calibrate as fit_calibration

    spaces = all_adapted(space, image_size, channels, classes)
    calibrated, found = _check(table, target, spaces, nets, seed, references, batch, keep=True)
    fitted = fit_calibration(calibrated, found)
    if as_json:
        flagged = {
            "nets_with_unstable_kernels": found.with_unstable,
            "nets_with_estimated_kernels": found.with_estimated,
        }
        print_json({**asdict(fitted), **flagged})
    else:
        checks.show_calibration(fitted)
        checks.show_flagged(found)


def verify(
    table: DeviceTable,
    rows: Annotated[int, typer.Option(min=1, help="Rows to time again, at most.")] = 40,
    target: Address = None,
    as_json: Json = False,
) -> None:
    """Times a sample of a table's rows again and says whether it still holds; exits 1 if not.

    The sample is spread over kinds of kernels and latencies, and always the same. The table stays
    as it is.

    \b
    Example: nas table verify latency_tables/*.jsonl
    Example: nas table verify latency_tables/mine.jsonl --rows 100 --json
    """
    from nas.console import ProgressBars
    from nas.describe import checks
    from nas.errors import TableError
    from nas.latency import LatencyTable
    from nas.latency import verify as verify_table
    from nas.latency.worker_process import WorkerTimer

    runtime = runtime_of(existing(table), target)
    read = LatencyTable.open(table, runtime=runtime)
    with ProgressBars() as bars, WorkerTimer(runtime) as timer:
        bars.begin("rows", "timing")
        found = verify_table(read, timer, runtime.fingerprint, rows=rows, progress=bars.advance)
    if as_json:
        print_json(found.to_json())
    else:
        checks.show_verification(found)
    if not found.holds:
        raise TableError(
            f"{table} {found.verdict}.",
            remedy="See `nas doctor`, or build a new one with `nas table build --out NEW.jsonl`.",
        )


def _check(
    path: Path,
    target: str | None,
    spaces: list[SearchSpace],
    nets: int,
    seed: int,
    references: bool,
    batch: int,
    *,
    keep: bool = False,
) -> tuple[LatencyTable, Check]:
    """A table and whole networks held against it.

    Args:
        keep: whether what they tell is kept in the table: then that it can be written is seen
            before the networks are timed, and the dispatch costs are not timed once more.
    """
    import numpy as np

    from nas.console import ProgressBars
    from nas.latency import LatencyTable, check_table

    runtime = runtime_of(existing(path), target)
    table = LatencyTable.open(path, runtime=runtime)
    if keep:
        with table.writing():
            pass
    with ProgressBars() as bars:
        bars.begin("whole networks", "step")
        check = check_table(
            table,
            spaces,
            runtime,
            nets=nets,
            rng=np.random.default_rng(seed),
            references=references,
            batch=batch,
            now=not keep,
            progress=bars.advance,
        )
    return table, check
