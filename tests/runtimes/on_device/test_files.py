"""Runtimes of files on a device that is this machine, behind a real OpenSSH server."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

import nas.space
from nas.errors import BoardLostError, DeviceError, RequestError, TableDeviceError
from nas.graph import Graph
from nas.latency import LatencyTable, build_table, measure_networks, open_runtime, timing
from nas.latency.installed_runtimes import runtime_class
from nas.latency.rounds import Policy
from nas.latency.runtime import Runtime
from nas.latency.worker_process import timers_for
from nas.machine import this_machine
from nas.runtimes.on_device import client
from nas.transports.address import joined_targets
from tests.transports.servers import equal_servers, loopback


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with loopback() as target:
        yield target


@pytest.fixture(params=[("onnxruntime", "float32"), ("onnxruntime", "int8"), ("litert", "int8")])
def pair(target: str, request: pytest.FixtureRequest) -> Iterator[tuple[Runtime, Runtime]]:
    """Return a runtime there, and the same one here."""
    name, dtype = request.param
    there = open_runtime(name, target=target, dtype=dtype)
    yield there, open_runtime(name, dtype=dtype)
    there.release()


@pytest.fixture
def litert(target: str) -> Iterator[Runtime]:
    opened = open_runtime("litert", target=target)
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


def program_of(runtime: Runtime) -> psutil.Process:
    """Return the process of the program on the device, whose parent is a shell."""
    programs = [
        each
        for each in psutil.process_iter(["cmdline"])
        if (each.info["cmdline"] or [])[:2] == [sys.executable, "-c"]
        and "exec(sys" in each.info["cmdline"][2]
    ]
    return max(programs, key=psutil.Process.create_time)


def test_device_is_described_as_it_describes_itself(pair: tuple[Runtime, Runtime]) -> None:
    there, here = pair
    assert there.fingerprint.differences(here.fingerprint) == []
    assert (there.fingerprint.processor, there.fingerprint.features) == this_machine.processor()
    assert there.fingerprint.recorded["numpy"] == np.__version__
    assert there.reading == here.reading
    assert there.is_remote
    assert not here.is_remote


def test_kernels_and_outputs_are_those_of_this_machine(
    pair: tuple[Runtime, Runtime], graph: Graph
) -> None:
    there, here = pair
    assert there.kernels(graph) == here.kernels(graph)
    images = np.random.default_rng(0).standard_normal((4, *graph.input_shape)).astype(np.float32)
    for batch in (1, 4):
        one, other = (each.compile(graph, {}, batch=batch) for each in pair)
        image = images if batch > 1 else images[0]
        np.testing.assert_array_equal(one.run(image), other.run(image))


@pytest.mark.slow
@pytest.mark.usefixtures("few_samples")
def test_table_belongs_to_the_processor(
    pair: tuple[Runtime, Runtime], target: str, graph: Graph, tmp_path: Path
) -> None:
    there, here = pair
    table = LatencyTable.open_or_create(tmp_path, there)
    assert build_table(table, there.kernels(graph), there.timer).failed == 0
    header = json.loads(table.path.read_text().splitlines()[0])
    assert header["target"] == "cpu"
    assert "ssh" not in table.path.read_text()
    opened = LatencyTable.open(table.path, runtime=here)
    assert opened.predict(graph).latency_us > sum(opened.predict(graph).kernels_us)
    assert opened.full_us is not None
    assert opened.runtime.at_address("cpu", target) == target
    (measured,) = measure_networks([graph], there, table.schedules())
    assert measured.error is None
    assert measured.fastest_us > 0


def test_killed_program_is_started_again(litert: Runtime, graph: Graph) -> None:
    network = litert.compile(graph, {})
    program_of(litert).send_signal(signal.SIGKILL)
    assert network.evaluate(1, 1)[0] > 0


def test_program_ends_with_its_connection_whatever_it_does(litert: Runtime, graph: Graph) -> None:
    network = litert.compile(graph, {})
    program = program_of(litert)
    request = {"do": "time", "file": network._file._id, "calls": 10**9}
    litert.files._connected().write(json.dumps(request).encode() + b"\n")
    time.sleep(0.5)
    assert program.is_running()
    litert.files.close()
    program.wait(10)


def test_cut_connection_goes_on(litert: Runtime, graph: Graph) -> None:
    network = litert.compile(graph, {})
    os.kill(litert.files.transport._master.pid, signal.SIGKILL)
    assert network.evaluate(1, 1)[0] > 0


def test_device_that_is_gone_is_lost(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client, "RECONNECT_SECONDS", 0.1)
    monkeypatch.setattr(client, "RECONNECT_PAUSE_SECONDS", 0.1)
    with loopback() as target:
        runtime = open_runtime("litert", target=target)
        network = runtime.compile(graph, {})
    with pytest.raises(BoardLostError, match="does not answer"):
        network.evaluate(1, 1)
    runtime.release()


@pytest.mark.slow
@pytest.mark.usefixtures("few_samples")
def test_equal_devices_share_a_table_and_those_that_are_left_finish_it(
    graph: Graph,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setattr(client, "RECONNECT_SECONDS", 0.1)
    # Both programs share a core here.
    monkeypatch.setattr(timing, "WAIT_SECONDS", 0.0)
    with equal_servers(tmp_path_factory.mktemp("ssh"), monkeypatch) as servers:
        addresses = [f"{each.address}?python={sys.executable}" for each in servers]
        runtime = open_runtime("litert", target=joined_targets(addresses))
        assert [each.target for each in runtime.devices] == addresses
        table = LatencyTable.open_or_create(tmp_path, runtime)
        kernels = runtime.kernels(graph)

        def stop_one(done: int, total: int | None, text: str) -> None:
            if done == 2:
                servers[0].stop()

        with timers_for(runtime) as workers:
            assert len(workers) == 2
        timers = [each.timer for each in runtime.devices]
        built = build_table(table, kernels, timers, progress=stop_one)
        assert (built.failed, table.missing(kernels)) == (0, [])
        # The runtime itself goes on with what is left, too.
        assert runtime.compile(graph, {}).evaluate(1, 1)[0] > 0
        runtime.release()


def test_device_that_is_another_after_its_loss_is_refused(litert: Runtime, graph: Graph) -> None:
    network = litert.compile(graph, {})
    litert.files._first = {**litert.files._first, "numpy": "1.0"}
    litert.files.close()
    with pytest.raises(DeviceError, match="differs from what was used before"):
        network.evaluate(1, 1)


def test_files_that_the_device_dropped_are_loaded_again(litert: Runtime, graph: Graph) -> None:
    network = litert.compile(graph, {})
    litert.release()
    assert network.evaluate(1, 1)[0] > 0
    image = np.zeros(graph.input_shape, np.float32)
    litert.release()
    assert network.run(image).shape == (3,)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/no/such/python", "has no /no/such/python.*Install Python 3 there"),
        ("false", "exit status 1"),
        ("echo", "which is no answer"),
        ("yes", "cannot be used"),
    ],
)
def test_unusable_pythons_are_refused(target: str, python: str, message: str) -> None:
    address = target.partition("?")[0]
    with pytest.raises((RequestError, DeviceError), match=message):
        open_runtime("litert", target=f"{address}?python={python}")


def test_package_that_crashes_when_it_is_imported_is_named(target: str, tmp_path: Path) -> None:
    """As onnxruntime 1.21 does on a Raspberry Pi 4 (microsoft/onnxruntime#23957)."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -ILL $$\n")
    python.chmod(0o755)
    address = target.partition("?")[0]
    with pytest.raises(DeviceError, match="SIGILL.*import onnxruntime.*newer processor"):
        open_runtime("onnxruntime", target=f"{address}?python={python}")


def test_missing_package_is_named_with_its_command(target: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    python.chmod(0o755)
    address = target.partition("?")[0]
    with pytest.raises(RequestError, match=r"No module named.*pip install onnxruntime numpy"):
        open_runtime("onnxruntime", target=f"{address}?python={python}")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ssh://pi?triple=aarch64-linux-gnu", "triple"),
        ("ssh://pi?python=", "given once, with a value"),
        ("ssh://-oProxyCommand=x", "no name of a host"),
        ("ssh://a@b@c/d", "no name of|more than a user"),
        ("tcp://pi", "has no target"),
    ],
)
def test_wrong_targets_are_refused_without_a_connection(target: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_runtime("onnxruntime", target=target)


def test_table_of_another_processor_needs_its_address(tmp_path: Path, litert: Runtime) -> None:
    other = litert.fingerprint.model_copy(update={"processor": "aarch64 0x41-0xd08-0x0"})
    path = tmp_path / "table.jsonl"
    litert.fingerprint = other  # type: ignore[misc]
    LatencyTable.open_or_create(path, litert)
    with pytest.raises(TableDeviceError, match="another device"):
        LatencyTable.open(path, runtime=open_runtime("litert"))
    assert runtime_class("litert").at_address("cpu", "ssh://pi") == "ssh://pi"


@pytest.mark.qemu
@pytest.mark.skipif(
    "NAS_ARM64_BOARD" not in os.environ, reason="needs an arm64 board of .ci/arm64-board"
)
@pytest.mark.parametrize("name", ["onnxruntime", "litert"])
def test_python_of_an_emulated_arm_board_computes_and_times(
    name: str, target: str, graph: Graph
) -> None:
    address, board = target.partition("?")[0], Path(os.environ["NAS_ARM64_BOARD"])
    there = open_runtime(name, target=f"{address}?python={board / 'python'}", dtype="int8")
    image = np.random.default_rng(0).standard_normal(graph.input_shape).astype(np.float32)
    network = there.compile(graph, {})
    expected = open_runtime(name, dtype="int8").compile(graph, {}).run(image)
    np.testing.assert_allclose(network.run(image), expected, atol=0.1 * np.abs(expected).max())
    schedule, timed = there.timer.time_kernel(there.kernels(graph)[0])
    assert schedule["copies"] > 1
    assert timed.latency_us > 0
    there.release()
