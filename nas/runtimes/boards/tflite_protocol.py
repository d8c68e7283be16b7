"""What `TfliteBoard` and the server on its board say to each other. Importing this imports no TVM.

The server registers a function with TVM RPC. Its arguments are a request as JSON and the contents
of a TensorFlow Lite file, and it returns an answer as JSON:

    {"describe": true}                                   the fields of `BoardDescription`
    {"speed": threads}                                   a reading of the core's speed: `seconds`
    {"file", "threads", "batch", "calls", "samples"}     times a file: `seconds`, `operators`, ...

`file` is the SHA-256 digest of the contents, which may be empty if the board has the file. If it
does not, the answer has only `unknown`, and the request follows with the contents. Whatever fails
is an answer, too: its `error` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FUNCTION = "nas.time_tflite"
"""Name of the function."""

PROTOCOL = 2
"""Number of these requests and answers; a description has it as `protocol`."""

LIMIT_SECONDS = 60.0
"""Longest time that a board works on a request; after that it answers with an error."""


@dataclass(frozen=True)
class BoardDescription:
    """What a board says of itself.

    Args:
        processor: model of the processor.
        features: vector features of the processor, sorted.
        versions: version of the interpreter, and digest and options of its delegate.
        delegate: file name of the delegate; empty for none.
        recorded: facts that a table records, but that need not match.
    """

    processor: str
    features: tuple[str, ...]
    versions: Mapping[str, str]
    delegate: str
    recorded: Mapping[str, Any]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> BoardDescription:
        """Return the description that `to_json` wrote. Raises KeyError if a field is missing."""
        values = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "features": tuple(record["features"])})

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and the protocol."""
        return {**asdict(self), "protocol": PROTOCOL}

    @property
    def summary(self) -> str:
        """The part in which equal boards are equal, as text."""
        software = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.processor} ({' '.join(self.features)}) with {software}"
