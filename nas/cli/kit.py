"""`nas kit table`, `calibrate` and `networks`: programs for a device that has only a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    Batch,
    Json,
    RunFolder,
    Spaces,
    job_key,
    load_spaces,
    open_table,
    show,
    with_sizes,
)
from nas.display import console

app = typer.Typer(
    help="Time kernels and networks on a device that has only a shell.", no_args_is_help=True
)


@app.command()
@with_sizes
def table(
    space: Spaces,
    target: Annotated[
        str,
        typer.Option(help="The device: kit:NAME?triple=TRIPLE&cpu=CPU, with LLVM's names."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the kit.")],
    resolution: Annotated[list[float] | None, job_key("space.resolutions", "--resolution")] = None,
    batch: Batch = 1,
    max_mb: Annotated[
        float, typer.Option(min=1, help="Size from which on a program is split into several.")
    ] = 200,
    as_json: Json = False,
    **sizes: int,
) -> None:
    """Write a program that times every kernel of the spaces on a device.

    The program needs nothing on the device but Linux or Android: copy it there and run it, as
    README.txt beside it says. Its results become a latency table with `nas table import`.

    \b
    Example: nas kit table --space mobilenet --image-size 32 --out kit \\
        --target "kit:pixel-6?triple=aarch64-linux-gnu&cpu=cortex-a76"
    """
    from nas.latency import open_runtime, space_kernels
    from nas.latency.kit import KitDevice, device_for

    name = device_for(target).name
    spaces = load_spaces(space, sizes, resolution)
    device = open_runtime(name, target=target)
    assert isinstance(device, KitDevice)
    device.check_batch(batch)
    kernels = [kernel for each in spaces for kernel in space_kernels(each, device, batch)]
    with console.ProgressBars() as bars:
        bars.begin("kit", "item")
        kit = device.write_kernels_kit(
            kernels,
            [f"{each.name} {each.image_size}px" for each in spaces],
            out,
            bars.advance,
            batch=batch,
            max_mb=max_mb,
        )
    text = (
        f"{out}: {', '.join(kit.programs)} ({kit.size_bytes / 1e6:.0f} MB) for "
        f"{device.fingerprint.target}: {kit.kernels} kernels, {kit.candidates} candidates"
    )
    if kit.errors:
        text += (
            f"; {len(kit.errors)} kernels cannot be compiled, and become failed rows of the table"
        )
    show(
        {
            "kit": str(out),
            "digest": kit.digest,
            "target": device.fingerprint.target,
            "programs": list(kit.programs),
            "kernels": kit.kernels,
            "candidates": kit.candidates,
            "failed": dict(kit.errors),
            "bytes": kit.size_bytes,
        },
        f"{text}.\nCopy it to the device and run it, as {out / 'README.txt'} says.",
        as_json,
    )


@app.command()
@with_sizes
def calibrate(
    table: Annotated[Path, typer.Argument(help="Latency table that a kit made.")],
    space: Spaces,
    out: Annotated[Path, typer.Option(help="Folder of the kit.")],
    as_json: Json = False,
    **sizes: int,
) -> None:
    """Write the kit of a few whole networks, or correct a table by its results.

    In a network, kernels find their tensors in slower caches than alone, so that what a kit alone
    predicts is too fast. Copy this kit to the device, run ./kit there, and copy results.jsonl back
    into it. The same command then fits a correction of all predictions.

    Example: nas kit calibrate latency_tables/pixel-6.jsonl --space mobilenet --out calibration
    """
    from nas.latency import LatencyTable
    from nas.latency.correction import correct_by_kit
    from nas.latency.kit import device_for

    device = device_for(open_table(table).device.target)
    opened = LatencyTable.open(table, runtime=device)
    with console.ProgressBars() as bars:
        bars.begin("kit", "network")
        correction = correct_by_kit(opened, load_spaces(space, sizes), device, out, bars.advance)
    if correction is None:
        text = f"{out}: copy it to the device and run it, as {out / 'README.txt'} says."
    else:
        text = f"{table}: {correction.text}"
    document = {"table": table, "kit": out, "correction": correction and correction.to_json()}
    show(document, text, as_json)


@app.command()
def networks(run_folder: RunFolder, as_json: Json = False) -> None:
    """Write the kit that times the best networks of a run, or take in its results.

    The kit is RUN/kits/networks. Copy it to the device, run ./kit there, and copy results.jsonl
    back into it. The same command then replaces the predictions in the report by measurements.
    `nas run` does both, too.

    \b
    Example: nas kit networks results/phone
    """
    from nas.job.finish import time_by_kit
    from nas.opened_run import open_run

    run = open_run(run_folder)
    with console.ProgressBars() as bars:
        waiting = time_by_kit(run, bars)
    report = run.path / "report.html"
    text = waiting or f"All networks of the kit are timed. Open {report}"
    show({"run": run_folder, "report": report, "waiting": waiting or None}, text, as_json)
