"""The fingerprint of a device: the facts that must match, and the facts that are only recorded."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue

from nas.errors import TableDeviceError
from nas.files.documents import Document

_MAX_SLUG_LENGTH = 120
"""Largest length of a device's name in a file name. File systems and records allow 200 or more."""

_DIGEST_LENGTH = 12


Text = Annotated[str, Field(max_length=4096)]
"""A name or message; a longer one would fill a screen."""


def _check_numbers(value: JsonValue) -> JsonValue:
    """Return the value. Raises ValueError if it contains a NaN or an infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _check_numbers(each)
    return value


Object = Annotated[dict[str, JsonValue], AfterValidator(_check_numbers)]
"""A schedule, or the recorded facts of a device: JSON without NaN and infinities."""


class Fingerprint(Document):
    """A device as a runtime uses it.

    Latencies are valid only on a device that is equal in all fields but `recorded`.

    Attributes:
        processor: model, with family and stepping if the system reveals them.
        features: vector extensions, sorted.
        runtime: name of the runtime.
        versions: versions of the runtime and of its code generator.
        target: `cpu`, or the runtime's name of the accelerator.
        dtype: type of weights and activations.
        threads: number of threads that run one kernel.
        recorded: facts that may differ, such as operating system, memory and frequency governor.
    """

    processor: Text
    features: tuple[Text, ...]
    runtime: Text
    versions: Mapping[Text, Text]
    target: Text
    dtype: Text
    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    recorded: Object

    def to_json(self) -> dict[str, Any]:
        """Return all fields, for the header of a table and for the record of a run."""
        return self.model_dump(mode="json")

    @property
    def slug(self) -> str:
        """The default file name of this device's latency table.

        A digest replaces the end of a long name, such as that of a board with many features.
        """
        device = re.sub(r"[^a-z0-9]+", "-", self.processor.lower()).strip("-")
        if self.target != "cpu":
            device += "-" + re.sub(r"[^a-z0-9]+", "-", self.target.lower()).strip("-")
        if len(device) > _MAX_SLUG_LENGTH:
            digest = hashlib.sha256(device.encode()).hexdigest()[:_DIGEST_LENGTH]
            device = f"{device[: _MAX_SLUG_LENGTH - _DIGEST_LENGTH - 1]}-{digest}"
        return f"{device}.{self.runtime}.{self.dtype}.{self.threads}t.jsonl"

    def differences(self, other: Fingerprint) -> list[str]:
        """Return one sentence per field that differs in `other` and must not; empty if equal."""
        mine, theirs = self.to_json(), other.to_json()
        return [
            f"{name} is {_shown(theirs[name])}, not {_shown(mine[name])}"
            for name in mine
            if name != "recorded" and mine[name] != theirs[name]
        ]

    def require_match(self, other: Fingerprint, what: str) -> None:
        """Raise TableDeviceError if `other`, the fingerprint of this machine, differs.

        Args:
            other: fingerprint of this machine.
            what: name of the thing that belongs to this fingerprint, for the message.
        """
        differences = self.differences(other)
        if differences:
            raise TableDeviceError(
                f"{what} was measured on another device: here {'; '.join(differences)}.",
                remedy="Build a table for this device with `nas table build`.",
            )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)
