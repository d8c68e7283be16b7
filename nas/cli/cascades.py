"""`nas cascade`: chains of trained networks that answer by how confident they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Json, MovedData, RunFolder, print_json, require_table_file
from nas.display import console
from nas.display.formatting import format_accuracy, format_latency

if TYPE_CHECKING:
    from nas.plans.cascade import Cascade
    from nas.plans.cascade_export import CascadeRecord


def cascade(
    run: RunFolder,
    stages: Annotated[int, typer.Option(help="Most networks of a cascade: 2 or 3.")] = 2,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Largest mean latency in milliseconds.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest accuracy, as a fraction, that it may lose to the most accurate network; "
            "0 without --max-latency-ms."
        ),
    ] = None,
    server: Annotated[
        Path | None,
        typer.Option(help="Latency table of a server on which the last network may run."),
    ] = None,
    bandwidth_mbps: Annotated[
        float,
        typer.Option(help="Bandwidth to the server in megabits a second.", show_default=False),
    ] = math.nan,
    rtt_ms: Annotated[
        float, typer.Option(help="Round trip to the server in milliseconds.", show_default=False)
    ] = math.nan,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format", help="Export the chosen cascade in this format, such as onnx or tvm."
        ),
    ] = None,
    data: MovedData = None,
    as_json: Json = False,
) -> None:
    """Chain trained networks: a fast one answers what it is sure of, a slower one the rest.

    A network answers an image if its confidence reaches its threshold. Thresholds are chosen on one
    half of the images that judge trained networks, and cascades are judged on the other half, by
    the stored answers of each network. The command prints the curve of the best cascades, and the
    one to choose: the fastest that loses at most --max-accuracy-drop; with --max-latency-ms alone,
    the most accurate one. A cascade that a paired test does not show to be more accurate than each
    single network that is as fast on average is said not to be better. A network with an exit is a
    cascade, too: k31b@exit answers what it is sure of, and the rest of k31b the other images.

    With --server, the last network of a cascade may run on a server, to which the device sends the
    pixels of an image: k31b@server.

    With --format, the chosen cascade is exported to a folder of its own, below cascades in the run:
    its networks, thresholds, and a run.py that says which network answered. It is verified, and
    timed end to end on images of the data. A network with an exit becomes two ONNX files.

    \b
    Example: nas cascade results/quickstart
    Example: nas cascade results/quickstart --stages 3 --max-latency-ms 0.05
    Example: nas cascade results/quickstart --max-accuracy-drop 0.005 --format onnx
    Example: nas cascade results/quickstart --server server.jsonl --bandwidth-mbps 20 --rtt-ms 5
    """
    from nas.opened_run import open_run

    opened = open_run(run, data)
    if server is not None:
        require_table_file(server)
    plan = opened.cascades(stages, server=server, bandwidth_mbps=bandwidth_mbps, rtt_ms=rtt_ms)
    chosen = plan.choose(max_latency_ms=max_latency_ms, max_accuracy_drop=max_accuracy_drop)
    record = None
    if format_name is not None:
        with console.ProgressBars() as bars:
            record = opened.export_cascade(chosen, format_name, progress=bars)
    if as_json:
        print_json(
            {
                "run": run,
                "images": plan.images,
                "curve": plan.curve,
                "chosen": chosen,
                "is_better": chosen.is_better,
                "verdict": plan.verdict_of(chosen),
                "left_out": plan.notes,
                "exported": record,
            }
        )
        return
    _print_curve(plan.curve)
    if any(each.has_exit for each in [*plan.curve, chosen]):
        console.say("*: the shares of a network up to its exit and behind it are predicted.")
    for note in plan.notes:
        console.say(f"In no cascade: {note}.")
    console.say(f"Accuracies are those on {plan.images}; the others chose the thresholds.")
    if any(each.refit for each in opened.trained.values()):
        console.say(
            "Refitted networks answered both halves before their refit, in which they learned them."
        )
    console.say(f"{chosen.name}: {chosen.rule}.")
    basis = "in predicted shares" if chosen.has_exit else "the sum of its networks'"
    console.say(
        f"Accuracy {format_accuracy(chosen.interval)}. Latency, {basis}: "
        f"{format_latency(chosen.mean_us)} on average, {format_latency(chosen.high_us)} for 95% of "
        f"the images, {format_latency(chosen.worst_us)} at worst."
    )
    console.say(plan.verdict_of(chosen))
    if record is not None:
        _print_exported(run / "cascades" / chosen.name, record)


def _print_exported(folder: Path, record: CascadeRecord) -> None:
    """Print where an exported cascade is, and what was measured of it."""
    images, timing = record.data, record.timing
    alone = ", ".join(
        f"{name} {format_latency(us)}"
        for name, us in zip(record.cascade.networks, timing.alone_us, strict=True)
    )
    if timing.whole_us is not None:
        ratio = timing.mean_us / timing.whole_us
        alone += f"; the network without its exit: {format_latency(timing.whole_us)} ({ratio:.2f})"
    console.say(
        f"{folder}: test accuracy {images.text(record.accuracy, 'test')}. On {timing.images} "
        f"images it took {format_latency(timing.mean_us)} on average, "
        f"{format_latency(timing.high_us)} for 95% and {format_latency(timing.worst_us)} at most, "
        f"on {record.device}; its networks alone: {alone}."
    )
    console.say(f"Classify an image: python {folder / 'run.py'} IMAGE")


def _print_curve(curve: list[Cascade]) -> None:
    """Print one row for each cascade, the fastest first."""
    console.print_records(
        curve,
        {
            "cascade": lambda each: each.name,
            "thresholds": lambda each: ", ".join(f"{own:.5g}" for own in each.thresholds),
            "answered": lambda each: ", ".join(f"{own:.0%}" for own in each.answered),
            "mean": lambda each: f"{format_latency(each.mean_us)}{' *' * each.has_exit}",
            "95%": lambda each: format_latency(each.high_us),
            "worst": lambda each: format_latency(each.worst_us),
            "accuracy": lambda each: format_accuracy(each.interval),
            "better": lambda each: "yes" if each.is_better else "not shown",
        },
        left=("thresholds",),
    )
