"""`Choice`: a named decision among options, each of which gives arguments to a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from nas.errors import SpaceError
from nas.files.documents import shortened
from nas.files.names import MAX_NAME_CHARACTERS
from nas.space.architecture import Value, is_value

_Option = TypeVar("_Option", bound=Value)

IDENTITY: None = None
"""The option that leaves a block out: `{"skip": IDENTITY, "e3": {"expand": 3}}`."""

Options = Value | tuple[Value, ...] | Mapping[str, Mapping[str, Any] | None]
"""One value, a tuple of values, or a mapping from names to block arguments."""


class Choice:
    """A decision called `name` in an architecture, which sets an argument of a block.

    A tuple of values is a choice among them. A single value leaves nothing to choose, and no
    architecture contains it. A mapping is a choice among its names, each of which sets several
    arguments at once, or with `IDENTITY` leaves the block out; the argument `block` selects another
    block.

    Attributes:
        name: in an architecture, such as `stage2.0.kernel`.
        argument: the keyword of the block function that a value is passed as.
        options: what can be chosen.
        table_options: the options in the table, of which `options` are those that are left.

    Example:
        >>> kernel = Choice("Stage stage2", "stage2.0.kernel", "kernel", (3, 5))
        >>> kernel.arguments(5)
        {'kernel': 5}
    """

    def __init__(
        self,
        where: str,
        name: str,
        argument: str,
        options: Options,
        left: Sequence[Value] | None = None,
    ) -> None:
        """Check the options.

        Args:
            where: place in the table, for messages.
            name: in an architecture.
            argument: of the block.
            options: as the table gives them.
            left: those that can be chosen; None for all.

        Raises SpaceError for options that repeat, mix strings and numbers, are infinite, are not
        printable or are empty, and as `options_left` does.
        """
        self.name, self.argument = name, argument
        self._bundles = dict(options) if isinstance(options, Mapping) else None
        given = tuple(options) if isinstance(options, tuple | list | Mapping) else (options,)
        self.table_options: tuple[Value, ...] = given
        string_and_number = len({isinstance(option, str) for option in given}) > 1
        if not all(map(is_value, given)) or string_and_number:
            raise SpaceError(
                f"{where}: {argument} has the options {', '.join(map(shortened, given))}.",
                remedy="Use finite numbers only, or printable words of at most "
                f"{MAX_NAME_CHARACTERS} characters only.",
            )
        if not given or len(set(given)) != len(given):
            raise SpaceError(
                f"{where}: the options of {argument} are {shortened(options)}.",
                remedy="Give one value, or a tuple of different values.",
            )
        self.options = options_left(where, name, given, left)
        if self._bundles is not None and not isinstance(given[0], str):
            raise SpaceError(f"{where}: the bundles of {argument} need names, not numbers.")
        for option, bundle in (self._bundles or {}).items():
            if bundle is not None and not isinstance(bundle, Mapping):
                raise SpaceError(
                    f"{where}: {argument} {option!r} is {shortened(bundle)}.",
                    remedy='Give the block\'s arguments, {"expand": 3}, or IDENTITY.',
                )

    @property
    def has_alternatives(self) -> bool:
        """Whether there is more than one option."""
        return len(self.options) > 1

    def selected(self, choices: Mapping[str, Any]) -> Any:
        """Return the option in `choices`, or the only one where there are no alternatives."""
        return choices[self.name] if len(self.options) > 1 else self.options[0]

    def arguments(self, option: Value) -> Mapping[str, Any] | None:
        """Return what an option passes to the block; None leaves the block out."""
        if self._bundles is None:
            return {self.argument: option}
        return self._bundles[option]  # type: ignore[index]

    def all_arguments(self) -> Iterator[Mapping[str, Any]]:
        """Iterate over the arguments of every option that does not leave the block out."""
        for option in self.options:
            arguments = self.arguments(option)
            if arguments is not None:
                yield arguments

    def to_json(self) -> Any:
        """Return the options as plain data: a list, or a mapping from names to arguments."""
        if self._bundles is None:
            return list(self.options)
        return {
            name: None if bundle is None else {k: _plain(v) for k, v in bundle.items()}
            for name, bundle in self._bundles.items()
            if name in self.options
        }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else getattr(value, "__name__", str(value))


def options_left(
    where: str, name: str, options: tuple[_Option, ...], left: Sequence[Value] | None
) -> tuple[_Option, ...]:
    """Return those options of the table that are left, in the table's order.

    Args:
        where: place in the table, for messages.
        name: of the choice.
        options: in the table.
        left: those that can be chosen; None for all.

    Raises SpaceError for none, or others than those of the table.
    """
    if left is None:
        return options
    if not isinstance(left, tuple | list) or not left or not set(left) <= set(options):
        raise SpaceError(
            f"{where}: {name} is narrowed to {shortened(left)}.",
            remedy=f"Give a tuple of some of its options {', '.join(map(str, options))}.",
        )
    return tuple(option for option in options if option in left)


def size_options(
    where: str, name: str, value: int | tuple[int, ...], largest: int
) -> tuple[int, ...]:
    """Return the options of a size that the table gives as one number or as several.

    Raises SpaceError for anything but different whole numbers from 1 to `largest`.
    """
    options = tuple(value) if isinstance(value, tuple | list) else (value,)
    whole = all(type(each) is int and 1 <= each <= largest for each in options)
    if not options or not whole or len(set(options)) != len(options):
        raise SpaceError(
            f"{where}: {name} is {shortened(value)}.",
            remedy=f"Use whole numbers of 1 or more, up to {largest}, each once.",
        )
    return options
