"""Published networks: what this package counts, beside what was published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nas import console
from nas.errors import SpaceError
from nas.formatting import format_count
from nas.space import Reference, SearchSpace


def describe_references(spaces: Sequence[SearchSpace]) -> list[dict[str, Any]]:
    """Return what `nas spaces --references` shows, at the settings of each published network.

    A network `agrees` if it is a point of its space, its parameters are the published ones to the
    digit, and its MACs within the tolerance; what was not published is not compared.
    """
    rows = []
    for space in spaces:
        # Networks of one space that share their settings share the adapted space, too.
        adapted: dict[tuple[int, bool], SearchSpace] = {}
        rows += [_describe_reference(space, reference, adapted) for reference in space.references]
    return rows


def _describe_reference(
    space: SearchSpace, reference: Reference, adapted: dict[tuple[int, bool], SearchSpace]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": reference.name,
        "space": space.name,
        "params": None,
        "macs": None,
        "published_params": reference.params,
        "published_macs": None if reference.macs is None else round(reference.macs),
        "image_size": reference.image_size,
        "tolerance": reference.tolerance,
        "source": reference.source,
        "agrees": False,
        "is_in_space": False,
        "digest": None,
        "error": "",
    }
    try:
        settings = (reference.image_size, reference.norm)
        if settings not in adapted:
            adapted[settings] = space.published(reference.name).space
        architecture = adapted[settings].reference(reference.name)
        graph = architecture.graph
        # Reading the choices back refuses all that are not among the options.
        row["is_in_space"] = adapted[settings].from_json(architecture.to_json()) == architecture
    except SpaceError as error:
        return {**row, "error": str(error)}
    agrees = row["is_in_space"]
    if reference.params is not None:
        agrees &= graph.params == reference.params
    if reference.macs is not None:
        agrees &= math.isclose(
            graph.macs, reference.macs, rel_tol=0, abs_tol=reference.tolerance * reference.macs
        )
    counts = {"params": graph.params, "macs": graph.macs, "digest": graph.digest}
    return {**row, **counts, "agrees": agrees}


def disagreements(rows: Sequence[dict[str, Any]]) -> str:
    """Return a short message that names the networks that do not agree; empty if all do."""
    wrong = [row["name"] for row in rows if not row["agrees"]]
    if not wrong:
        return ""
    return f"{len(wrong)} of {len(rows)} reference networks disagree: {', '.join(wrong)}."


def show_references(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line for each network, marked where it differs from what was published."""
    if not rows:
        console.say("There are no reference networks here.")
        return
    console.print_table(
        ["network", "space", "px", "parameters", "published", "MACs", "published", "off", ""],
        [
            (
                row["name"],
                row["space"],
                row["image_size"],
                _exact(row["params"]),
                _exact(row["published_params"]),
                _rounded(row["macs"]),
                _rounded(row["published_macs"]),
                _deviation(row),
                "agrees" if row["agrees"] else "DISAGREES",
            )
            for row in rows
        ],
        left=("space",),
    )
    for row in rows:
        if row["error"]:
            console.say(f"{row['name']}: {row['error']}")


def _exact(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _rounded(count: float | None) -> str:
    return "-" if count is None else format_count(count)


def _deviation(row: dict[str, Any]) -> str:
    """Return how far the MACs are from the published ones, and the tolerance."""
    if row["macs"] is None or row["published_macs"] is None:
        return "-"
    deviation = row["macs"] / row["published_macs"] - 1
    return f"{deviation:+.1%} of ±{row['tolerance']:.1%}"
