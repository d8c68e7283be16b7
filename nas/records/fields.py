"""Fields that the records of several files have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, get_args

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


class Cost(NamedTuple):
    """How a page shows a cost of a network: a count of its graph, or a `Figure`.

    Attributes:
        label: name with the unit.
        scale: number of these units in a unit of the column.
        is_maximised: whether more is better, so that its limit is the smallest value.
    """

    label: str
    scale: float = 1.0
    is_maximised: bool = False


COSTS = {
    "macs": Cost("MACs"),
    "params": Cost("parameters"),
    "peak_memory_bytes": Cost("peak memory, KiB", 1 / 1024),
    "sram_kib": Cost("SRAM, KiB"),
    "flash_kib": Cost("flash, KiB"),
    "dram_traffic_kib": Cost("DRAM traffic, KiB"),
    "flash_traffic_kib": Cost("flash traffic, KiB"),
    "mac_utilisation": Cost("MAC utilisation, %", 100.0, is_maximised=True),
}
"""The costs that a job can optimise or limit beside latency, by the name of their column."""

DEVICE_LATENCY = "predicted_us "
"""Beginning of the columns with the latencies on further devices, before the device's name."""

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
