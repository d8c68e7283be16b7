"""What ARCH on the command line stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import RootModel

from nas.cli.options import Sizes
from nas.errors import RequestError, SpaceError
from nas.files.documents import Format
from nas.graph import is_digest_prefix
from nas.space import Architecture, Reference, SearchSpace, load_definition
from nas.space.architecture import Choices, parse_record
from nas.space.library import find_reference, ships

_FILE = Format(
    RootModel[dict[str, Any]],
    "an architecture",
    RequestError,
    'Give a JSON file with {"space": name, "choices": {choice: value, ...}}.',
)


class ResolvedArchitecture(NamedTuple):
    """An architecture in a space adapted to the requested sizes, and its row if it is published."""

    architecture: Architecture
    reference: Reference | None = None


def resolve_architecture(
    arch: str, sizes: Sizes, space: str | None = None, run: Path | None = None
) -> ResolvedArchitecture:
    """Return the architecture that ARCH on the command line stands for.

    Args:
        arch: the path of an architecture's JSON, the name of a reference network, or `RUN:ID` with
            the start of a digest. `RUN:ID` runs the run's copy of the space's file, which is code:
            name only runs that you trust.
        sizes: if none is given, a reference network is as it was published, and a member of a run
            as the run had it.
        space: the name or file of the space, for an architecture of a space that does not ship.
        run: folder of a run that is given beside ARCH. ARCH can then be an ID alone, and the run's
            copies of its spaces are used.

    Raises RequestError for what is none of these or belongs to another space.
    """
    if os.path.isfile(arch):
        return _from_file(Path(arch), sizes, space, run)
    folder, colon, prefix = arch.rpartition(":")
    if colon and os.path.isdir(folder):
        return _from_run(Path(folder), prefix, sizes)
    if run is not None and (run / "trials.csv").is_file() and is_digest_prefix(arch):
        return _from_run(run, arch, sizes)
    return _from_reference(arch, sizes, space)


def read_architecture(path: Path) -> tuple[str, Choices]:
    """Return the space and the choices in a JSON file, not yet compared with those of the space.

    The file holds an architecture, or a record with one under the key `architecture`, such as a
    front member or what `nas spaces --arch` printed.

    Raises RequestError, naming the file, for any other file.
    """
    record: Any = _FILE.read(path).root
    if "choices" not in record:
        record = record.get("architecture", record)
    try:
        return parse_record(record)
    except RequestError as error:
        raise RequestError(f"{path}: {error.message}", remedy=error.remedy) from None


def _from_file(
    path: Path, sizes: Sizes, space: str | None, run: Path | None
) -> ResolvedArchitecture:
    name, choices = read_architecture(path)
    if run is not None and (copy := run / "spaces" / f"{name}.py").is_file():
        space = str(copy)
    if space is None and not ships(name):
        raise RequestError(
            f"{path} is of space {name!r}, which is not one that ships.",
            remedy="Say where the space is: nas predict --space FILE.py, or nas spaces FILE.py.",
        )
    record = {"space": name, "choices": dict(choices)}
    return _in_space(load_definition(space or name).adapt(**sizes), record, path)


def _from_run(folder: Path, prefix: str, sizes: Sizes) -> ResolvedArchitecture:
    from nas.opened_run import open_run

    run = open_run(folder)
    record = run.candidate(prefix).architecture
    space = run.space(record.space).adapt(**sizes)
    return _in_space(space, record.model_dump(), run.path / "trials.csv")


def _from_reference(name: str, sizes: Sizes, space: str | None) -> ResolvedArchitecture:
    holder = None if space is None else load_definition(space)
    try:
        if holder is None:
            holder, reference = find_reference(name)
        else:
            reference = holder.reference_row(name)
    except SpaceError as error:
        there_is = "a folder or device" if os.path.exists(name) else "no file and no run"
        raise RequestError(
            f"{error.message} There is {there_is} of this name.",
            remedy=f"{error.remedy} Or give a JSON file, or RUN:ID.",
        ) from error
    if sizes:
        return ResolvedArchitecture(holder.adapt(**sizes).reference(name), reference)
    return ResolvedArchitecture(holder.published(name), reference)


def _in_space(space: SearchSpace, record: Mapping[str, Any], source: Path) -> ResolvedArchitecture:
    try:
        return ResolvedArchitecture(space.from_json(record))
    except SpaceError as error:
        raise RequestError(f"{source}: {error.message}", remedy=error.remedy) from error
