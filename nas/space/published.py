"""Published networks of a space: what this package counts, beside what was published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nas.errors import SpaceError
from nas.graph import Graph
from nas.space.architecture import Architecture
from nas.space.reference import Reference
from nas.space.space import SearchSpace


@dataclass(frozen=True)
class ReferenceComparison:
    """A published network beside its published figures, at the settings that they are for.

    Attributes:
        name: name of the network.
        space: name of the space.
        published_params, published_macs: published figures; None where none was published.
        image_size, tolerance, source: see `nas.space.Reference`.
        params, macs: counts of the network; None if its row makes no network.
        digest: digest of the network, likewise.
        is_in_space: whether it is a point of the space.
        agrees: whether it is a point of the space, has the published parameters to the digit, and
            has the published MACs within the tolerance. What was not published is not compared.
        error: why its row makes no network; empty if it makes one.
    """

    name: str
    space: str
    published_params: int | None
    published_macs: int | None
    image_size: int
    tolerance: float
    source: str
    params: int | None = None
    macs: int | None = None
    digest: str | None = None
    is_in_space: bool = False
    agrees: bool = False
    error: str = ""


def compare_references(spaces: Sequence[SearchSpace]) -> list[ReferenceComparison]:
    """Return the published networks of spaces, each beside its published figures."""
    return [_compare(space, reference) for space in spaces for reference in space.references]


def _compare(space: SearchSpace, reference: Reference) -> ReferenceComparison:
    macs = reference.macs
    row = ReferenceComparison(
        name=reference.name,
        space=space.name,
        published_params=reference.params,
        published_macs=None if macs is None else round(macs),
        image_size=reference.image_size,
        tolerance=reference.tolerance,
        source=reference.source,
    )
    try:
        architecture = space.published(reference.name)
        graph = architecture.graph
        # Reading the choices back refuses all that are not among the options.
        is_in_space = architecture.space.from_json(architecture.to_json()) == architecture
    except SpaceError as error:
        return replace(row, error=str(error))
    agrees = is_in_space and reference.params in (None, graph.params)
    if macs is not None:
        agrees &= math.isclose(graph.macs, macs, rel_tol=0, abs_tol=reference.tolerance * macs)
    return replace(
        row,
        params=graph.params,
        macs=graph.macs,
        digest=graph.digest,
        is_in_space=is_in_space,
        agrees=agrees,
    )


def published_graphs(
    spaces: Sequence[SearchSpace],
) -> Iterator[tuple[SearchSpace, Reference, Graph]]:
    """Iterate over the published networks of spaces, each with its graph as it was published.

    Whether a network is a point of its space is not checked, which would take longer.

    Raises SpaceError for a row that makes no network.
    """
    for space in spaces:
        for row in space.references:
            adapted = space.as_published(row)
            choices = tuple(adapted.choices_of(row).items())
            yield space, row, adapted.lower(Architecture(adapted, choices))
