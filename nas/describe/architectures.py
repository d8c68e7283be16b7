"""Finding one network: a JSON file, a published network's name, or a member of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import RequestError, SpaceError
from nas.graph import Graph
from nas.space import Architecture, Reference, SearchSpace, load
from nas.space.library import find_reference, names


@dataclass(frozen=True)
class Found:
    """A network in its space, adapted to the sizes that were asked for."""

    space: SearchSpace
    architecture: Architecture
    reference: Reference | None = None


def adapted(space: SearchSpace, sizes: Mapping[str, int | None]) -> SearchSpace:
    """A space for the sizes (`SearchSpace.on`) that are given; the others stay its own."""
    return space.on(**{**space.settings, **_given(sizes)})


def find(arch: str, sizes: Mapping[str, int | None], space: str | None = None) -> Found:
    """The network that ARCH means on the command line.

    Args:
        arch: the path of an architecture's JSON, the name of a reference network, or `RUN:ID` with
            the start of a digest.
        sizes: `image_size`, `channels` and `classes`; None for what is not asked for. A reference
            network that nothing is asked of is as it was published, a member of a run as the run
            had it.
        space: the name or file of the space, for an architecture of a space that does not ship.

    Raises RequestError for what is none of these or belongs to another space.
    """
    path = Path(arch)
    if path.is_file():
        return _in_file(path, sizes, space)
    folder, colon, prefix = arch.rpartition(":")
    if colon and Path(folder).is_dir():
        return _in_run(Path(folder), prefix, sizes)
    return _published(arch, sizes, space)


def find_for_run(arch: str, run: Path, sizes: Mapping[str, int]) -> Found:
    """The network that ARCH means to a run: also the start of one of its digests.

    Args:
        arch: as for `find`, without `RUN:`.
        run: its folder, which has copies of its spaces.
        sizes: of the run.

    Raises RequestError as `find` does.
    """
    path = Path(arch)
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            name = str(record.get("architecture", record)["space"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"{path} is not an architecture.") from error
        kept = run / "spaces" / f"{name}.py"
        return find(arch, sizes, str(kept) if kept.is_file() else None)
    if (run / "trials.csv").is_file() and set(arch) <= set("0123456789abcdef"):
        return find(f"{run}:{arch}", sizes)
    return find(arch, sizes)


def graph_of(arch: str, sizes: Mapping[str, int | None], space: str | None = None) -> Graph:
    """The graph of what `find` finds."""
    found = find(arch, sizes, space)
    return found.space.lower(found.architecture)


def _given(sizes: Mapping[str, int | None]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size is not None}


def _published(name: str, sizes: Mapping[str, int | None], space: str | None) -> Found:
    holder = None if space is None else load(space)
    try:
        if holder is None:
            holder, reference = find_reference(name)
        else:
            reference = holder.reference_row(name)
    except SpaceError as error:
        raise RequestError(
            f"{error.message} There is no file and no run of this name either.",
            remedy=f"{error.remedy} Or give a JSON file, or RUN:ID.",
        ) from error
    if _given(sizes):
        holder = adapted(holder, sizes)
        return Found(holder, holder.reference(name), reference)
    return Found(*holder.published(name), reference)


def _in_file(path: Path, sizes: Mapping[str, int | None], space: str | None) -> Found:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path} is not an architecture: {error}.") from error
    if isinstance(record, dict) and "choices" not in record:
        # A front member, or what `nas spaces --arch` printed, has its architecture inside.
        record = record.get("architecture", record)
    name = Architecture.from_json(record).space
    if space is None and name not in names():
        raise RequestError(
            f"{path} is of space {name!r}, which is not one that ships.",
            remedy="Say where the space is: nas predict --space FILE.py, or nas spaces FILE.py.",
        )
    chosen = adapted(load(space or name), sizes)
    return Found(chosen, chosen.from_json(record))


def _in_run(folder: Path, prefix: str, sizes: Mapping[str, int | None]) -> Found:
    from nas.report import candidates, page

    rows = candidates.read(folder / "trials.csv")
    rows = rows[rows["digest"].str.startswith(prefix)]
    if not prefix or len(rows) != 1:
        raise RequestError(
            f"{len(rows)} architectures of {folder} have an id that starts with {prefix!r}.",
            remedy="Give the start of one digest in trials.csv.",
        )
    record: dict[str, Any] = json.loads(rows.iloc[0]["architecture"])
    settings = page.read_run(folder).settings
    if settings is None:
        raise RequestError(
            f"The job in {folder} has only begun: it does not say yet what its images are.",
            remedy="Wait until it does, or run it again.",
        )
    for kept in sorted((folder / "spaces").glob("*.py")):
        chosen = load(kept)
        if chosen.name == record["space"]:
            chosen = adapted(chosen.on(**settings.model_dump()), sizes)
            return Found(chosen, chosen.from_json(record))
    raise RequestError(f"{folder} does not hold the space {record['space']}.")
