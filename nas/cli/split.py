"""`nas split`: the best cut of a network between a device and a server."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    Json,
    MovedData,
    Plot,
    RunFolder,
    check_plot,
    print_json,
    require_table_file,
)
from nas.display import console
from nas.display.formatting import (
    format_accuracy,
    format_bytes,
    format_latency,
    format_number,
)

if TYPE_CHECKING:
    from nas.plans.split import Way
    from nas.plans.split_run import SplitReport


def split(
    run: RunFolder,
    pick: Annotated[str, typer.Option(help="ID of a network of the run.")],
    device: Annotated[Path, typer.Option(help="Latency table of the device.")],
    server: Annotated[Path, typer.Option(help="Latency table of the server.")],
    bandwidth_mbps: Annotated[
        float, typer.Option(help="Bandwidth between them in megabits a second.")
    ],
    rtt_ms: Annotated[float, typer.Option(help="Round trip between them in milliseconds.")],
    transfer: Annotated[
        str,
        typer.Option(
            metavar="float32|float16|int8", help="Type of the values that the device sends."
        ),
    ] = "float32",
    at: Annotated[
        int | None, typer.Option(help="Position of the cut; by default the fastest.")
    ] = None,
    build: Annotated[
        bool,
        typer.Option("--build", help="First time kernels that the table of this machine lacks."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write both parts to this new folder.")] = None,
    plot: Plot = None,
    data: MovedData = None,
    as_json: Json = False,
) -> None:
    """Find the best place to cut a network between a device and a server, or none.

    The device runs the first part of the network and sends a tensor, the server answers with the
    rest. The latency of each cut is predicted from the two tables and the link, and compared with
    that of the whole network on the device, and on the server with the image sent as pixels or as
    JPEG. Accuracies with rounded values or JPEG files are measured on images of the run, if the
    network is trained. With --out, both parts of a trained network are written as ONNX files, with
    scripts that run them, and checked.

    \b
    Example: nas split results/quickstart --pick jf2a --device phone.jsonl --server server.jsonl
             --bandwidth-mbps 20 --rtt-ms 5
    """
    from nas.opened_run import open_run

    check_plot(plot)
    for table in (device, server):
        require_table_file(table)
    with console.ProgressBars() as bars:
        report = open_run(run, data).split(
            pick,
            device=device,
            server=server,
            bandwidth_mbps=bandwidth_mbps,
            rtt_ms=rtt_ms,
            transfer=transfer,
            position=at,
            build=build,
            out=out,
            progress=bars,
        )
    if plot is not None:
        from nas.plans.split_figure import draw_split

        draw_split(report.plan, f"{pick}, {device.stem} and {server.stem}", plot)
    if as_json:
        print_json(_document(report))
    else:
        _show(report)


def _document(report: SplitReport) -> dict[str, Any]:
    """Return a report as JSON, with the latency of each way for the link."""
    plan = report.plan

    def row(way: Way | None) -> dict[str, Any] | None:
        if way is None:
            return None
        latency = {"link_us": way.link_us(plan.link), "latency_us": way.latency_us(plan.link)}
        return {**vars(way), **latency}

    known = {name: value for name, value in vars(report).items() if name != "plan"}
    return {
        **known,
        **vars(plan),
        "best": row(report.best),
        "chosen": row(report.chosen),
        "rivals": [row(way) for way in plan.rivals],
        "cuts": [row(way) for way in plan.cuts],
        "by_bandwidth": [
            {"from_mbps": bandwidth, "name": way.name, "position": way.position}
            for bandwidth, way in plan.by_bandwidth(report.transfer)
        ],
    }


def _show(report: SplitReport) -> None:
    """Print a report: the answer, the ways with their latencies, and what else is known."""
    from nas.latency.timing import MEASURED
    from nas.plans.split_wire import TRANSFERS

    plan, link, figures = report.plan, report.plan.link, report.plan.rivals[0].figures
    winner = plan.fastest(report.transfer)
    answer = "Cut it" if winner.name == "cut" else "Do not cut it: the fastest is"
    console.say(f"{answer} {winner.words}, {format_latency(winner.latency_us(link))}.")
    console.print_records(
        [*plan.rivals, *(way for way in plan.cuts if way.transfer == report.transfer)],
        {
            "way": lambda way: way.words,
            "tensor": lambda way: "x".join(map(str, way.shape or ())),
            "sent": lambda way: format_bytes(way.sent_bytes),
            "device": lambda way: format_latency(way.device_us),
            "link": lambda way: format_latency(way.link_us(link)),
            "server": lambda way: format_latency(way.server_us),
            "latency": lambda way: format_latency(way.latency_us(link)),
            "memory": lambda way: format_bytes(way.memory_bytes),
            "weights": lambda way: format_bytes(way.weight_bytes),
            **{name: partial(_figure, name) for name in figures},
        },
        left=("way", "tensor"),
    )
    for transfer in TRANSFERS:
        if cut := plan.fastest_cut(transfer):
            latency = format_latency(cut.latency_us(link))
            console.say(f"Fastest cut with {transfer} sent: {cut.words}, {latency}.")
    for name, accuracy in report.accuracies.items():
        console.say(f"Accuracy on {report.images}, {name}: {format_accuracy(accuracy)}.")
    if not report.accuracies:
        console.say("No accuracy is known: the network is not trained.")
    console.say(f"Fastest way by bandwidth, with {report.transfer} sent:")
    for bandwidth, way in plan.by_bandwidth(report.transfer):
        console.say(f"from {bandwidth:.3g} Mbit/s: {way.words}")
    for position, problem in list(plan.unknown.items())[:1]:
        console.say(f"Not known are {len(plan.unknown)} cuts, such as at {position}: {problem}")
        console.say("--build times what the table of this machine lacks.")
    console.say(
        "Not counted: compressing and packing what is sent, and reading the image. The connection "
        "is open, and as fast in both directions."
    )
    if plan.basis != MEASURED:
        console.say(f"Not all latencies of the tables are measured; the rest is {plan.basis}.")
    if report.folder is not None:
        console.say(f"{report.folder} has both parts, checked: device.py and server.py run them.")


def _figure(name: str, way: Way) -> str:
    """Return a figure of the device's part; nothing for a way without one."""
    return format_number(way.figures.get(name), ".4g")
