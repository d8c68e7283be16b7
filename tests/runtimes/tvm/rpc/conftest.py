"""A TVM RPC server, and a tracker with two boards, for the tests of this folder."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nas.errors import BoardLostError
from nas.runtimes.boards import connection
from nas.runtimes.tvm.rpc.address import parse
from nas.schedules.cpu.loops import this_processor
from tests.runtimes.tvm.rpc.rpc_processes import START_SECONDS, Process, Processes


@pytest.fixture(autouse=True)
def end_sessions(request: pytest.FixtureRequest) -> Iterator[None]:
    """End sessions with a board that are kept alive by errors that a test caught."""
    yield
    if "processes" in request.fixturenames:
        gc.collect()


@pytest.fixture(scope="session")
def code() -> str:
    """Return the settings of a target that name this machine's processor."""
    target = this_processor().attrs
    code = f"triple={target['mtriple']}&cpu={target['mcpu']}"
    # Without this feature, LLVM leaves out all others of AVX-512.
    return f"{code}&features=-avx512f" if "-avx512f" in target.get("mattr", ()) else code


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.end()


@pytest.fixture(scope="session")
def server(processes: Processes, code: str) -> str:
    """Return the target of one board."""
    return f"rpc://{processes.start('server').address}?{code}"


@pytest.fixture
def farm(processes: Processes, code: str) -> tuple[str, list[Process]]:
    """Return the target of a tracker with two boards, and the boards, which a test may kill."""
    tracker = processes.start("tracker")
    boards = [processes.start("board", str(tracker.port), "pair") for _ in range(2)]
    target = f"rpc://{tracker.address}/pair?{code}"
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(BoardLostError):
            if connection.count_boards(parse(target)) == 2:
                break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return target, boards
