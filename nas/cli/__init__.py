"""The command line: it parses options, calls a function of the package and prints the result.

Every command has an equivalent in Python, see docs/python.md.
"""

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
from nas.cli.models import benchmark, export, retrain, verify
from nas.cli.options import (
    Arch,
    Batch,
    Channels,
    Classes,
    ImageSize,
    Json,
    Out,
    command_line,
    job_key,
    open_table,
    print_json,
    show,
)
from nas.cli.search import search
from nas.cli.spaces import spaces
from nas.cli.supernet import app as supernet_app
from nas.cli.table import app as table_app
from nas.errors import NasError, printable
from nas.formatting import format_duration, round_up

if TYPE_CHECKING:
    from nas.job import JobSettings
    from nas.run.record import JobPlan


class _InterruptedError(Exception):
    """Stands for KeyboardInterrupt, for which Typer would exit before `main` can print a message.

    SIGTERM and SIGHUP raise KeyboardInterrupt too, see `nas.processes`.
    """


class _InterruptibleGroup(TyperGroup):
    """A group of commands that raises `_InterruptedError` instead of KeyboardInterrupt."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error


app = typer.Typer(
    name="nas",
    cls=_InterruptibleGroup,
    help="Find accurate small convolutional networks that are fast on your device. "
    "Start with: nas quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(table_app, name="table")
app.add_typer(supernet_app, name="supernet")

_DEBUG = False
"""Whether an error shows its traceback; set by --debug."""


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"nas {__version__}")
        raise typer.Exit


@app.callback()
def _set_global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    global _DEBUG
    _DEBUG = debug


@app.command()
def quickstart(out: Out = None, as_json: Json = False) -> None:
    """Run a small job in minutes.

    It searches networks for the handwritten digits of scikit-learn. Repeat the command to continue
    where it stopped.

    \b
    Example: nas quickstart
    """
    from nas.job import job_path, load_job

    _run_job(load_job(job_path("quickstart")), out, as_json)


@app.command()
def run(
    job: Annotated[
        str, typer.Argument(help="Job file (TOML), or name of a packaged job such as quickstart.")
    ],
    out: Out = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what the job would do and how long it takes, and exit."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a whole job and write its report.

    The stages are the latency table, the supernets, the search and the timing of the front. Repeat
    the command to continue where it stopped.

    \b
    Example: nas run overnight.toml
    Example: nas run overnight.toml --plan
    """
    from nas.job import job_path, load_job

    settings = load_job(job_path(job))
    if plan:
        _plan_job(settings, as_json)
    else:
        _run_job(settings, out, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show this machine, its usable runtimes and the file formats that it can export.

    The last line says how much repeated timings vary.

    \b
    Example: nas doctor
    """
    from nas.describe.machine import describe_machine

    description = describe_machine()
    if as_json:
        print_json(description)
    else:
        _print_machine(description)


def _print_machine(description: dict[str, Any]) -> None:
    """Print what `nas.describe.machine.describe_machine` returns."""
    from nas import console

    console.say(f"processor      {description['processor']}")
    console.say(f"vector units   {' '.join(description['features']) or 'unknown'}")
    for key, value in description["machine"].items():
        console.say(f"{key:<14} {value}")
    for name in description["training_devices"]:
        console.say(f"trains on      {name}")
    for runtime in description["runtimes"]:
        versions = ", ".join(f"{k} {v}" for k, v in (runtime["versions"] or {}).items())
        state = f"usable ({versions})" if runtime["usable"] else f"not usable: {runtime['reason']}"
        console.say(f"runtime        {runtime['name']}: {state}")
    for each in description["formats"]:
        console.say(f"format         {each['name']}: {_format_state(each)}")
    noise = description["noise"]
    verdict = "stable" if noise["spread"] <= noise["unstable_above"] else "too noisy for tables"
    console.say(
        f"timing noise   {noise['spread']:.1%} between the quartiles, slowest sample "
        f"{noise['worst']:.2f} times the median: {verdict}"
    )


def _format_state(description: dict[str, Any]) -> str:
    """Return whether a file format can be exported, in words."""
    if not description["usable"]:
        return f"not usable: {description['install']}"
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    suffix = "" if description["runs_here"] else ", cannot be run on this operating system"
    return f"usable ({versions}){suffix}"


app.command()(spaces)
app.command()(search)
app.command()(retrain)
app.command()(export)
app.command()(verify)
app.command()(benchmark)


@app.command()
def predict(
    arch: Arch,
    table: Annotated[Path, typer.Option(help="Latency table of any device.")],
    space: Annotated[
        str | None, typer.Option(help="Python file of the search space, if it is your own.")
    ] = None,
    image_size: ImageSize = None,
    channels: Channels = None,
    classes: Classes = None,
    batch: Batch = 1,
    as_json: Json = False,
) -> None:
    """Predict the latency of an architecture.

    The prediction is made from a latency table, kernel by kernel. The sizes default to those of the
    run for RUN:ID, and to the published ones for a reference network. The output also says how many
    of the kernels have unstable timings.

    \b
    Example: nas predict results/quickstart:jf2a --table latency_tables/mine.jsonl
    Example: nas predict mobilenet_v2_1.0 --table latency_tables/mine.jsonl --image-size 96
    """
    from nas.describe import tables
    from nas.describe.architectures import resolve_architecture

    sizes = {"image_size": image_size, "channels": channels, "classes": classes}
    architecture = resolve_architecture(arch, sizes, space).architecture
    prediction = tables.describe_prediction(open_table(table), architecture, batch)
    if as_json:
        print_json(prediction)
    else:
        tables.show_prediction(prediction)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    as_json: Json = False,
) -> None:
    """Write the report of a run anew.

    The files are report.html, front.csv and front.json.

    \b
    Example: nas report results/quickstart
    """
    from nas.report import page
    from nas.run.run import open_run

    path = page.build(open_run(run_folder))
    show({"report": str(path)}, f"{path}", as_json)


@app.command()
def select(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    max_latency_ms: Annotated[float | None, job_key("search.max_latency_ms")] = None,
    max_macs: Annotated[int | None, job_key("search.max_macs")] = None,
    max_params: Annotated[int | None, job_key("search.max_params")] = None,
    max_peak_memory_bytes: Annotated[int | None, job_key("search.max_peak_memory_bytes")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Smallest accuracy as a fraction, such as 0.95.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the best network under given limits.

    This is the most accurate member of the front that meets the limits. Networks that were trained
    count with their trained accuracy, the others with that in the supernet plus what training
    gained the trained ones (the median). If no member meets the limits, the command names the
    nearest one and exits with status 1.

    \b
    Example: nas select results/quickstart --max-latency-ms 0.05
    """
    from nas.run.run import open_run

    member = open_run(run_folder).pick(
        max_latency_ms=max_latency_ms,
        max_macs=max_macs,
        max_params=max_params,
        max_peak_memory_bytes=max_peak_memory_bytes,
        min_accuracy=min_accuracy,
    )
    show(
        member.model_dump(mode="json"),
        f"{member.summary}\n{json.dumps(member.architecture.model_dump())}",
        as_json,
    )


def _run_job(settings: JobSettings, out: Path | None, as_json: bool) -> None:
    from nas import job
    from nas.console import ProgressBars

    folder = out or Path("results") / settings.name
    with ProgressBars() as bars:
        result = job.run_job(settings, folder, command=command_line(), progress=bars)
    models = [str(path) for path in result.models]
    members, path = result.run.members, result.run.path
    example_ms = round_up(members[len(members) // 2].latency_us / 1000, digits=2)
    lines = [
        f"{result.front} networks are on the front: no other network of the run is as fast and "
        f"more accurate. Open {result.report} and choose, for "
        f"example with nas select {path} --max-latency-ms {example_ms:g}"
    ]
    for model in result.models:
        lines.append(f"Trained model: {model}")
        if (model / "run.py").is_file():
            lines[-1] += f". Classify an image: python {model / 'run.py'} IMAGE"
    show(
        {
            "run": str(path),
            "report": str(result.report),
            "front": result.front,
            "models": models,
        },
        "\n".join(lines),
        as_json,
    )


def _plan_job(settings: JobSettings, as_json: bool) -> None:
    from nas import job
    from nas.console import ProgressBars

    with ProgressBars() as bars:
        plan = job.plan_job(settings, progress=bars)
    if as_json:
        print_json(plan.model_dump(mode="json"))
    else:
        _print_plan(plan)


def _print_plan(plan: JobPlan) -> None:
    """Print the work and the estimated time of each stage of a job as a table."""
    from nas import console

    work = {
        "prepare": "images, spaces and device",
        "table": f"{plan.kernels} kernels to time, and networks to check predictions",
        "supernets": ", ".join(f"{name}: {n:.3g} epochs" for name, n in plan.epochs.items()),
        "anchors": "networks trained alone, to compare the spaces",
        "search": f"about {plan.expected_trials} architectures, at most {plan.trials}",
        "measure": f"{plan.measure} whole networks",
        "finalists": f"{plan.retrain} networks to train, {plan.retrain_epochs} epochs each",
        "export": f"{plan.retrain} networks",
    }
    console.say(plan.data)
    total_s = sum(plan.seconds.values())
    rows = [
        (name, work[name], format_duration(seconds), f"{seconds / total_s:.0%}")
        for name, seconds in plan.seconds.items()
    ]
    total = ("total", "", format_duration(total_s), "")
    console.print_table(["stage", "work", "time", "share"], [*rows, total])
    if plan.image_changes:
        console.say(f"{plan.image_changes[0].upper()}{plan.image_changes[1:]}.")


def _print_warning(
    message: Warning | str, category: type[Warning], *position: Any, **details: Any
) -> None:
    print(printable(f"warning: {message}"), file=sys.stderr)


_OTHER_PATH_REMEDY = "name another file or folder"

_OS_ERROR_REMEDIES = {
    "make room, and run the same command again": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "name a folder that you can write to": (errno.EACCES, errno.EPERM, errno.EROFS),
    _OTHER_PATH_REMEDY: (
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
    ),
}
"""What the user can do about errors of the operating system, each with the error numbers."""


def _describe_os_error(error: OSError) -> tuple[str, int]:
    """Return the message and the exit status for a file that the operating system refused.

    The exit status is 2 if the user named a wrong path, and 1 otherwise.
    """
    remedies = {
        number: remedy for remedy, numbers in _OS_ERROR_REMEDIES.items() for number in numbers
    }
    remedy = remedies.get(error.errno or 0, "run the same command again")
    path = "" if error.filename is None else f": {error.filename}"
    return (
        f"{error.strerror or error}{path}. Nothing is half-written: {remedy}.",
        2 if remedy == _OTHER_PATH_REMEDY else 1,
    )


def main() -> None:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for a wrong request."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"nas\.")
    warnings.showwarning = _print_warning
    processes.handle_stop_signals_like_ctrl_c()
    try:
        app()
    except (_InterruptedError, KeyboardInterrupt):
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
        message, status = _describe_os_error(error)
        print(printable(f"error: {message}"), file=sys.stderr)
        sys.exit(status)
