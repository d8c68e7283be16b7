"""`Choice`: a named decision among options, each of which gives a block its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nas.documents import shortened
from nas.errors import SpaceError
from nas.names import MAX_NAME_CHARACTERS
from nas.space.architecture import Value, is_value

IDENTITY: None = None
"""The option that leaves a block out: `{"skip": IDENTITY, "e3": {"expand": 3}}`."""

MAX_SIZE = 1 << 20
"""Largest width, image side, and number of channels or classes; larger ones are slips."""

Options = Value | tuple[Value, ...] | Mapping[str, Mapping[str, Any] | None]
"""One value, a tuple of values, or named bundles of arguments."""


class Choice:
    """A decision called `name` in an architecture, which sets the argument `key` of a block.

    A tuple of values is a choice among them; a single value is none, and no architecture holds it.
    A mapping is a choice among its names, each of which sets several arguments at once, or with
    `IDENTITY` leaves the block out. The argument `block` picks another block.

    Raises SpaceError for options that repeat, mix words and numbers, are infinite, not printable or
    empty; `where` names the place in the table.
    """

    def __init__(self, where: str, name: str, key: str, options: Options) -> None:
        self.name, self.key = name, key
        self._bundles = dict(options) if isinstance(options, Mapping) else None
        given = tuple(options) if isinstance(options, tuple | list | Mapping) else (options,)
        self.options: tuple[Value, ...] = given
        words = {isinstance(option, str) for option in given}
        if not all(map(is_value, given)) or len(words) > 1:
            raise SpaceError(
                f"{where}: {key} has the options {', '.join(map(shortened, given))}.",
                remedy="Use finite numbers only, or printable words of at most "
                f"{MAX_NAME_CHARACTERS} characters only.",
            )
        if not given or len(set(given)) != len(given):
            raise SpaceError(
                f"{where}: the options of {key} are {shortened(options)}.",
                remedy="Give one value, or a tuple of different values.",
            )
        if self._bundles is not None and not self.is_words:
            raise SpaceError(f"{where}: the bundles of {key} need names, not numbers.")
        for option, bundle in (self._bundles or {}).items():
            if bundle is not None and not isinstance(bundle, Mapping):
                raise SpaceError(
                    f"{where}: {key} {option!r} is {shortened(bundle)}.",
                    remedy='Give the block\'s arguments, {"expand": 3}, or IDENTITY.',
                )

    @property
    def is_real(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.options) > 1

    @property
    def is_words(self) -> bool:
        """Whether the options are names of operators rather than sizes."""
        return isinstance(self.options[0], str)

    def value(self, choices: Mapping[str, Any]) -> Any:
        """The option in `choices`; the only one there is where nothing is to be chosen."""
        return choices.get(self.name) if len(self.options) > 1 else self.options[0]

    def arguments(self, value: Value) -> Mapping[str, Any] | None:
        """What an option passes to the block; None leaves the block out."""
        if self._bundles is None:
            return {self.key: value}
        return self._bundles[value]  # type: ignore[index]

    def passed(self) -> Iterator[Mapping[str, Any]]:
        """The arguments of every option that has a block."""
        for option in self.options:
            arguments = self.arguments(option)
            if arguments is not None:
                yield arguments

    def describe(self) -> Any:
        """As plain data, for the space's digest."""
        if self._bundles is None:
            return list(self.options)
        return {
            name: None if bundle is None else {k: _plain(v) for k, v in bundle.items()}
            for name, bundle in self._bundles.items()
        }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else getattr(value, "__name__", str(value))


def sizes(where: str, key: str, value: int | tuple[int, ...], most: int) -> tuple[int, ...]:
    """The options of a size, whole numbers from 1 to `most`. Raises SpaceError for others."""
    options = tuple(value) if isinstance(value, tuple | list) else (value,)
    whole = all(isinstance(each, int) and 1 <= each <= most for each in options)
    if not options or not whole or len(set(options)) != len(options):
        raise SpaceError(
            f"{where}: {key} is {shortened(value)}.",
            remedy=f"Use whole numbers of 1 or more, up to {most}, each once.",
        )
    return options
