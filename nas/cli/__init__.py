"""The command line: parses, calls, prints. Everything it does is one call away in Python."""

from __future__ import annotations

import errno
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nas import __version__, processes
from nas.cli.options import (
    Arch,
    Batch,
    Channels,
    Classes,
    ImageSize,
    Json,
    Out,
    command_line,
    existing,
    print_json,
    show,
)
from nas.cli.search import search
from nas.cli.spaces import spaces
from nas.cli.supernet import app as supernet_app
from nas.cli.table import app as table_app
from nas.errors import NasError, printable
from nas.formatting import format_duration

if TYPE_CHECKING:
    from nas.job import JobSettings


class _StoppedError(Exception):
    """Ctrl-C, SIGTERM or SIGHUP: `main` answers it. Typer would end without a word."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _StoppedError from error


app = typer.Typer(
    name="nas",
    cls=_Commands,
    help="Finds the most accurate small convolutional network for your images and your device. "
    "Start with: nas quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(table_app, name="table")
app.add_typer(supernet_app, name="supernet")

_DEBUG = False


def _version(wanted: bool) -> None:
    if wanted:
        print(f"nas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    global _DEBUG
    _DEBUG = debug


@app.command()
def quickstart(out: Out = None, as_json: Json = False) -> None:
    """The overnight job, shrunk to minutes, on real images that ship with scikit-learn.

    Run again on the same folder, it continues where it stopped. Example: nas quickstart
    """
    from nas.job import job_path, load_job

    _run(load_job(job_path("quickstart")), out, as_json)


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="A job file (TOML), or the name of one that ships.")],
    out: Out = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the job would do and for how long, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A whole job: table, supernets, search, measured front, report.

    Run again on the same folder, it continues where it stopped. Example: nas run overnight.toml
    """
    from nas.job import job_path, load_job

    settings = load_job(job_path(job))
    if plan:
        _plan(settings, as_json)
    else:
        _run(settings, out, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do: device, runtimes and why others are not usable, timing noise."""
    from nas import console
    from nas.describe.machine import describe_machine

    found = describe_machine()
    if as_json:
        print_json(found)
        return
    noise = found["noise"]
    console.say(f"processor      {found['processor']}")
    console.say(f"vector units   {' '.join(found['features']) or 'unknown'}")
    for key, value in found["machine"].items():
        console.say(f"{key:<14} {value}")
    for name in found["training_devices"]:
        console.say(f"trains on      {name}")
    for runtime in found["runtimes"]:
        versions = ", ".join(f"{k} {v}" for k, v in (runtime["versions"] or {}).items())
        state = f"usable ({versions})" if runtime["usable"] else f"not usable: {runtime['reason']}"
        console.say(f"runtime        {runtime['name']}: {state}")
    verdict = "steady" if noise["spread"] <= noise["unstable_above"] else "too noisy for tables"
    console.say(
        f"timing noise   {noise['spread']:.1%} between the quartiles, worst sample "
        f"{noise['worst']:.2f} of the median: {verdict}"
    )


app.command()(spaces)
app.command()(search)


@app.command()
def predict(
    arch: Arch,
    table: Annotated[Path, typer.Option(help="A latency table, of any device.")],
    space: Annotated[
        str | None, typer.Option(help="The Python file of the space, if it is your own.")
    ] = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    batch: Batch = 1,
    as_json: Json = False,
) -> None:
    """Latency of one architecture from a table, by kernel, and how many of these are uncertain.

    Sizes that are not given are those of the run for RUN:ID, and the published ones for a reference
    network. Example: nas predict results/quickstart:3f2a --table latency_tables/mine.jsonl
    """
    from nas.describe import tables
    from nas.describe.architectures import resolve_architecture
    from nas.latency import LatencyTable

    sizes = {"image_size": image_size, "channels": channels, "classes": classes}
    graph = resolve_architecture(arch, sizes, space).architecture.graph
    found = tables.describe_prediction(LatencyTable.open(existing(table)), graph, batch)
    if as_json:
        print_json(found)
    else:
        tables.show_prediction(found)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Json = False,
) -> None:
    """Writes report.html, front.csv and front.json of a run again.

    Example: nas report results/quickstart
    """
    from nas.report import page

    path = page.build(run_folder)
    show({"report": str(path)}, f"{path}", as_json)


@app.command()
def select(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds an image.")] = None,
    max_params: Annotated[int | None, typer.Option(help="Parameters.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="A fraction, such as 0.95.")] = None,
    as_json: Json = False,
) -> None:
    """The most accurate front member under the limits; exits 1 and names the nearest if none fits.

    Example: nas select results/quickstart --max-latency-ms 0.05
    """
    from nas.report.select import Limits
    from nas.report.select import select as choose

    member = choose(run_folder, Limits(max_latency_ms, max_params, min_accuracy))
    show(
        member.model_dump(mode="json"),
        f"{member.summary}\n{json.dumps(member.architecture.model_dump())}",
        as_json,
    )


def _run(settings: JobSettings, out: Path | None, as_json: bool) -> None:
    from nas import job
    from nas.console import ProgressBars

    folder = out or Path("results") / settings.name
    with ProgressBars() as bars:
        done = job.run_job(settings, folder, command=command_line(), progress=bars)
    show(
        {"run": str(done.folder), "report": str(done.report), "front": done.front},
        f"{done.front} networks on the front. Open {done.report} and choose, for example with "
        f"nas select {done.folder} --max-latency-ms 1",
        as_json,
    )


def _plan(settings: JobSettings, as_json: bool) -> None:
    from nas import console, job

    with console.spinner("measuring a little of every stage"):
        plan = job.plan_job(settings)
    if as_json:
        print_json(plan.model_dump(mode="json"))
        return
    work = {
        "table": f"{plan.kernels} kernels to time",
        "supernets": ", ".join(f"{name}: {n} epochs" for name, n in plan.epochs.items()),
        "search": f"{plan.trials} architectures",
        "finish": f"{plan.measure} whole networks",
    }
    rows = [(name, work[name], format_duration(s)) for name, s in plan.seconds.items()]
    total = ("together", "", format_duration(sum(plan.seconds.values())))
    console.print_table(["stage", "work", "about"], [*rows, total])


def _warn(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    print(printable(f"warning: {message}"), file=sys.stderr)


_REMEDIES = {
    "make room, and run the same command again": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "name a folder that you can write to": (errno.EACCES, errno.EPERM, errno.EROFS),
    "name another file or folder": (
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
    ),
}
"""What to do where the operating system refuses a file; the last ones are wrong requests."""


def _explained(error: OSError) -> tuple[str, int]:
    """Return the message and the exit status for what the operating system refused."""
    remedies = {number: remedy for remedy, numbers in _REMEDIES.items() for number in numbers}
    remedy = remedies.get(error.errno or 0, "run the same command again")
    is_request = error.errno in _REMEDIES["name another file or folder"]
    where = "" if error.filename is None else f": {error.filename}"
    return (
        f"{error.strerror or error}{where}. Nothing is half-written: {remedy}.",
        2 if is_request else 1,
    )


def main() -> None:
    """Runs the command line; exits 0 done, 1 failed, 2 for a wrong request."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"nas\.")
    warnings.showwarning = _warn
    processes.handle_stop_signals_like_ctrl_c()
    try:
        app()
    except (_StoppedError, KeyboardInterrupt):
        if _DEBUG:
            raise
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(1)
    except NasError as error:
        if _DEBUG:
            raise
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        if _DEBUG:
            raise
        message, status = _explained(error)
        print(printable(f"error: {message}"), file=sys.stderr)
        sys.exit(status)
