"""Finding one network: a JSON file, a published network's name, or a member of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import RootModel

from nas.documents import Format, shortened
from nas.errors import RequestError, SpaceError, printable
from nas.graph import Graph
from nas.space import Architecture, Reference, SearchSpace, load_definition, load_space
from nas.space.architecture import parse_record
from nas.space.library import find_reference, space_names

MAX_BYTES = 4 << 20
"""Largest file of one architecture: that of the largest network, layer by layer, has 60 kB."""

_FILE = Format(
    RootModel[dict[str, Any]],
    "an architecture",
    RequestError,
    'Give a JSON file with {"space": name, "choices": {choice: value, ...}}.',
    MAX_BYTES,
)


@dataclass(frozen=True)
class Found:
    """A network in its space, adapted to the sizes that were asked for."""

    space: SearchSpace
    architecture: Architecture
    reference: Reference | None = None


def adapted(space: SearchSpace, sizes: Mapping[str, int | None]) -> SearchSpace:
    """A space for the sizes (`SearchSpace.adapt`) that are given; the others stay its own."""
    return space.adapt(**sizes)


def find(arch: str, sizes: Mapping[str, int | None], space: str | None = None) -> Found:
    """The network that ARCH means on the command line.

    Args:
        arch: the path of an architecture's JSON, the name of a reference network, or `RUN:ID` with
            the start of a digest. `RUN:ID` runs the run's copy of the space's file, which is code:
            name only runs that you trust.
        sizes: `image_size`, `channels` and `classes`; None for what is not asked for. A reference
            network that nothing is asked of is as it was published, a member of a run as the run
            had it.
        space: the name or file of the space, for an architecture of a space that does not ship.

    Raises RequestError for what is none of these or belongs to another space.
    """
    if os.path.isfile(arch):
        return _in_file(Path(arch), sizes, space)
    folder, colon, prefix = arch.rpartition(":")
    if colon and os.path.isdir(folder):
        return _in_run(Path(folder), prefix, sizes)
    return _published(arch, sizes, space)


def find_for_run(arch: str, run: Path, sizes: Mapping[str, int]) -> Found:
    """The network that ARCH means to a run: also the start of one of its digests.

    Args:
        arch: as for `find`, without `RUN:`.
        run: its folder, which has copies of its spaces, see `find`.
        sizes: of the run.

    Raises RequestError as `find` does.
    """
    if os.path.isfile(arch):
        kept = _kept_space(run, read(Path(arch))["space"])
        return find(arch, sizes, str(kept) if kept.is_file() else None)
    if (run / "trials.csv").is_file() and set(arch) <= set("0123456789abcdef"):
        return find(f"{run}:{arch}", sizes)
    return find(arch, sizes)


def graph_of(arch: str, sizes: Mapping[str, int | None], space: str | None = None) -> Graph:
    """The graph of what `find` finds."""
    found = find(arch, sizes, space)
    return found.architecture.graph


def _given(sizes: Mapping[str, int | None]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size is not None}


def _published(name: str, sizes: Mapping[str, int | None], space: str | None) -> Found:
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
    if _given(sizes):
        holder = adapted(holder, sizes)
        return Found(holder, holder.reference(name), reference)
    published = holder.published(name)
    return Found(published.space, published, reference)


def read(path: Path) -> dict[str, Any]:
    """The architecture in a JSON file, whose choices are not checked against its space yet.

    The file holds the architecture, or a record with the architecture in it, such as a front member
    or what `nas spaces --arch` printed. Raises RequestError, naming the file, for any other file.
    """
    return _parsed(_FILE.content(path), str(path))


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    record: Any = _FILE.parse(content, where).root
    try:
        # A key that stands twice has two values, and nobody knows which one is meant.
        json.loads(content, object_pairs_hook=_distinct)
    except ValueError as error:
        raise _FILE.failure(f"{where} is not an architecture: {printable(str(error))}") from None
    if "choices" not in record:
        record = record.get("architecture", record)
    try:
        space, choices = parse_record(record)
    except RequestError as error:
        raise RequestError(f"{where}: {error.message}", remedy=error.remedy) from None
    return {"space": space, "choices": dict(choices)}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shortened(twice)} stands twice")
    return record


def _in_file(path: Path, sizes: Mapping[str, int | None], space: str | None) -> Found:
    record = read(path)
    name = record["space"]
    if space is None and name not in space_names():
        raise RequestError(
            f"{path} is of space {name!r}, which is not one that ships.",
            remedy="Say where the space is: nas predict --space FILE.py, or nas spaces FILE.py.",
        )
    return _placed(load_definition(space or name), record, sizes, str(path))


def _in_run(folder: Path, prefix: str, sizes: Mapping[str, int | None]) -> Found:
    from nas.report import candidates, page

    trials = folder / "trials.csv"
    rows = candidates.read(trials)
    rows = rows[rows["digest"].str.startswith(prefix, na=False)]
    if not prefix or len(rows) != 1:
        raise RequestError(
            f"{len(rows)} architectures of {folder} have an id that starts with "
            f"{shortened(prefix)}.",
            remedy="Give the start of one digest in trials.csv.",
        )
    text = str(rows.iloc[0]["architecture"])
    record = _parsed(text.encode(errors="replace"), f"{trials}, {prefix}")
    settings = page.read_run(folder).settings
    if settings is None:
        raise RequestError(
            f"The job in {folder} has only begun: it does not say yet what its images are.",
            remedy="Wait until it does, or run it again.",
        )
    kept = _kept_space(folder, record["space"])
    if not kept.is_file():
        raise RequestError(f"{folder} does not hold the space {record['space']}.")
    return _placed(load_space(kept, **settings.model_dump()), record, sizes, str(trials))


def _kept_space(run: Path, name: str) -> Path:
    """A run's copy of a space's file; the only one of the run's files that is loaded for it."""
    return run / "spaces" / f"{name}.py"


def _placed(
    space: SearchSpace, record: Mapping[str, Any], sizes: Mapping[str, int | None], where: str
) -> Found:
    space = adapted(space, sizes)
    try:
        return Found(space, space.from_json(record))
    except SpaceError as error:
        raise RequestError(f"{where}: {error.message}", remedy=error.remedy) from error
