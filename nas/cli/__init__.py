"""The command line: it parses options, calls a function of the package and prints the result.

Every command has an equivalent in Python, see docs/python.md.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nas import __version__
from nas.cli import (
    benchmark,
    cascades,
    data,
    kit,
    lifecycle,
    machine,
    models,
    runs,
    selection,
    spaces,
    split,
    supernet,
    table,
    weights,
)
from nas.cli.options import (
    Arch,
    Batch,
    Json,
    expanded_argument,
    open_table,
    print_json,
    with_sizes,
)
from nas.errors import NasError, printable
from nas.machine import processes


class _InterruptedError(Exception):
    """Stands for KeyboardInterrupt, for which Typer would exit before `main` can print a message.

    SIGTERM and SIGHUP raise KeyboardInterrupt too, see `nas.machine.processes`.
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
app.add_typer(table.app, name="table")
app.add_typer(kit.app, name="kit")
app.add_typer(supernet.app, name="supernet")

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


for _command in (
    *(runs.quickstart, runs.run, runs.retarget, runs.search, runs.report, selection.select),
    *(data.data, machine.doctor, machine.device, spaces.spaces, weights.weights),
    *(models.retrain, models.export, models.verify, benchmark.benchmark),
    *(cascades.cascade, split.split, lifecycle.compare, lifecycle.drift),
    *(lifecycle.federate, lifecycle.bundle),
):
    app.command()(_command)


@app.command()
@with_sizes
def predict(
    arch: Arch,
    table: Annotated[Path, typer.Option(help="Latency table of any device.")],
    space: Annotated[
        str | None, typer.Option(help="Python file of the search space, if it is your own.")
    ] = None,
    batch: Batch = 1,
    build: Annotated[
        bool, typer.Option("--build", help="First time the kernels that the table lacks.")
    ] = False,
    as_json: Json = False,
    **sizes: int,
) -> None:
    """Predict the latency of an architecture.

    The prediction is made from a latency table, kernel by kernel. The sizes default to those of the
    run for RUN:ID, and to the published ones for a reference network. The output also says how many
    of the kernels have uncertain timings.

    \b
    Example: nas predict results/quickstart:jf2a --table latency_tables/mine.jsonl
    Example: nas predict mobilenet_v2_1.0 --table latency_tables/mine.jsonl --image-size 96
    Example: nas predict mobilenet_v2_1.0 --table latency_tables/mine.jsonl --build
    """
    from nas.cli import predictions
    from nas.cli.architecture import resolve_architecture

    architecture = resolve_architecture(arch, sizes, space).architecture
    opened = predictions.complete(open_table(table), architecture, batch, build=build)
    prediction = opened.predict(architecture, batch)
    if as_json:
        print_json(predictions.to_json(opened, architecture, prediction))
    else:
        predictions.show(opened, architecture, prediction)


def _print_warning(
    message: Warning | str, category: type[Warning], *position: Any, **details: Any
) -> None:
    print(printable(f"warning: {message}"), file=sys.stderr)


def _os_error_remedy(number: int | None) -> tuple[str, int]:
    """Return what the user can do about an error of the operating system, and the exit status."""
    match number:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "make room, and run the same command again", 1
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "name a folder that you can write to", 1
        case errno.ENOENT | errno.EEXIST | errno.EISDIR | errno.ENOTDIR:
            return "name another file or folder", 2
        case errno.EINVAL | errno.ELOOP | errno.ENAMETOOLONG:
            return "name another file or folder", 2
    return "run the same command again", 1


def _describe(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit status for what ended a command."""
    if isinstance(error, NasError):
        return f"error: {error}", error.exit_status
    if isinstance(error, OSError):
        if error.filename is None and not _has_temporary_folder():
            return "error: No folder for temporary files can be written to. Set TMPDIR to one.", 1
        remedy, status = _os_error_remedy(error.errno)
        path = "" if error.filename is None else f": {error.filename}"
        problem = f"{error.strerror or error}{path}"
        return f"error: {problem}. Nothing is half-written: {remedy}.", status
    return "stopped; the same command continues", 1


def _has_temporary_folder() -> bool:
    try:
        tempfile.gettempdir()
    except OSError:
        return False
    return True


def _start_again_with_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale is for ASCII names only.

    Torch's files and TVM cannot be opened by another name.
    """
    if os.name == "posix" and sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # For child processes.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def main() -> None:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for a wrong request."""
    _start_again_with_utf8()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"nas\.")
    warnings.showwarning = _print_warning
    processes.handle_stop_signals_like_ctrl_c()
    try:
        # A shell leaves the ~ of --out=~/run and of '~/my run' to the program.
        app([expanded_argument(each) for each in sys.argv[1:]])
    except (_InterruptedError, KeyboardInterrupt, NasError, OSError) as error:
        if _DEBUG:
            raise
        message, status = _describe(error)
        print(printable(message), file=sys.stderr)
        sys.exit(status)
