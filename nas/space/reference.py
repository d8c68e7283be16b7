"""`Reference`: a published network as a row of a space's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from nas.errors import SpaceError
from nas.files.documents import shortened
from nas.files.names import require_name
from nas.space.architecture import Value, is_number

_MAX_NAMES_IN_MESSAGE = 12
"""With more networks than this, an error names a command that lists them instead."""


@dataclass(frozen=True)
class Reference:
    """A published network, as choices of the space in whose file the row stands.

    Args:
        name: unique among all spaces, such as `mobilenet_v2_1.0`.
        choices: from patterns to options. A pattern is a parameter's full name (`stage2.width`,
            `stage2.0.kernel`); or `stage2.kernel`, for all blocks of a stage, with one option or a
            tuple of one for each block; or `*.kernel`, for all stages that have the choice, with
            one option or a tuple of one for each stage. A longer pattern goes before a shorter one.
        source: where the network was published.
        params: published number of parameters; None where none was published.
        macs: published number of multiply-accumulates; None where none was published.
        image_size: height and width in pixels of the images that the figures are for.
        resolution: fraction of the image size that the network is run at, where the space has
            several `resolutions`.
        norm: whether the published network has batch norms.
        tolerance: relative deviation of the MACs that the rounding of the published figure, or
            another convention of counting, can account for.
        is_trained: whether it is no published network but a trained one of a run, see
            `SearchSpace.with_trained`.

    Raises SpaceError for a name that breaks the rule in `nas.files.names`, or values of other
    kinds.

    Example:
        >>> row = Reference("tiny_1.0", {"*.width": (16, 32)}, source="an example")
        >>> row.resolve({"stem.width": (8, 16), "body.width": (32, 64)}, image_size=32)
        {'stem.width': 16, 'body.width': 32}
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
    is_trained: bool = False

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

    def resolve(
        self, parameters: Mapping[str, tuple[Value, ...]], image_size: int
    ) -> dict[str, Value]:
        """Return an option for each parameter of a space: those of this network.

        Parameters that no pattern matches get their first option, so they should be parameters
        that the network does not use.

        Args:
            parameters: the options of each parameter of the space, by name.
            image_size: height and width in pixels of the images that the space is adapted to.

        Raises SpaceError for a pattern that no parameter matches.
        """
        chosen = {name: options[0] for name, options in parameters.items()}
        if "resolution" in chosen:
            chosen["resolution"] = round(self.resolution * image_size)
        for pattern, value in sorted(self.choices.items(), key=_specificity):
            names = [name for name in parameters if _matches(pattern, name)]
            if not names:
                raise SpaceError(
                    f"Reference {self.name}: no choice is called {pattern!r}.",
                    remedy=f"Choices: {', '.join(parameters)}.",
                )
            if not isinstance(value, tuple):
                chosen.update(dict.fromkeys(names, value))
                continue
            positions = list(dict.fromkeys(_position(pattern, name) for name in names))
            if len(value) > len(positions) or (pattern[0] == "*" and len(value) < len(positions)):
                raise SpaceError(
                    f"Reference {self.name}: {pattern!r} has {len(value)} values for the "
                    f"{len(positions)} choices {', '.join(positions)}."
                )
            by_position = dict(zip(positions, value, strict=False))
            for name in names:
                position = _position(pattern, name)
                if position in by_position:
                    chosen[name] = by_position[position]
        return chosen


def unknown_reference_error(where: str, name: str, known: Sequence[str]) -> SpaceError:
    """Return the error for an unknown name, with the known names that are spelled alike.

    Args:
        where: the end of the message's sentence, such as " in space mobilenet", or empty.
        name: as it was asked for.
        known: the names there are.
    """
    close = get_close_matches(name, known, n=3)
    if close:
        remedy = f"Did you mean {', '.join(close)}?"
    elif len(known) > _MAX_NAMES_IN_MESSAGE:
        remedy = "List them with: nas spaces --references."
    else:
        remedy = f"There are: {', '.join(known) or 'none'}."
    return SpaceError(f"There is no reference network {shortened(name)}{where}.", remedy=remedy)


def _specificity(item: tuple[str, object]) -> tuple[bool, int]:
    """Return a key that sorts broad patterns before narrow ones, which overwrite them."""
    pattern = item[0]
    return (not pattern.startswith("*."), pattern.count("."))


def _matches(pattern: str, name: str) -> bool:
    if pattern == name:
        return True
    parts, wanted = name.split("."), pattern.split(".")
    if len(wanted) != 2 or len(parts) < 2 or parts[-1] != wanted[1]:
        return False
    return wanted[0] == "*" or (len(parts) == 3 and parts[0] == wanted[0])


def _position(pattern: str, name: str) -> str:
    """Return what one value of a tuple is for: a stage for `*.x`, a block for `stage.x`."""
    return name.split(".")[0] if pattern.startswith("*.") else name
