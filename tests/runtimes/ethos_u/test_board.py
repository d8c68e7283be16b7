"""An Ethos-U on a board that is this machine, whose delegate stands in for the vendor's.

The delegate takes Vela's operator and waits; a real NPU was not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError
from nas.graph import Graph
from nas.latency import (
    LatencyTable,
    build_table,
    check_table,
    measure_networks,
    open_runtime,
    space_kernels,
)
from nas.latency.correction import lacks_correction
from nas.latency.installed_runtimes import configured_runtime
from nas.latency.rounds import Policy
from nas.latency.runtime import Runtime
from nas.run import candidates
from nas.runtimes.ethos_u.runtime import EthosUOnBoard, EthosURuntime
from nas.space import SearchSpace
from tests.job.test_devices import run_on
from tests.runtimes.delegates import CONV_2D, VENDOR_OPERATOR, compile_delegate
from tests.transports.servers import loopback

pytest.importorskip("ethosu")

NPU = "ethos-u65-256"
RUN_US = 300


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_delegate(tmp_path_factory.mktemp("delegate"))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with loopback() as target:
        yield target


@pytest.fixture(scope="module")
def target(address: str, library: Path) -> str:
    options = f"{VENDOR_OPERATOR},microseconds={RUN_US}"
    return f"{address}&delegate={library}&delegate_options={options}&npu={NPU}"


@pytest.fixture
def runtime(target: str) -> Iterator[Runtime]:
    opened = open_runtime("ethos_u", target=target, dtype="int8")
    yield opened
    opened.release()


@pytest.fixture
def space() -> SearchSpace:
    return nas.space.load_space("mobilenet_tiny", image_size=16, classes=3)


@pytest.fixture
def graph(space: SearchSpace) -> Graph:
    return space.smallest.graph


def test_board_has_a_table_of_its_own(runtime: Runtime) -> None:
    estimated = EthosURuntime(target=NPU, dtype="int8")
    assert runtime.basis == estimated.basis
    assert (runtime.network_basis, estimated.network_basis) == ("measured", estimated.basis)
    assert estimated.has_constant_networks
    assert not runtime.has_constant_networks
    fingerprint = runtime.fingerprint
    assert fingerprint.target == f"device?npu={NPU}&delegate=libstandin_delegate.so"
    packages = {"ethos-u-vela", "ai-edge-litert", "libstandin_delegate.so"}
    assert set(fingerprint.versions) == packages
    assert fingerprint.recorded["memory_mode"] == "Dedicated_Sram_384KB"
    assert fingerprint.recorded["board"]["cores"]
    # A target without an address lists kernels and predicts.
    without = configured_runtime("ethos_u", target=fingerprint.target, dtype="int8")
    assert isinstance(without, EthosUOnBoard)
    assert without.basis == estimated.basis
    at = EthosUOnBoard.at_address(fingerprint.target, "ssh://root@imx93?delegate=/lib/x.so")
    assert at == f"ssh://root@imx93?npu={NPU}&delegate=/lib/x.so"


def test_networks_are_measured_on_the_board(runtime: Runtime, graph: Graph) -> None:
    network = runtime.compile(graph, {})
    facts = network._file.facts
    assert facts["operators"] == facts["delegated"] == {"ethos-u": 1}
    seconds = network.evaluate(2, 3)
    assert len(seconds) == 3
    assert min(seconds) > 1e-6 * RUN_US


@pytest.mark.slow
def test_check_compares_estimates_with_measurements(
    runtime: Runtime,
    space: SearchSpace,
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.latency.networks.Policy", partial(Policy, most=2))
    table = LatencyTable.open_or_create(tmp_path, runtime)
    assert build_table(table, space_kernels(space, runtime), runtime.timer).failed == 0
    opened = LatencyTable.open(table.path)
    prediction = opened.predict(graph)
    assert prediction.basis == runtime.basis
    # The board only waits, so its latencies are no network's.
    check = check_table(opened, [space], runtime, nets=2, rng=np.random.default_rng(0))
    assert check.basis == "measured"
    for row in check.networks:
        assert row.measured_us > RUN_US
        assert row.prediction.estimated_launches == row.prediction.launches
        assert len(row.latency.rounds) == 2
    assert lacks_correction(opened, [space])
    (alone,) = measure_networks([graph], EthosURuntime(target=NPU, dtype="int8"), {})
    assert len(alone.rounds) == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_job_measures_its_front_on_the_board(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    device = f'runtime = "ethos_u"\ndtype = "int8"\ntarget = "{target}"'
    out = run_on(tmp_path, device)
    rows = candidates.read(out / "trials.csv")
    assert (rows["measured_us"].dropna() > RUN_US).sum() == 3
    assert set(rows["basis"]) == {"measured"}
    predicted = rows.dropna(subset=["predicted_us"])
    assert (predicted["estimated_launches"] > 0).all()
    summary = json.loads((out / "run.json").read_text())["device"]["summary"]
    assert "predictions are estimated: vela" in summary


def test_delegate_of_another_device_is_named_by_the_error(
    address: str, library: Path, graph: Graph
) -> None:
    target = f"{address}&npu={NPU}&delegate={library}&delegate_options={CONV_2D}"
    runtime = open_runtime("ethos_u", target=target, dtype="int8")
    with pytest.raises(MeasurementError, match="unresolved custom op: ethos-u"):
        runtime.compile(graph, {})
    runtime.release()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ssh://board", "it has no npu"),
        (f"ssh://board?npu={NPU}", "it has no delegate"),
        ("ssh://board?npu=ethos-u99-1&delegate=x", "no target 'ethos-u99-1'"),
        (f"ssh://board?npu={NPU}:Sram_Of_Mars&delegate=x", "no memory mode 'Sram_Of_Mars'"),
        (f"ssh://board?npu={NPU}&delegate=x&cpu=a55", "it has 'cpu', and there are python"),
    ],
)
def test_wrong_targets_are_refused_without_a_connection(target: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_runtime("ethos_u", target=target, dtype="int8")
