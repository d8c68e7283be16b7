from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from fake_runtime import FakeRuntime, device, latency_us

import nas.space
from nas.errors import MeasurementError, RequestError, TableDeviceError
from nas.latency import Check, LatencyTable, build_table, check_table, measure_networks
from nas.latency import space_kernels as kernels_of
from nas.latency.check import CheckedNetwork, kendall_tau
from nas.latency.timing import Timing

SPACE = nas.space.load("mobilenet_tiny").on(image_size=8, channels=1, classes=10)


def test_kendalls_tau_by_counting_pairs() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.permutation(9), rng.permutation(9)
        pairs = list(itertools.combinations(range(9), 2))
        agree = sum(1 if (a[i] - a[j]) * (b[i] - b[j]) > 0 else -1 for i, j in pairs)
        assert kendall_tau(list(a), list(b)) == pytest.approx(agree / len(pairs))


def test_kendalls_tau_with_ties() -> None:
    # One pair tied in the first: (2 concordant - 0) / sqrt(2 * 3).
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)
    assert kendall_tau([1, 1], [1, 2]) is None
    assert kendall_tau([1], [1]) is None


def row(predicted: float, measured: float) -> CheckedNetwork:
    return CheckedNetwork({"space": "s"}, predicted, Timing((measured,) * 10))


def test_the_figures_of_a_check() -> None:
    check = Check((row(96, 100), row(208, 200), row(327, 300), row(600, 400)))
    found = check.to_json()
    assert found["nets"] == 4
    assert found["mape"] == pytest.approx((0.04 + 0.04 + 0.09 + 0.5) / 4)
    assert found["within_5_percent"] == 0.5
    assert found["within_10_percent"] == 0.75
    assert found["kendall_tau"] == 1.0
    assert found["rows"][0]["architecture"] == {"space": "s"}
    assert found["rows"][0]["predicted_us"] == 96
    assert found["rows"][0]["measured_us"] == 100
    assert check.bias == pytest.approx((-0.04 + 0.04 + 0.09 + 0.5) / 4)
    assert "predicted 600 us, measured 400 us" in check.summary()


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def table(tmp_path: Path, runtime: FakeRuntime) -> LatencyTable:
    found = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(found, kernels_of(SPACE, "tvm"), runtime)
    return found


def test_a_check_draws_the_same_networks_from_the_same_seed(
    table: LatencyTable, runtime: FakeRuntime, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    first, second = (
        check_table(
            table,
            [SPACE],
            runtime,
            nets=6,
            rng=np.random.default_rng(5),
            progress=lambda done, total: steps.append((done, total)),
        )
        for _ in range(2)
    )
    assert first.to_json() == second.to_json()
    assert steps[: len(steps) // 2] == [(n, 36) for n in range(1, 37)]
    for each in first.rows:
        graph = SPACE.lower(SPACE.from_json(each.architecture))
        own = sum(latency_us(kernel) for kernel in runtime.kernels(graph))
        assert each.measured_us == pytest.approx(1.1 * own, rel=1e-3)
        assert each.predicted_us == table.predict(graph).latency_us
    first.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 1000


def test_a_check_needs_this_devices_table(table: LatencyTable) -> None:
    other = FakeRuntime(device(threads=2))
    with pytest.raises(TableDeviceError):
        check_table(table, [SPACE], other, nets=1, rng=np.random.default_rng(0))
    with pytest.raises(RequestError):
        check_table(table, [], other, nets=1, rng=np.random.default_rng(0))


def test_a_network_that_fails_has_its_error_and_the_others_their_timing() -> None:
    graphs = [SPACE.lower(SPACE.smallest), SPACE.lower(SPACE.largest)]
    runtime = FakeRuntime()
    only_large = set(runtime.kernels(graphs[1])) - set(runtime.kernels(graphs[0]))
    runtime.broken = frozenset({next(iter(only_large)).text})
    small, large = measure_networks(graphs, runtime, {})
    assert small.timing is not None
    assert len(small.timing.samples_us) == 10
    assert large.timing is None
    assert large.error == "RuntimeError: it crashed"
    with pytest.raises(MeasurementError, match="it crashed"):
        _ = large.measured_us
