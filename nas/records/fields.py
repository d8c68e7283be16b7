"""Fields that the records of several files have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, Field

from nas.documents import Document

SCHEMA: Final = 1
"""Version of the files' formats; a file of another version is refused."""


def _check_file_name(name: str) -> str:
    if name != Path(name).name or name in ("", ".", "..") or not name.isprintable():
        raise ValueError("it should be the name of a file, without its folder")
    return name


Name = Annotated[str, AfterValidator(_check_file_name), Field(max_length=200)]
"""The name of a space or a file. It cannot lead out of the run folder."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]
"""A digest in hexadecimal digits, or its beginning."""

NetworkDigest = Annotated[str, Field(pattern=r"^[g-z][0-9a-f]{3,63}$")]
"""The digest of a network's graph, or its beginning; see `nas.graph.DIGEST_LETTERS`."""

Seconds = Annotated[float, Field(ge=0)]

MEASURED = "measured"
"""Basis of a latency that was measured; the basis of another one starts with `estimated: `."""

Figure = Literal[
    "sram_kib", "flash_kib", "dram_traffic_kib", "flash_traffic_kib", "mac_utilisation"
]
"""A cost of a whole network that some runtimes know, see `Runtime.network_figures`."""

FIGURES: tuple[Figure, ...] = get_args(Figure)

MAX_DISPATCH_SHARE = 0.5
"""Share of launches and start in a latency above which its prediction is called rough.

Networks of three small spaces with 8 pixels were predicted within 7% above this share, 3.3% wrong
on average, and 1.3% wrong below it.
"""

ROUGH_PREDICTION = "launches are known less well than kernels: expect an error of up to 10%"
"""What is said of a prediction of which launches have more than `MAX_DISPATCH_SHARE`."""


def to_json(record: Document) -> str:
    """Return a record as the text of its file."""
    value = record.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
