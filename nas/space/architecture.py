"""`Architecture`: one network of a search space, as its canonical choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nas.errors import RequestError
from nas.files.documents import shortened
from nas.files.names import MAX_NAME_CHARACTERS, require_name

if TYPE_CHECKING:
    from nas.space.block_graph import CompositeGraph
    from nas.space.space import SearchSpace

Value = int | float | str
"""One option of a choice: a size, a ratio or the name of an operator."""

Choices = tuple[tuple[str, Value], ...]
"""The name of each choice with the option that was chosen, in the order of the space's table."""


@dataclass(frozen=True, eq=False, repr=False)
class Architecture:
    """One network of a search space: the choices that it uses, in the order of the space's table.

    Search spaces make architectures (`SearchSpace.sample`, `SearchSpace.architecture`) and leave
    out the choices that a network does not use, so that equal networks are equal architectures.
    Creating one does not build its graph. Architectures are immutable, hashable and equal where
    their choices, the names of their spaces and the settings that these are adapted to are equal.

    Attributes:
        space: the `SearchSpace`, adapted to an input size and a number of classes.
        choices: the chosen option by the name of each choice, a read-only mapping in the order of
            the space's table.

    Example:
        >>> from nas.space import load_space
        >>> space = load_space("mobilenet", image_size=32)
        >>> architecture = space.sample(seed=0)
        >>> architecture.space is space
        True
        >>> architecture.choices["stem.width"] in (16, 24, 32)
        True
        >>> architecture == space.from_json(architecture.to_json())
        True
    """

    space: SearchSpace
    _pairs: Choices
    _hash: int | None = field(default=None, init=False)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Architecture):
            return NotImplemented
        return self._pairs == other._pairs and (
            self.space is other.space or self.space.identity == other.space.identity
        )

    def __hash__(self) -> int:
        # Searches look architectures up by the hundred thousand; hashing all choices takes longer.
        if self._hash is None:
            object.__setattr__(self, "_hash", hash((self.space.name, self._pairs)))
        return self._hash  # type: ignore[return-value]

    def __reduce__(self) -> tuple[Any, ...]:
        # The hashes of strings differ between processes, so the hash must not be pickled.
        return Architecture, (self.space, self._pairs)

    def __repr__(self) -> str:
        return f"Architecture({self.space.name!r}, {dict(self._pairs)!r})"

    @property
    def choices(self) -> Mapping[str, Value]:
        """The chosen option by the name of each choice, in the order of the space's table."""
        return MappingProxyType(dict(self._pairs))

    @property
    def graph(self) -> CompositeGraph:
        """The network: its ops with their shapes.

        The space caches the graphs of the architectures that were asked for last.

        Raises SpaceError where the choices make no network.
        """
        return self.space.graph_cache(self)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.graph.macs

    @property
    def params(self) -> int:
        """The number of trainable parameters."""
        return self.graph.params

    @property
    def peak_memory_bytes(self) -> int:
        """The largest number of bytes of float32 activations alive at once, for one image."""
        return self.graph.peak_memory_bytes

    @property
    def digest(self) -> str:
        """`Graph.digest`: equal for two architectures exactly when their graphs compute alike."""
        return self.graph.digest

    def to_json(self) -> dict[str, Any]:
        """Return `{"space": name, "choices": {...}}`, which `SearchSpace.from_json` reads back."""
        return {"space": self.space.name, "choices": dict(self._pairs)}


def parse_record(record: object) -> tuple[str, Choices]:
    """Return the space's name and the choices in what `Architecture.to_json` wrote.

    The choices are not compared with those of the space; `SearchSpace.from_json` does that.

    Raises RequestError for anything else than such a record.
    """
    choices = record.get("choices") if isinstance(record, Mapping) else None
    if not isinstance(record, Mapping) or not isinstance(choices, Mapping):
        raise RequestError(
            f"This is not an architecture: {shortened(record)}.",
            remedy='Expected {"space": name, "choices": {choice: value, ...}}.',
        )
    space = require_name(record.get("space"), "The space of an architecture")
    for key, value in choices.items():
        if not isinstance(key, str) or not is_value(value):
            raise RequestError(
                f"Choice {shortened(key)} of an architecture is {shortened(value)}.",
                remedy="Expected a finite number, or a word.",
            )
    return space, tuple(choices.items())


def is_value(value: object) -> bool:
    """Return whether `value` can be an option: a finite number, or a short printable string."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_NAME_CHARACTERS and value.isprintable()
    return is_number(value)


def is_number(value: object) -> bool:
    """Return whether `value` is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
