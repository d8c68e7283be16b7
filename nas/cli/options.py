"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.errors import RequestError, printable
from nas.job.keys import KEYS

if TYPE_CHECKING:
    from nas.latency import LatencyTable, runtime
    from nas.space import SearchSpace


def job_key(path: str, *flags: str, is_bounded: bool = False) -> Any:
    """Return the option for a key of the job file, with the key's help (see `nas.job.keys`).

    Args:
        path: path of the key.
        flags: names of the option; by default the name of the argument.
        is_bounded: whether the option itself checks the bounds. Options that become settings of a
            job are checked with the job.
    """
    key = KEYS[path]
    low, high = (key.bounds.get(name) if is_bounded else None for name in ("ge", "le"))
    return typer.Option(*flags, help=key.meaning, min=low, max=high)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; by default results/<job name>.")]
Spaces = Annotated[
    list[str], typer.Option("--space", help="A space's name or Python file; may be repeated.")
]
Table = Annotated[Path, typer.Argument(help="A latency table, of any device.")]
DeviceTable = Annotated[Path, typer.Argument(help="A latency table of this device.")]
Plot = Annotated[Path | None, typer.Option(help="Write a picture to this .png or .svg file.")]
References = Annotated[
    bool,
    typer.Option("--references/--no-references", help="Time the spaces' published networks too."),
]
Runtime = Annotated[str, job_key("device.runtime")]
Target = Annotated[str, job_key("device.target")]
Address = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Where the device is, for a board's table: rpc://HOST:PORT, or with /KEY a tracker.",
    ),
]
Threads = Annotated[int, job_key("device.threads", is_bounded=True)]
Dtype = Annotated[str, job_key("device.dtype")]
Batch = Annotated[int, job_key("device.batch", is_bounded=True)]
Tuner = Annotated[
    str,
    typer.Option(
        help="What searches schedules: template, or a tuner of the runtime such as metaschedule."
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(min=1, help="Schedules of a kernel that the tuner tries; 64 by default."),
]
ImageSize = Annotated[
    int | None, typer.Option(min=8, help="Pixels a side; by default the space's own.")
]
Channels = Annotated[
    int | None, typer.Option(min=1, help="Channels of the images; by default the space's own.")
]
Classes = Annotated[
    int | None, typer.Option(min=2, help="Classes to tell apart; by default the space's own.")
]
Arch = Annotated[
    str,
    typer.Argument(help="An architecture's JSON file, the name of a reference network, or RUN:ID."),
]
Seed = Annotated[int, job_key("seed", is_bounded=True)]


def adapted(
    name: str, image_size: int | None, channels: int | None, classes: int | None
) -> SearchSpace:
    """A space by name or file, for images of these sizes."""
    from nas.space import load_definition

    return load_definition(name).adapt(image_size=image_size, channels=channels, classes=classes)


def all_adapted(
    names: Sequence[str], image_size: int | None, channels: int | None, classes: int | None
) -> list[SearchSpace]:
    """Spaces by name or file, for images of these sizes."""
    return [adapted(name, image_size, channels, classes) for name in names]


def opened(path: Path) -> LatencyTable:
    """A latency table to read. Raises RequestError where there is none."""
    from nas.latency import LatencyTable

    return LatencyTable.open(existing(path))


def runtime_of(path: Path, target: str | None = None) -> runtime.Runtime:
    """The runtime that a table names, with its settings, on its device.

    Args:
        path: the table.
        target: where the device is, if it is a board elsewhere.
    """
    from nas.latency import open_runtime

    table = opened(path)
    device = table.device
    return open_runtime(
        device.runtime,
        target=table.runtime.at_address(device.target, target),
        threads=device.threads,
        dtype=device.dtype,
    )


def picture(path: Path | None) -> None:
    """Raises RequestError for a --plot that cannot be written, before any work is done for it."""
    if path is not None:
        from nas.plotting import check_picture_path

        check_picture_path(path)


def existing(path: Path) -> Path:
    """A latency table that is there. Raises RequestError otherwise."""
    if not os.path.isfile(path):  # unlike `Path.is_file`, raises nothing
        what = f"{path} is no file." if os.path.lexists(path) else f"There is no file {path}."
        raise RequestError(what, remedy="Build a table with `nas table build`.")
    return path


def command_line() -> str:
    """What was typed, without the storage's password; stands in a run as what made it."""
    words = ["nas"]
    for word in sys.argv[1:]:
        option, _, value = word.partition("=")
        if option == "--storage" and value:
            words.append(f"{option}={_without_password(value)}")
        elif words[-1] == "--storage" or ("://" in word and "@" in word):
            words.append(_without_password(word))
        else:
            words.append(word)
    return " ".join(words)


def _without_password(word: str) -> str:
    from nas.storage_address import REDACTED, is_address, may_hold_password, redact_address

    try:
        is_unclear = may_hold_password(word) and not is_address(word)
        return REDACTED if is_unclear else redact_address(word)
    except RequestError:
        return REDACTED


def show(record: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a result for a person, or as JSON."""
    if as_json:
        print_json(record)
    else:
        print(printable(text))


def print_json(record: Any) -> None:
    """The one JSON document on stdout."""
    print(json.dumps(record, indent=1, default=str))
