"""The header of a latency table, its first line, and how it is checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nas.documents import Document, Format
from nas.errors import TableError
from nas.latency.device import Fingerprint
from nas.latency.record_rows import Object, Text
from nas.latency.timing import MAX_SPREAD, MEASURED, MOMENTS, SAMPLE_SECONDS, SAMPLES

SCHEMA = 2

HEADER_START = b'{"schema": 2, "record": "header", "processor": "'
"""How a header starts as it is written."""


def new_header(device: Fingerprint, basis: str = MEASURED) -> dict[str, Any]:
    """Return the first line of a new table; `basis` is that of its runtime."""
    measured = {
        "statistic": "median",
        "samples": SAMPLES,
        "moments": MOMENTS,
        "sample_seconds": SAMPLE_SECONDS,
        "largest_spread": MAX_SPREAD,
        "pinned": True,
    }
    timing = measured if basis == MEASURED else {"basis": basis}
    return {"schema": SCHEMA, "record": "header", **device.to_json(), "timing": timing}


class Header(Document):
    """The fields of `Fingerprint`, and how kernels were timed."""

    schema_number: Literal[2] = Field(alias="schema")
    record: Literal["header"]
    processor: Text
    features: tuple[Text, ...]
    runtime: Text
    versions: dict[Text, Text]
    target: Text
    dtype: Text
    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    recorded: Object
    timing: Object | None = None

    @property
    def device(self) -> Fingerprint:
        """The device that the table belongs to."""
        return Fingerprint(
            self.processor,
            self.features,
            self.runtime,
            self.versions,
            self.target,
            self.dtype,
            self.threads,
            self.recorded,
        )


HEADER_FORMAT = Format(
    Header,
    "the header of a latency table",
    TableError,
    remedy="If it is a latency table, build it again; otherwise name another file.",
)
