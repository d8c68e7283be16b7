"""Restricts a space to the networks that a published or a trained one contains.

A network is contained if the published network has values for all of its weights:

- Its sizes (widths, depths, ratios, the resolution) are at most the published ones.
- Its named options are the published ones. Others make other operators, with weights of their own.
- Its kernels may be larger. A published kernel lies in the centre of a larger one, and with zeros
  around it computes the same. Without larger kernels few networks would be left of some spaces:
  108 of ShuffleNetV2 x0.5. Within a trained network of a run, kernels are at most its own: that
  network was searched for, and smaller ones are wanted.

A contained network may also have to have the published widths. The channels of a published network
have no order, so that some of them compute nothing useful without the others, while networks with
fewer blocks, smaller kernels or smaller ratios still do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nas.errors import SpaceError
from nas.space.architecture import Value
from nas.space.reference import Reference

if TYPE_CHECKING:
    from nas.space.space import SearchSpace

WITHIN = "within_"
"""Start of the name of a restricted space; the name of the published network follows."""

AT_WIDTHS = "at_widths_of_"
"""The same start if the networks have the published widths."""


def restricted(space: SearchSpace, row: Reference, *, same_widths: bool = False) -> SearchSpace:
    """Return a space with the networks that one of its references contains.

    The result is the space itself if nothing is taken from its choices.

    Args:
        space: the space.
        row: the reference.
        same_widths: whether only networks with the published widths are left.

    Raises SpaceError for a row that is no point of the space.
    """
    table = space.whole.parameters
    narrowed: dict[str, tuple[Value, ...]] = {}
    for name, published in _used_choices(space, row).items():
        options = space.narrowed.get(name, table[name])
        is_fixed = same_widths and name.endswith(".width")
        if is_fixed:
            left: tuple[Value, ...] = (published,)
        elif name.endswith(".kernel") and not row.is_trained:
            left = options
        else:
            left = _options_left(options, published)
        if left != table[name]:
            narrowed[name] = left
    # The resolution of a row does not count in a space that has no choice of it.
    shares = tuple(share for share in space.resolutions if share <= row.resolution)
    resolutions = shares or space.resolutions
    if (narrowed, resolutions) == (space.narrowed, space.resolutions):
        return space
    name = f"{AT_WIDTHS if same_widths else WITHIN}{row.name}"
    inside = replace(space, name=name, narrowed=narrowed, resolutions=resolutions)
    references = [each for each in space.references if _contains(inside, each)]
    return replace(inside, references=tuple(references))


def _options_left(options: tuple[Value, ...], published: Value) -> tuple[Value, ...]:
    """Return the options of a choice with which a network is contained in the published one."""
    if isinstance(published, str):
        return (published,)
    return tuple(option for option in options if option <= published)  # type: ignore[operator]


def _contains(space: SearchSpace, row: Reference) -> bool:
    """Return whether a reference of a wider space is a point of a restricted one."""
    try:
        used = _used_choices(space, row)
    except SpaceError:
        return False
    return row.resolution <= max(space.resolutions) and all(
        option in space.narrowed.get(name, (option,)) for name, option in used.items()
    )


def _used_choices(space: SearchSpace, row: Reference) -> Mapping[str, Value]:
    """Return the options of a reference, but for the resolution, which is no option of the table.

    Raises SpaceError for options that the table lacks.
    """
    used = dict(space.whole.used_choices(space.choices_of(row)))
    used.pop("resolution", None)
    return used
