"""A small table of one space, written record by record."""

from pathlib import Path

from nas import jsonl
from nas.latency import LatencyTable
from nas.latency.device import Fingerprint
from nas.latency.header import new_header
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.space import SearchSpace, Stage

DEVICE = Fingerprint("Test CPU", ("fma",), "tvm", {"kernels": "1"}, "cpu", "float32", 1)
STEM = "conv2d 3x8x8 -> 8x8x8 k3 s1 p1 g1 bias relu"  # 8 * 64 * 27 MACs
HEAD = "linear 8x1x1 -> 10x1x1 bias"
POOL = "global_pool 8x8x8 -> 8x1x1"
SPACE = SearchSpace(
    "small",
    (Stage("stem", "conv", 8, per_stage={"kernel": 3}), Stage("head", "linear_classifier")),
    image_size=8,
    classes=10,
)


def write_table(path: Path, *records: Record) -> LatencyTable:
    """Write a table with these records, and open it."""
    jsonl.append(path, new_header(DEVICE))
    for record in records:
        jsonl.append(path, record.to_json())
    return LatencyTable.open(path)


def kernel_record(text: str, us: float, spread: float = 0.0) -> Record:
    """Return the record of a kernel with three samples, the outer ones `spread` from the median."""
    samples = (us, us * (1 - spread), us * (1 + spread))
    return Record.from_timing("kernel", Timing(samples), name=text)
