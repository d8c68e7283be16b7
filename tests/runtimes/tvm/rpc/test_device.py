"""Tests on a board that is this machine, behind a TVM RPC server in another process."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel
from nas.errors import BoardLostError, DeviceError, ExportError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, core_speed, timing
from nas.latency.record import Record
from nas.latency.rounds import Latency
from nas.latency.timing import SAMPLES, Timing
from nas.machine import this_machine
from nas.runtimes.boards import connection
from nas.runtimes.tvm.relax_network import RelaxNetwork
from nas.runtimes.tvm.rpc import board
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.deploy.formats.models import assert_computes_the_same, digits_images, digits_model
from tests.latency.example_graphs import GRAPHS
from tests.quick_timing import FullSpeed
from tests.runtimes.outputs import check_network, first_schedules
from tests.runtimes.tvm.rpc.rpc_processes import Processes

CONV = Kernel.parse("conv2d 20x9x9 -> 48x9x9 k1 s1 p0 g1 bias relu")


@pytest.fixture
def runtime(server: str) -> Iterator[TvmRuntime]:
    remote = TvmRuntime(target=server)
    yield remote
    remote.release()


@pytest.mark.slow
def test_networks_on_a_board_compute_what_torch_computes(runtime: TvmRuntime) -> None:
    space = nas.space.load_space("mobilenet_tiny", image_size=16, classes=5)
    network = space.sample(seed=2, uniform_over="choices").graph
    names = ("inverted_residual", "shuffle_unit", "fire", "classifier", "squeeze_excite")
    for graph in (*(GRAPHS[name]() for name in names), network):
        check_network(runtime, graph)
    compiled = runtime.compile(network, first_schedules(runtime, network))
    assert min(compiled.evaluate(2, 3)) > 0


def test_speed_is_read_on_the_board(processes: Processes, code: str) -> None:
    process = processes.start("server")
    runtime = TvmRuntime(target=f"rpc://{process.address}?{code}")

    def measure() -> Timing:
        with runtime.timing_context():
            return timing.measure(lambda calls, samples: [1e-3] * samples)

    assert measure().reading_us
    runtime.release()  # The next session loads the function anew.
    assert measure().reading_us
    process.kill()
    with pytest.raises(BoardLostError, match=rf"board {process.address} was lost"):
        measure()


def test_round_on_a_slowed_board_is_disturbed_in_a_later_session_too(
    runtime: TvmRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_speed, "SECONDS_BETWEEN_FIRST_READINGS", 0.0)
    monkeypatch.setattr(timing, "WAIT_SECONDS", 0.1)
    slowdown, attempts = 1.0, 0
    monkeypatch.setattr(board, "speed_reader", lambda *_: lambda: slowdown * 3e-5)

    def evaluate(calls: int, samples: int) -> list[float]:
        nonlocal attempts
        attempts += 1
        return [slowdown * 1e-3] * samples

    rounds = []
    for factor in (1.0, 1.5):
        slowdown, attempts = factor, 0
        with runtime.timing_context():
            rounds.append(timing.measure(evaluate))
        runtime.release()
    assert attempts > timing.MAX_ATTEMPTS_PER_SAMPLE * SAMPLES, "it has waited for full speed"
    assert [each.reading_us for each in rounds] == [30.0, 45.0]
    assert Latency(rounds, full_us=30.0).counted_us == [1000.0]
    assert Latency(rounds[1:], full_us=30.0).is_disturbed


@pytest.mark.slow
def test_kernels_are_timed_on_the_board(runtime: TvmRuntime) -> None:
    schedule, timed = runtime.timer.time_kernel(CONV)
    assert timed.latency_us > 0
    assert 1 <= len(timed.samples_us) <= SAMPLES
    assert timed.reading_us is not None
    assert timed.reading_us > 0
    assert timed.reading_us != 1e6 * FullSpeed().read(), "it was taken on the board, not here"
    assert runtime.timer.retime_kernel(CONV, schedule).latency_us > 0


@pytest.mark.slow
def test_library_for_a_board_is_linked_here_and_checked_there(
    runtime: TvmRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = digits_model("squeezenet_tiny")
    table = LatencyTable.open_or_create(tmp_path / "table.jsonl", runtime)
    with table.writing():
        for kernel, schedule in first_schedules(runtime, model.graph).items():
            record = Record.from_timings(
                "kernel", [Timing((1.0,))], name=kernel.text, schedule=schedule
            )
            table.append(record)
    parts = (model.architecture, model.network, model.preprocessing)
    model, tvm_format = TrainedModel(*parts, table, runtime), model_format("tvm")
    tvm_format.write(model, None, tmp_path / "model.so")
    # The board is this machine, which therefore runs the library, too.
    loaded = tvm_format.open(tmp_path / "model.so")
    assert_computes_the_same(loaded, model, digits_images(), tvm_format.tolerance)

    run = RelaxNetwork.run
    monkeypatch.setattr(RelaxNetwork, "run", lambda network, image: 1.1 * run(network, image))
    with pytest.raises(ExportError, match="The board computes logits that differ"):
        tvm_format.write(model, None, tmp_path / "model.so")


def test_fingerprint_describes_the_board(runtime: TvmRuntime, code: str) -> None:
    """The board is this machine, whose processor is known."""
    fingerprint = runtime.fingerprint
    assert (fingerprint.processor, fingerprint.features) == this_machine.processor()
    local = this_machine.recorded_facts()
    assert fingerprint.recorded["cores"] == local["cores"]
    assert fingerprint.recorded["memory_bytes"] == pytest.approx(local["memory_bytes"], rel=0.05)
    assert fingerprint.recorded["board_tvm"] == fingerprint.versions["apache-tvm"]
    assert fingerprint.target == f"rpc?{code}"
    assert "127" not in fingerprint.slug


@pytest.mark.slow
def test_released_board_is_free_for_others(
    server: str, code: str, runtime: TvmRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    runtime.timer.time_kernel(CONV)
    other = TvmRuntime(target=server)
    with pytest.raises(BoardLostError, match="one session at a time"):
        _ = other.fingerprint
    runtime.release()
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 30)
    assert other.fingerprint.target == f"rpc?{code}"
    other.release()
    assert runtime.timer.time_kernel(CONV)[1].latency_us > 0


def test_board_runs_kernels_on_its_own_threads(server: str) -> None:
    runtime = TvmRuntime(target=server, threads=2)
    try:
        check_network(runtime, GRAPHS["inverted_residual"]())
        assert runtime.fingerprint.threads == 2
    finally:
        runtime.release()


def test_killed_server_is_a_lost_board(processes: Processes, code: str) -> None:
    process = processes.start("server")
    runtime = TvmRuntime(target=f"rpc://{process.address}?{code}")
    runtime.timer.time_kernel(CONV)
    process.kill()
    with pytest.raises(BoardLostError, match=rf"board {process.address} was lost"):
        runtime.timer.time_kernel(CONV)
    with pytest.raises(BoardLostError, match="no TVM RPC server at"):
        runtime.timer.time_kernel(CONV)


def test_frozen_server_is_a_lost_board(
    processes: Processes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = processes.start("server")
    runtime = TvmRuntime(target=f"rpc://{process.address}?{code}")
    graph = GRAPHS["classifier"]()
    network = runtime.compile(graph, first_schedules(runtime, graph))
    assert min(network.evaluate(1, 2)) > 0
    process.freeze()
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 1.5)
    (descriptor,) = connection._sockets_to(process.port).values()
    with connection._copy(descriptor) as own:
        set_before = own.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    assert struct.unpack("ll", set_before) == (300, 0)
    connection._limit_silence(descriptor)
    lost = rf"board {process.address} was lost \(it said nothing for 1\.5 s\)"
    with pytest.raises(BoardLostError, match=lost), runtime.timing_context():
        network.evaluate(1, 2)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    # The session has ended: nothing waits for the board again, not even for what is deleted.
    with pytest.raises((BoardLostError, RuntimeError)):
        network.run(np.zeros(graph.input_shape, np.float32))
    with pytest.raises(BoardLostError, match="does not answer within"):
        runtime.compile(graph, first_schedules(runtime, graph))


@pytest.mark.parametrize(("key", "kind"), [("", "server"), ("/pi4", "tracker")])
def test_connecting_to_a_free_port_fails(key: str, kind: str, code: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(BoardLostError, match=f"no TVM RPC {kind} at {address}") as caught:
        _ = TvmRuntime(target=f"rpc://{address}{key}?{code}").fingerprint
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("key", ["", "/pi4"])
def test_connecting_to_a_silent_port_fails(
    key: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BoardLostError, match="does not answer|no TVM RPC tracker"):
            _ = TvmRuntime(target=f"rpc://{address}{key}?{code}").fingerprint


def test_tracker_without_the_key_lists_its_keys(farm: tuple[str, list]) -> None:
    target = farm[0].replace("/pair?", "/pi4?")
    with pytest.raises(BoardLostError, match=r"has no board 'pi4', only: pair\.") as caught:
        _ = TvmRuntime(target=target).device_count
    assert "--key pi4" in caught.value.remedy
    assert TvmRuntime(target=farm[0]).device_count == 2
    assert TvmRuntime(target=farm[0] + "&boards=1").device_count == 1


def test_board_of_another_architecture_is_refused(server: str, code: str) -> None:
    other = "triple=aarch64-linux-gnu&cpu=cortex-a72"
    target = server.replace(code, other)
    with pytest.raises(DeviceError, match="cannot load code for aarch64") as caught:
        _ = TvmRuntime(target=target).fingerprint
    assert "Correct triple=" in caught.value.remedy
