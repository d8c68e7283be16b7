"""`nas table check`, `calibrate` and `verify`: compare a table with the device it belongs to."""

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
    check_plot,
    load_adapted_spaces,
    open_table_runtime,
    print_json,
    require_table_file,
)

if TYPE_CHECKING:
    from nas.latency import LatencyTable, TableCheck
    from nas.space import SearchSpace


def check(
    table: DeviceTable,
    space: Spaces,
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
    """Compile and time whole networks, and compare them with the table's predictions.

    The networks are random networks of the spaces, and the published networks of the spaces at the
    same input size. Each is timed at several moments. A mean error of 2%, or of twice the
    difference between two timings of the same network, is good.

    \b
    Example: nas table check latency_tables/*.jsonl --space mobilenet --image-size 32
    Example: nas table check mine.jsonl --space mobilenet --nets 50 --no-references --plot check.png
    Example: nas table check pi.jsonl --space mobilenet --target rpc://127.0.0.1:9090
    """
    from nas.describe import table_checks

    check_plot(plot)
    spaces = load_adapted_spaces(space, image_size, channels, classes)
    latency_table, result = _check(table, target, spaces, nets, seed, references, batch)
    if plot is not None:
        title = f"{latency_table.path.stem}: mean error {result.agreement.mape:.2%}"
        table_checks.draw_check(result, title, plot)
    if as_json:
        print_json(result.to_json())
    else:
        table_checks.show_check(result)


def calibrate(
    table: DeviceTable,
    space: Spaces,
    nets: Annotated[int, typer.Option(min=8, help="Number of random networks to fit it on.")] = 20,
    references: References = True,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    batch: Batch = 1,
    seed: Seed = 1,
    target: Address = None,
    as_json: Json = False,
) -> None:
    """Fit a correction of the predictions on whole networks, and store it in the table.

    A build does so on eight networks. The correction, a factor and a cost of each launch, is judged
    by networks on which it was not fitted: each random network by a fit on the others, and the
    published networks. Predictions are corrected if that makes the error smaller; the uncorrected
    latency stays beside them. Every batch size has its own correction.

    Example: nas table calibrate latency_tables/*.jsonl --space mobilenet --image-size 32
    """
    import numpy as np

    from nas.console import ProgressBars
    from nas.describe import table_checks
    from nas.latency import LatencyTable, calibrate_table
    from nas.latency.calibration import spread_networks
    from nas.latency.check import check_networks, published_networks

    spaces = load_adapted_spaces(space, image_size, channels, classes)
    runtime = open_table_runtime(require_table_file(table), target)
    runtime.check_batch(batch)
    latency_table = LatencyTable.open(table, runtime=runtime)
    # A table that cannot be written is refused before the networks are timed.
    with latency_table.writing():
        pass
    networks = spread_networks(latency_table, spaces, nets, np.random.default_rng(seed), batch)
    if references:
        drawn = {network for _, network in networks}
        networks += [each for each in published_networks(spaces) if each[1] not in drawn]
    with ProgressBars() as bars:
        bars.begin("whole networks", "step")
        result = check_networks(
            latency_table, networks, runtime, batch=batch, progress=bars.advance
        )
    calibration = calibrate_table(latency_table, result, spaces)
    if as_json:
        uncertain = {
            "nets_with_unstable_kernels": result.nets_with_unstable_kernels,
            "nets_with_estimated_kernels": result.nets_with_estimated_kernels,
        }
        print_json({**asdict(calibration), **uncertain})
    else:
        table_checks.show_calibration(calibration)
        table_checks.show_uncertain_networks(result)


def verify(
    table: DeviceTable,
    rows: Annotated[int, typer.Option(min=1, help="Largest number of kernels to time.")] = 40,
    target: Address = None,
    as_json: Json = False,
) -> None:
    """Time a sample of the table's kernels again, and say whether the table still holds.

    The exit status is 1 if it does not. The sample covers all kinds of kernels and latencies, and
    is always the same. The table does not change.

    \b
    Example: nas table verify latency_tables/*.jsonl
    Example: nas table verify latency_tables/mine.jsonl --rows 100 --json
    """
    from nas.console import ProgressBars
    from nas.describe import table_checks
    from nas.errors import TableError
    from nas.latency import LatencyTable, verify_table
    from nas.latency.worker_process import WorkerTimer

    runtime = open_table_runtime(require_table_file(table), target)
    latency_table = LatencyTable.open(table, runtime=runtime)
    with ProgressBars() as bars, WorkerTimer(runtime) as timer:
        bars.begin("rows", "timing")
        verification = verify_table(
            latency_table, timer, runtime.fingerprint, rows=rows, progress=bars.advance
        )
    if as_json:
        print_json(verification.to_json())
    else:
        table_checks.show_verification(verification)
    if not verification.holds:
        raise TableError(
            f"{table} {verification.verdict}.",
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
) -> tuple[LatencyTable, TableCheck]:
    """Return a table, and its check.

    Args:
        path: file of the table.
        target: address of the device; None if it is this machine.
        spaces: search spaces, adapted to the images.
        nets: number of random networks.
        seed: seed of the random networks.
        references: whether published networks are timed too.
        batch: number of images that run at once.
    """
    import numpy as np

    from nas.console import ProgressBars
    from nas.latency import LatencyTable, check_table

    runtime = open_table_runtime(require_table_file(path), target)
    table = LatencyTable.open(path, runtime=runtime)
    with ProgressBars() as bars:
        bars.begin("whole networks", "step")
        result = check_table(
            table,
            spaces,
            runtime,
            nets=nets,
            rng=np.random.default_rng(seed),
            references=references,
            batch=batch,
            retime_dispatch=True,
            progress=bars.advance,
        )
    return table, result
