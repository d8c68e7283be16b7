"""`Manifest`: what a kit times, in its file `kit.json`. Importing this imports no TVM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from nas.errors import RequestError
from nas.files.documents import Count, Document, Format, Name
from nas.latency.device import Object, Text
from nas.latency.kit import MANIFEST as MANIFEST_FILE

_DIGEST_LENGTH = 16


class Item(Document):
    """One function that a kit times.

    Attributes:
        id: number of the item, its place in the manifest.
        part: `kernel`, a candidate of a kernel; `dispatch`, what the costs of a dispatch follow
            from; `network`, a whole network.
        name: text of the kernel, name of the network of `dispatch_benchmarks`, or digest of the
            network.
        schedule: schedule of a kernel; None for a network.
        error: why the kit cannot time it; None if it can.
    """

    id: Count
    part: Literal["kernel", "dispatch", "network"]
    name: Text
    schedule: Object | None = None
    error: Text | None = None


class Manifest(Document):
    """What a kit times, and for which device.

    Attributes:
        kit: digest of the rest, by which results name their kit.
        content: `kernels` for a latency table, or whole `networks`.
        target: target of the runtime, see `nas.runtimes.tvm.kit.address`.
        versions: versions of the runtime, as in the fingerprint of a table.
        batch: number of images of one inference.
        spaces: the search spaces, for people.
        programs: names of the programs, which share the items.
        items: what is timed.
    """

    schema_version: Literal[2] = Field(alias="schema")
    kit: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{_DIGEST_LENGTH}}}$")]
    content: Literal["kernels", "networks"]
    target: Text
    versions: Mapping[Text, Text]
    batch: Annotated[int, Field(ge=1)]
    spaces: tuple[Text, ...]
    programs: tuple[Name, ...]
    items: tuple[Item, ...]

    @classmethod
    def of(
        cls,
        content: Literal["kernels", "networks"],
        target: str,
        versions: Mapping[str, str],
        items: Sequence[Item],
        *,
        batch: int = 1,
        spaces: Sequence[str] = (),
        programs: Sequence[str] = ("kit",),
    ) -> Self:
        """Return the manifest with these fields and their digest."""
        fields: dict[str, Any] = {
            "schema": 2,
            "content": content,
            "target": target,
            "versions": dict(versions),
            "batch": batch,
            "spaces": tuple(spaces),
            "programs": tuple(programs),
            "items": tuple(items),
        }
        unnamed = cls.model_construct(schema_version=2, **fields)
        return cls.model_validate({**fields, "kit": unnamed._digest()})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [item.id for item in self.items] != list(range(len(self.items))):
            raise ValueError("the items should have the numbers 0, 1, 2 and so on")
        if self._digest() != self.kit:
            raise ValueError("it was changed after the kit was made")
        return self

    def _digest(self) -> str:
        """Return the digest of all fields but itself."""
        fields = self.model_dump(mode="json", exclude={"kit"})
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


MANIFEST: Final = Format(
    Manifest,
    f"the {MANIFEST_FILE} of a kit",
    RequestError,
    remedy="Make the kit again with `nas kit table`, and run it on the device again.",
)
"""The file `kit.json`: `MANIFEST.read(path)`."""
