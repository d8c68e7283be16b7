"""LiteRT on a board that is this machine, behind a server in another process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

import nas.space
from nas.errors import BoardLostError, DeviceError, MeasurementError, RequestError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, measure_networks, open_runtime
from nas.latency.rounds import Policy
from nas.latency.runtime import Runtime
from nas.machine import this_machine
from nas.runtimes.boards import tflite_board
from nas.runtimes.litert.runtime import LiteRt, LiteRtOnBoard
from tests.runtimes.board_servers import CONV_2D, board_server, compile_delegate
from tests.runtimes.tvm.rpc.rpc_processes import Processes

CONV = Kernel.parse("conv2d int8 16x8x8 -> 32x8x8 k1 s1 p0 g1 bias relu6")
POOLING = Kernel.parse("avg_pool int8 24x8x8 -> 24x4x4 k2 s2 p0 g1")
CHAIN = Kernel.parse("conv2d int8 32x8x8 -> 32x8x8 k3 s1 p1 g32 bias relu6")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Return the target of a board without a delegate."""
    with board_server() as process:
        yield f"rpc://{process.address}"


@pytest.fixture
def runtime(server: str) -> Iterator[Runtime]:
    opened = open_runtime("litert", target=server, dtype="int8")
    yield opened
    opened.release()


@pytest.fixture
def graph() -> Graph:
    return nas.space.load_space(
        "squeezenet_tiny", image_size=8, channels=1, classes=3
    ).smallest.graph


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take few samples, because the tests do not depend on good timings."""
    monkeypatch.setattr("nas.latency.timing.SAMPLES", 2)
    for module in ("build", "networks"):
        monkeypatch.setattr(f"nas.latency.{module}.Policy", partial(Policy, most=2))
    monkeypatch.setattr("nas.latency.repeated_kernels._DISPATCH_CALLS", 10)


def test_fingerprint_describes_the_board(runtime: Runtime) -> None:
    """The board is this machine, whose processor is known."""
    fingerprint = runtime.fingerprint
    assert (fingerprint.processor, fingerprint.features) == this_machine.processor()
    assert fingerprint.versions == LiteRt.availability().versions
    assert (fingerprint.target, fingerprint.dtype) == ("rpc", "int8")
    assert fingerprint.slug.endswith("-rpc.litert.int8.1t.jsonl")
    assert fingerprint.recorded["memory_bytes"] == this_machine.recorded_facts()["memory_bytes"]
    assert runtime.is_remote
    assert runtime.device_count == 1


@pytest.mark.slow
@pytest.mark.usefixtures("few_samples")
def test_table_of_a_board_predicts_its_networks(
    runtime: Runtime, graph: Graph, tmp_path: Path
) -> None:
    table = LatencyTable.open_or_create(tmp_path, runtime)
    assert build_table(table, runtime.kernels(graph), runtime.timer).failed == 0
    header = json.loads(table.path.read_text().splitlines()[0])
    assert header["target"] == "rpc"
    opened = LatencyTable.open(table.path)
    assert isinstance(opened.runtime, LiteRtOnBoard)
    assert {record.basis for record in opened.records("kernel")} == {"measured"}
    assert opened.predict(graph).latency_us > sum(opened.predict(graph).kernels_us)
    (measured,) = measure_networks([graph], runtime, table.schedules())
    assert measured.error is None
    assert measured.fastest_us > 0


def test_kernels_and_networks_are_timed_on_the_board(server: str, graph: Graph) -> None:
    runtime = open_runtime("litert", target=server, threads=2)
    try:
        kernel = runtime.kernels(graph)[1]
        schedule, timed = runtime.timer.time_kernel(kernel)
        assert set(schedule) == {"copies", "weights"}
        assert timed.latency_us > 0
        assert runtime.timer.retime_kernel(kernel, schedule).latency_us > 0
        assert len(runtime.compile(graph, {}, batch=2).evaluate(2, 3)) == 3
    finally:
        runtime.release()


def test_board_may_forget_a_file(runtime: Runtime, graph: Graph) -> None:
    network = runtime.compile(graph, {})
    runtime.release()  # The next session has another process.
    assert all(seconds > 0 for seconds in network.evaluate(2, 3))


@pytest.mark.slow
def test_delegate_of_the_board_is_in_fingerprint_and_rows(tmp_path: Path, graph: Graph) -> None:
    library = compile_delegate(tmp_path)
    options = (CONV_2D, "microseconds=200")
    with board_server(delegate=library, delegate_options=options) as process:
        runtime = open_runtime("litert", target=f"rpc://{process.address}", dtype="int8")
        fingerprint = runtime.fingerprint
        assert fingerprint.target == "rpc?delegate=libstandin_delegate.so"
        assert fingerprint.versions["libstandin_delegate.so"].endswith(" ".join(options))
        schedule, timed = runtime.timer.time_kernel(CONV)
        # One element of every copy's output is copied by another operator.
        copies = schedule["copies"]
        assert (schedule["delegated_operators"], schedule["operators"]) == (copies, 2 * copies)
        # LiteRT makes one part of all of them, which waits once.
        assert timed.latency_us * copies > 150
        schedule, timed = runtime.timer.time_kernel(CHAIN)
        assert schedule["delegated_operators"] == 0
        with pytest.raises(MeasurementError, match="no average pooling in int8"):
            runtime.timer.time_kernel(POOLING)
        assert min(runtime.compile(graph, {}).evaluate(1, 2)) > 200e-6
        runtime.release()
        # The table has no address; its target is opened with one.
        target = f"rpc://{process.address}"
        assert LiteRtOnBoard.at_address(fingerprint.target, target) == target


@pytest.mark.slow
def test_pooling_in_int8_is_timed_if_the_delegate_takes_it(tmp_path: Path) -> None:
    """XNNPACK has none; 1 is the code of average pooling in TensorFlow Lite's schema."""
    library = compile_delegate(tmp_path)
    with board_server(delegate=library, delegate_options=("takes=1",)) as process:
        runtime = open_runtime("litert", target=f"rpc://{process.address}", dtype="int8")
        schedule, timed = runtime.timer.time_kernel(POOLING)
        assert schedule["delegated_operators"] == schedule["copies"]
        assert timed.latency_us > 0
        runtime.release()


def test_pooling_in_int8_is_refused_without_a_delegate(runtime: Runtime) -> None:
    with pytest.raises(MeasurementError, match="no average pooling in int8"):
        runtime.timer.time_kernel(POOLING)


@pytest.mark.slow
def test_delegate_that_crashes_fails_kernels_but_not_the_board(tmp_path: Path) -> None:
    library = compile_delegate(tmp_path)
    with board_server(delegate=library, delegate_options=(CONV_2D, "does=crash")) as process:
        runtime = open_runtime("litert", target=f"rpc://{process.address}", dtype="int8")
        with pytest.raises(MeasurementError, match="ended by SIGABRT") as caught:
            runtime.timer.time_kernel(CONV)
        assert not isinstance(caught.value, BoardLostError)
        assert runtime.timer.time_kernel(CHAIN)[1].latency_us > 0
        runtime.release()


def test_board_that_does_not_answer_is_lost(
    runtime: Runtime, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = runtime.compile(graph, {})
    monkeypatch.setattr(tflite_board, "LIMIT_SECONDS", -60.0)
    monkeypatch.setattr("nas.runtimes.boards.connection.ANSWER_SECONDS", 60.0)
    with pytest.raises(BoardLostError, match="did not answer within 0 s"):
        network.evaluate(10_000, 1)


@pytest.mark.slow
def test_server_outlives_the_process_of_a_session(graph: Graph) -> None:
    with board_server() as process:
        runtime = open_runtime("litert", target=f"rpc://{process.address}", dtype="int8")
        network = runtime.compile(graph, {})
        server = psutil.Process(process.pid)
        (session,) = [each for each in server.children() if each.cmdline() == server.cmdline()]
        session.kill()
        with pytest.raises(BoardLostError):
            network.evaluate(1, 1)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert network.evaluate(1, 1)[0] > 0
                break
            except BoardLostError:
                assert time.monotonic() < deadline
                time.sleep(0.2)


@pytest.mark.slow
def test_other_rpc_servers_are_refused(request: pytest.FixtureRequest) -> None:
    processes = Processes()
    request.addfinalizer(processes.end)
    with pytest.raises(DeviceError, match="does not time TensorFlow Lite files"):
        open_runtime("litert", target=f"rpc://{processes.start('server').address}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "rpc"}, "needs a host and a port"),
        ({"target": "rpc://127.0.0.1:1?triple=aarch64-linux-gnu"}, "'triple' is none of boards"),
    ],
)
def test_wrong_settings_are_refused_without_a_connection(settings: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_runtime("litert", **settings)
