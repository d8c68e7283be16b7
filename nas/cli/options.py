"""Options that several commands share, and functions that turn them into objects."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, cast

import typer

from nas.errors import RequestError, printable
from nas.files.paths import expanded, in_folder
from nas.run.settings import KEYS

if TYPE_CHECKING:
    from nas.job import JobSettings
    from nas.latency import LatencyTable, runtime
    from nas.space import SearchSpace


Command = TypeVar("Command", bound=Callable[..., None])


def job_key(path: str, *flags: str, is_bounded: bool = False) -> Any:
    """Return the option for a key of the job file, with the key's help (see `nas.run.settings`).

    Args:
        path: path of the key.
        flags: names of the option; by default the name of the argument.
        is_bounded: whether the option itself checks the bounds. Options that become settings of a
            job are checked with the job.
    """
    key = KEYS[path]
    low, high = (key.least, key.most) if is_bounded else (None, None)
    return typer.Option(*flags, help=key.meaning, min=low, max=high)


def with_options(*keys: str, **options: Any) -> Callable[[Command], Command]:
    """Return a decorator that gives a command further options in place of its `**options`.

    The options that the user gives arrive there by their names, the others do not. They come before
    those that the command declares itself.

    Args:
        keys: paths of keys of the job file, whose options have the name and the type of the key.
            Their bounds are checked with the job.
        **options: the types of further options, annotated for Typer.
    """
    of_keys = {path.rpartition(".")[2]: _key_option(path) for path in keys}
    options = {**of_keys, **options}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())[:-1]
        arguments = [each for each in parameters if each.default is each.empty]
        own = parameters[len(arguments) :]
        added = [
            inspect.Parameter(name, own[0].kind, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            absent = {name for name in options if values[name] is None}
            command(**{name: value for name, value in values.items() if name not in absent})

        wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*arguments, *added, *own]
        )
        return cast("Command", wrapper)

    return decorate


def _key_option(path: str) -> Any:
    return Annotated[KEYS[path].kind | None, job_key(path)]


Conventions = Annotated[
    str | None,
    typer.Option(
        metavar="torch|torchvision_v3|tensorflow",
        help="Padding and epsilon of the published network, if its file does not tell.",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
MovedData = Annotated[
    str | None, typer.Option(help="Where the images of the run are, if they were moved.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; by default it is results/<job name>.")]
Spaces = Annotated[
    list[str],
    typer.Option(
        "--space", help="Name or Python file of a search space; the option may be repeated."
    ),
]
Table = Annotated[Path, typer.Argument(help="Latency table of any device.")]
DeviceTable = Annotated[Path, typer.Argument(help="Latency table of this device.")]
Plot = Annotated[Path | None, typer.Option(help="Write a figure to this .png or .svg file.")]
References = Annotated[
    bool,
    typer.Option(
        "--references/--no-references", help="Time the published networks of the spaces too."
    ),
]
Runtime = Annotated[str | None, job_key("device.runtime")]
Target = Annotated[str | None, job_key("device.target")]
Address = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Address of the table's device, if it is not this machine: ssh://USER@HOST, or adb:.",
    ),
]
Threads = Annotated[int, job_key("device.threads", is_bounded=True)]
Dtype = Annotated[str | None, job_key("device.dtype")]
Batch = Annotated[int, job_key("device.batch", is_bounded=True)]
Arch = Annotated[
    str,
    typer.Argument(help="JSON file of an architecture, name of a reference network, or RUN:ID."),
]
Seed = Annotated[int, job_key("seed", is_bounded=True)]


Sizes = Mapping[str, int]
"""The options --image-size, --channels and --classes, as far as they are given."""

with_sizes = with_options(
    image_size=Annotated[
        int | None,
        typer.Option(
            min=8, help="Height and width of the images in pixels; by default those of the space."
        ),
    ],
    channels=Annotated[
        int | None,
        typer.Option(min=1, help="Number of image channels; by default that of the space."),
    ],
    classes=Annotated[
        int | None, typer.Option(min=2, help="Number of classes; by default that of the space.")
    ],
)
"""Decorator that gives a command the options of `Sizes` in place of its `**sizes`."""


def expanded_argument(text: str) -> str:
    """Return an argument of the command line with the home folder in place of a leading `~/`."""
    option, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    is_home = value == "~" or value.startswith("~/")
    return f"{option}{equals}{expanded(value)}" if is_home else text


class RequestedJob(NamedTuple):
    """The job that a command runs.

    Attributes:
        settings: its settings.
        folder: folder of its run: --out, that of the run whose job file it is, or a new one that is
            named after the job.
        own_spaces: whether it continues that run, which uses its own copies of the spaces in any
            working directory.
    """

    settings: JobSettings
    folder: Path
    own_spaces: bool

    @classmethod
    def read(cls, job: str, out: Path | None) -> RequestedJob:
        """Read a job.

        Args:
            job: a job file, a run folder, or the name of a packaged job.
            out: the folder that --out names.
        """
        from nas.job import job_path, load_job
        from nas.job.settings import run_folder_of

        path = job_path(job)
        settings, own_folder = load_job(path), run_folder_of(path)
        folder = out or own_folder or Path("results") / settings.name
        return cls(settings, folder, out is None and own_folder is not None)


def load_spaces(
    names: Sequence[str], sizes: Sizes, resolutions: Sequence[float] | None = None
) -> list[SearchSpace]:
    """Return search spaces by their names or files, for images of these sizes.

    Args:
        names: the names or files.
        sizes: sizes of the images.
        resolutions: shares of the image size to choose from; None for those of the spaces.
    """
    from nas.space import load_definition

    spaces = [load_definition(name).adapt(**sizes) for name in names]
    if not resolutions:
        return spaces
    return [each.at_resolutions(sorted(resolutions)) for each in spaces]


def open_table(path: Path) -> LatencyTable:
    """Open a latency table for reading. Raises RequestError if there is none."""
    from nas.latency import LatencyTable

    return LatencyTable.open(require_table_file(path))


def open_table_runtime(path: Path, target: str | None = None) -> runtime.Runtime:
    """Open the runtime that a table was built with, on the same device and with its settings.

    Args:
        path: path of the table.
        target: address of the device, if it is a remote board.
    """
    from nas.latency import open_runtime

    table = open_table(path)
    device = table.device
    return open_runtime(
        device.runtime,
        target=table.runtime.at_address(device.target, target),
        threads=device.threads,
        dtype=device.dtype,
    )


def check_plot(path: Path | None) -> None:
    """Raise RequestError for a --plot that cannot be written, before any work is done."""
    if path is not None:
        from nas.display.plotting import check_picture_path

        check_picture_path(path)


def require_table_file(path: Path) -> Path:
    """Return the path of a latency table. Raises RequestError if there is no such file."""
    if not os.path.isfile(path):  # `Path.is_file` raises for some paths.
        is_other = os.path.lexists(path)
        problem = (
            f"{path} is no file." if is_other else f"There is no file {path}{in_folder(path)}."
        )
        raise RequestError(problem, remedy="Build a table with `nas table build`.")
    return path


def command_line() -> str:
    """Return the command line of this process without the password of the storage.

    Runs record it as the command that made them.
    """
    arguments = ["nas"]
    for word in sys.argv[1:]:
        option, _, value = word.partition("=")
        if option == "--storage" and value:
            arguments.append(f"{option}={_without_password(value)}")
        elif arguments[-1] == "--storage" or ("://" in word and "@" in word):
            arguments.append(_without_password(word))
        else:
            arguments.append(word)
    return " ".join(arguments)


def _without_password(word: str) -> str:
    from nas.files.storage_address import REDACTED, is_address, may_hold_password, redact_address

    try:
        is_unclear = may_hold_password(word) and not is_address(word)
        return REDACTED if is_unclear else redact_address(word)
    except RequestError:
        return REDACTED


def show(document: Any, text: str, as_json: bool) -> None:
    """Print a result as text, or as JSON.

    Args:
        document: the result, see `print_json`.
        text: the result as text.
        as_json: whether to print `document` instead of `text`.
    """
    if as_json:
        print_json(document)
    else:
        print(printable(text))


def print_json(document: Any) -> None:
    """Print a JSON document on stdout.

    Args:
        document: values as JSON holds them, dataclasses, records of files, and paths.
    """
    print(json.dumps(document, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    """Return an object that JSON does not hold as one that it holds."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "model_dump"):  # pydantic's, which is imported by commands that need it
        return value.model_dump(mode="json", by_alias=True)
    return str(value)
