"""Fixtures of all tests of latency tables."""

from pathlib import Path

import pytest

from nas.latency import LatencyTable
from nas.latency.record import Record
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.small_table import GRAPH, timed


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def table(tmp_path: Path, runtime: FakeRuntime) -> LatencyTable:
    table = LatencyTable.open_or_create(tmp_path, runtime)
    with table.writing():
        for part, timing in runtime.time_dispatch().items():
            table.append(Record.from_timings("dispatch", [timing], name=part))
        for kernel in runtime.kernels(GRAPH):
            table.append(timed(kernel))
    return table
