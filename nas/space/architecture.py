"""`Architecture`: the canonical choices that make one network of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.documents import shortened
from nas.errors import RequestError
from nas.names import MAX_NAME_CHARACTERS, require_name

Value = int | float | str
"""What one choice can be: a size, a share or the name of an operator."""


def is_value(value: object) -> bool:
    """Whether this can be an option of a choice: a finite number, or a short printable word."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_NAME_CHARACTERS and value.isprintable()
    return is_number(value)


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Architecture:
    """The choices of one network, in the order of its space, without those that it does not use.

    Made by a `SearchSpace` (`sample`, `architecture`), which leaves out unused choices, so equal
    choices are equal records. Two architectures that lower to equal graphs share `Graph.digest`.
    """

    space: str
    choices: tuple[tuple[str, Value], ...]

    def to_json(self) -> dict[str, Any]:
        """`{"space": ..., "choices": {...}}`; `SearchSpace.from_json` reads it back, checked."""
        return {"space": self.space, "choices": dict(self.choices)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Architecture:
        """Reads what `to_json` wrote. Raises RequestError for anything else.

        The choices are taken as they stand; `SearchSpace.from_json` also checks them.
        """
        choices = record.get("choices") if isinstance(record, Mapping) else None
        if not isinstance(choices, Mapping):
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
        return cls(space, tuple(choices.items()))
