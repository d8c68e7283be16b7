"""A board that is this machine, behind a real TVM RPC server in a process of its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import nas.space
from nas.errors import BoardLostError, DeviceError, RequestError
from nas.graph import Graph
from nas.latency import device as this_machine
from nas.latency.kernel import Kernel
from nas.runtimes.tvm.rpc import connection
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.torch_network import Network, folded_weights
from tests.latency.networks import GRAPHS
from tests.runtimes.tvm.rpc.rpc_processes import Processes

CONV = Kernel.parse("conv2d 20x9x9 -> 48x9x9 k1 s1 p0 g1 bias relu")
ROTATED = Kernel.parse("conv2d 96x4x4 -> 96x4x4 k1 s1 p0 g1 bias relu")


@pytest.fixture
def runtime(server: str) -> Iterator[TvmRuntime]:
    found = TvmRuntime(target=server)
    yield found
    found.release()


def check(runtime: TvmRuntime, graph: Graph) -> None:
    """A network of a graph computes what torch computes."""
    network = Network(graph, torch.Generator().manual_seed(0)).eval()
    plans = {k: runtime.timer.templates.candidates(k)[0] for k in runtime.kernels(graph)}
    compiled = runtime.compile(graph, plans, folded_weights(network))
    assert compiled.launched == runtime.kernels(graph)
    image = np.random.default_rng(0).standard_normal(graph.input_shape).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None])[0].numpy()
    for _ in range(2):
        assert np.abs(compiled.run(image) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert all(seconds > 0 for seconds in compiled.evaluate(2, 3))


@pytest.mark.parametrize(
    "name", ["inverted_residual", "shuffle_unit", "fire", "classifier", "squeeze_excite"]
)
def test_blocks_compute_there_what_torch_computes_here(runtime: TvmRuntime, name: str) -> None:
    check(runtime, GRAPHS[name]())


def test_a_whole_network_there_computes_what_torch_computes_here(runtime: TvmRuntime) -> None:
    space = nas.space.load_space("mobilenet_tiny", image_size=16, classes=5)
    check(runtime, space.sample(np.random.default_rng(2), uniform_over="choices").graph)


@pytest.mark.parametrize("kernel", [CONV, ROTATED])
def test_kernels_are_timed_there(runtime: TvmRuntime, kernel: Kernel) -> None:
    schedule, timing = runtime.time_kernel(kernel)
    assert timing.latency_us > 0
    assert len(timing.samples_us) == 10
    assert runtime.retime_kernel(kernel, schedule).latency_us > 0


def test_a_board_says_what_it_is(runtime: TvmRuntime, code: str) -> None:
    """It is this machine, whose own fingerprint is known."""
    found = runtime.fingerprint
    assert (found.processor, found.features) == this_machine.processor()
    here = this_machine.recorded()
    assert found.recorded["cores"] == here["cores"]
    assert found.recorded["memory_bytes"] == pytest.approx(here["memory_bytes"], rel=0.05)
    assert found.recorded["board_tvm"] == found.versions["apache-tvm"]
    assert found.target == f"rpc?{code}"
    assert "127" not in found.slug


def test_a_released_board_is_free_for_others(
    server: str, code: str, runtime: TvmRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    runtime.time_kernel(CONV)
    other = TvmRuntime(target=server)
    with pytest.raises(BoardLostError, match="one session at a time"):
        _ = other.fingerprint
    runtime.release()
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 30)
    assert other.fingerprint.target == f"rpc?{code}"
    other.release()
    assert runtime.time_kernel(CONV)[1].latency_us > 0


def test_threads_are_the_boards(server: str) -> None:
    runtime = TvmRuntime(target=server, threads=2)
    try:
        check(runtime, GRAPHS["inverted_residual"]())
        assert runtime.fingerprint.threads == 2
    finally:
        runtime.release()


def test_a_server_that_dies_is_a_lost_board(processes: Processes, code: str) -> None:
    process = processes.start("server")
    runtime = TvmRuntime(target=f"rpc://{process.address}?{code}")
    runtime.time_kernel(CONV)
    process.kill()
    with pytest.raises(BoardLostError, match=rf"board {process.address} was lost"):
        runtime.time_kernel(CONV)
    with pytest.raises(BoardLostError, match="no TVM RPC server at"):
        runtime.time_kernel(CONV)


@pytest.mark.parametrize(("key", "what"), [("", "server"), ("/pi4", "tracker")])
def test_nothing_at_an_address_is_said_within_seconds(key: str, what: str, code: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(BoardLostError, match=f"no TVM RPC {what} at {address}") as caught:
        _ = TvmRuntime(target=f"rpc://{address}{key}?{code}").fingerprint
    assert caught.value.exit_status == 1
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("key", ["", "/pi4"])
def test_something_that_never_answers_is_given_up(
    key: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BoardLostError, match="does not answer|no TVM RPC tracker"):
            _ = TvmRuntime(target=f"rpc://{address}{key}?{code}").fingerprint


def test_a_tracker_without_such_boards_names_those_it_has(farm: tuple[str, list]) -> None:
    target = farm[0].replace("/pair?", "/pi4?")
    with pytest.raises(BoardLostError, match=r"has no board 'pi4', only: pair\.") as caught:
        _ = TvmRuntime(target=target).device_count
    assert "--key pi4" in caught.value.remedy
    assert TvmRuntime(target=farm[0]).device_count == 2
    assert TvmRuntime(target=farm[0] + "&boards=1").device_count == 1


def test_a_board_of_another_architecture_is_refused(server: str, code: str) -> None:
    other = "triple=aarch64-linux-gnu&cpu=cortex-a72"
    target = server.replace(code, other)
    with pytest.raises(DeviceError, match="cannot load what is compiled for aarch64") as caught:
        _ = TvmRuntime(target=target).fingerprint
    assert "Correct triple=" in caught.value.remedy


def test_settings_are_refused_before_anything_is_connected(code: str) -> None:
    with pytest.raises(RequestError, match="no dtype 'int3'"):
        TvmRuntime(target=f"rpc://127.0.0.1:1?{code}", dtype="int3").check_settings()
    with pytest.raises(RequestError, match="needs a host and a port"):
        TvmRuntime(target=f"rpc?{code}").check_settings()
