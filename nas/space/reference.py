"""`Reference`: a published network as a row of a space's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from nas.documents import shortened
from nas.errors import SpaceError
from nas.names import require_name
from nas.space.architecture import Value, is_number

_MOST_LISTED = 12


@dataclass(frozen=True)
class Reference:
    """A published network, as choices of the space in whose file it stands.

    Args:
        name: unique among all spaces, such as `mobilenet_v2_1.0`.
        choices: a parameter's full name (`stage2.width`, `stage2.0.kernel`); `stage2.kernel` for
            all blocks of a stage, with one value or a tuple of one a block; `*.kernel` for all
            stages that have the choice, with one value or a tuple of one a stage. A longer name
            goes before a shorter one.
        source: where it was published.
        params, macs: published figures; None where there is none.
        image_size: pixels a side that the space is adapted to for the figures.
        resolution: the share of the image size that the network is run at, where the space has
            several `resolutions`.
        norm: whether the published network has batch norms.
        tolerance: relative, of the MACs: what the rounding of the paper's figure, or another
            convention of counting, can account for.

    Raises SpaceError for a name that breaks the rule in `nas.names`, or values of other kinds.
    """

    name: str
    choices: Mapping[str, Value | tuple[Value, ...]]
    source: str
    params: int | None = None
    macs: float | None = None
    image_size: int = 224
    resolution: float = 1.0
    norm: bool = True
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        require_name(self.name, "The name of a reference", SpaceError)
        if not isinstance(self.choices, Mapping) or not all(
            isinstance(pattern, str) for pattern in self.choices
        ):
            raise SpaceError(
                f"Reference {self.name}: choices is {shortened(self.choices)}.",
                remedy='Give a mapping, such as {"stage2.width": 32}.',
            )
        for name in ("params", "macs", "image_size", "resolution", "tolerance"):
            value = getattr(self, name)
            is_missing = value is None and name in ("params", "macs")
            if not is_missing and not (is_number(value) and value >= 0):
                raise SpaceError(
                    f"Reference {self.name}: {name} is {shortened(value)}.",
                    remedy="Give a finite number of 0 or more.",
                )

    def resolved(
        self, parameters: Mapping[str, tuple[Value, ...]], image_size: int
    ) -> dict[str, Value]:
        """All parameters of a space for images of a size, with this network's choices.

        A parameter that the row does not name gets its first option: it had better be one that the
        network does not use. Raises SpaceError for a name that no parameter has.
        """
        found = {name: options[0] for name, options in parameters.items()}
        if "resolution" in found:
            found["resolution"] = round(self.resolution * image_size)
        for pattern, value in sorted(self.choices.items(), key=_breadth):
            names = [name for name in parameters if _matches(pattern, name)]
            if not names:
                raise SpaceError(
                    f"Reference {self.name}: no choice is called {pattern!r}.",
                    remedy=f"Choices: {', '.join(parameters)}.",
                )
            if not isinstance(value, tuple):
                found.update(dict.fromkeys(names, value))
                continue
            places = list(dict.fromkeys(_place(pattern, name) for name in names))
            if len(value) > len(places) or (pattern[0] == "*" and len(value) < len(places)):
                raise SpaceError(
                    f"Reference {self.name}: {pattern!r} has {len(value)} values for the "
                    f"{len(places)} choices {', '.join(places)}."
                )
            by_place = dict(zip(places, value, strict=False))
            for name in names:
                place = _place(pattern, name)
                if place in by_place:
                    found[name] = by_place[place]
        return found


def no_reference(where: str, name: str, known: list[str]) -> SpaceError:
    """The error for a network that is not published `where`; names those that are spelled alike."""
    close = get_close_matches(name, known, n=3)
    if close:
        remedy = f"Did you mean {', '.join(close)}?"
    elif len(known) > _MOST_LISTED:
        remedy = "List them with: nas spaces --references."
    else:
        remedy = f"There are: {', '.join(known) or 'none'}."
    return SpaceError(f"There is no reference network {shortened(name)}{where}.", remedy=remedy)


def _breadth(item: tuple[str, object]) -> tuple[bool, int]:
    """Sorts the broadest patterns first, so that narrower ones have the last word."""
    pattern = item[0]
    return (not pattern.startswith("*."), pattern.count("."))


def _matches(pattern: str, name: str) -> bool:
    if pattern == name:
        return True
    parts, wanted = name.split("."), pattern.split(".")
    if len(wanted) != 2 or len(parts) < 2 or parts[-1] != wanted[1]:
        return False
    return wanted[0] == "*" or (len(parts) == 3 and parts[0] == wanted[0])


def _place(pattern: str, name: str) -> str:
    """What one value of a tuple stands for: a stage for `*.x`, a block for `stage.x`."""
    return name.split(".")[0] if pattern.startswith("*.") else name
