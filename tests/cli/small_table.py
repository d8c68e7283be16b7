"""A small table of one space, written record by record, and commands on a device of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nas.latency import Correction, LatencyTable
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.small_table import correction

STEM = "conv2d 3x8x8 -> 8x8x8 k3 s1 p1 g1 bias relu"  # 8 * 64 * 27 MACs
HEAD = "linear 8x1x1 -> 10x1x1 bias"
POOL = "global_pool 8x8x8 -> 8x1x1"

SPACE = """
from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    "small",
    (Stage("stem", "conv", 8, per_stage={"kernel": 3}), Stage("head", "linear_classifier")),
    image_size=8,
    classes=10,
)
"""
"""A file of a space with one network, which has these three kernels."""


def write_table(path: Path, *records: Record | Correction) -> LatencyTable:
    """Write a table of the fake device with these records, and open it."""
    table = LatencyTable.open_or_create(path, FakeRuntime())
    with table.writing():
        for record in records:
            table.append(record)
    return table


def kernel(text: str, us: float, spread: float = 0.0, basis: str = "measured") -> Record:
    """Return the record of a kernel with three samples, the outer ones `spread` from the median."""
    samples = (us, us * (1 - spread), us * (1 + spread))
    return Record.from_timings("kernel", [Timing(samples)], name=text, basis=basis)


def dispatch(parts: Iterable[str] = TvmRuntime.capabilities.dispatch_parts) -> list[Record]:
    """Return records of dispatch costs: a launch of 0.5 us, and an unstable start of 30 us."""
    samples = {"launch": (0.5,), "invocation": (20.0, 30.0, 40.0)}
    return [
        Record.from_timings("dispatch", [Timing(samples.get(part, (30.0,)))], name=part)
        for part in parts
    ]


def uncertain_table(path: Path) -> LatencyTable:
    """Return a table of all kernels of `SPACE`, one of them estimated and one unstable."""
    return write_table(
        path,
        *dispatch(),
        kernel(STEM, 3.0, basis="estimated: by a model"),
        kernel(POOL, 1.0, spread=0.5),
        kernel(HEAD, 2.0),
        correction(2.0, dispatch_factor=1.0, nets=20),
    )
