"""`Architecture`: the canonical choices that make one network of a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.errors import RequestError

Value = int | float | str
"""What one choice can be: a size, a share or the name of an operator."""


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
        try:
            return cls(str(record["space"]), tuple(dict(record["choices"]).items()))
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"This is not an architecture: {str(record)[:80]}",
                remedy='Expected {"space": name, "choices": {choice: value, ...}}.',
            ) from error
