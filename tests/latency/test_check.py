from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError, TableDeviceError
from nas.latency import Check, LatencyTable, build_table, check_table
from nas.latency import space_kernels as kernels_of
from nas.latency.check import CheckedNetwork, fitted_networks
from nas.latency.record import Record
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime, device, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
PUBLISHED = nas.space.load_space("squeezenet", image_size=8, channels=1)


def row(predicted: float, *measured: float, reference: str | None = None) -> CheckedNetwork:
    timings = tuple(Timing((each,) * 10) for each in measured)
    return CheckedNetwork({"space": "s"}, predicted, timings, reference)


def test_what_a_check_prints_as_json() -> None:
    check = Check((row(96, 100, 103), row(208, 220, 200), row(320, 302, 300, reference="net")))
    found = check.to_json()
    assert found["nets"] == 3
    assert found["mape"] == pytest.approx((0.04 + 0.04 + 20 / 300) / 3)
    assert found["within_5_percent"] == pytest.approx(2 / 3)
    assert found["within_10_percent"] == 1
    assert found["kendall_tau"] == 1.0
    assert found["pairs_3_to_10"] is None
    assert found["retiming_spread"] == pytest.approx(0.03)
    assert found["target_mape"] == pytest.approx(0.06)
    assert found["target_met"] is True
    assert (found["random"]["nets"], found["references"]["nets"]) == (2, 1)
    assert found["calibration"] is None
    assert [each["name"] for each in found["rows"]] == ["random", "random", "net"]
    first, second, _ = found["rows"]
    assert first["architecture"] == {"space": "s"}
    assert (first["predicted_us"], first["measured_us"]) == (96, 100)
    assert (second["measured_us"], second["timings_us"]) == (200, [220, 200])
    assert second["samples_us"] == [200] * 10


def test_a_steady_machine_gets_the_target_of_two_percent() -> None:
    check = Check((row(98.5, 100, 100.1),))
    assert check.target_mape == 0.02
    assert check.to_json()["target_met"] is True
    assert check.to_json()["references"] is None


def test_a_check_says_how_many_networks_rest_on_uncertain_latencies() -> None:
    sure = row(96, 100)
    check = Check((sure, replace(sure, unstable=3), replace(sure, unstable=1, estimated=2)))
    found = check.to_json()
    assert found["nets_with_unstable_kernels"] == 2
    assert found["nets_with_estimated_kernels"] == 1
    assert [each["unstable_launches"] for each in found["rows"]] == [0, 3, 1]
    assert [each["estimated_launches"] for each in found["rows"]] == [0, 0, 2]


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def table(tmp_path: Path, runtime: FakeRuntime) -> LatencyTable:
    found = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(found, [*kernels_of(SPACE, "tvm"), *kernels_of(PUBLISHED, "tvm")], runtime)
    return found


def test_a_check_draws_the_same_networks_from_the_same_seed(
    table: LatencyTable, runtime: FakeRuntime
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
    half = len(steps) // 2
    assert steps[:half] == [(n, half) for n in range(1, half + 1)]
    for each in first.rows:
        graph = SPACE.from_json(each.architecture).graph
        own = sum(latency_us(kernel) for kernel in runtime.kernels(graph))
        assert each.measured_us == pytest.approx(1.1 * own, rel=1e-3)
        assert each.predicted_us == table.predict(graph).latency_us
    assert first.retiming_spread == 0
    assert first.retiming_tau == 1


def test_what_a_second_timing_would_say_of_the_order() -> None:
    """Every other timing of each network: 10, 30, 20 against 11, 12, 13."""
    timings = [(10, 11, 50, 60), (30, 12), (20, 13, 25)]
    rows = tuple(
        CheckedNetwork({}, 1.0, tuple(Timing((float(us),) * 3) for us in own)) for own in timings
    )
    found = Check(rows)
    assert found.retiming_tau == pytest.approx(1 / 3)
    assert found.to_json()["retiming_tau"] == found.retiming_tau
    assert Check(rows[:2]).retiming_tau is None
    once = tuple(replace(row, timings=row.timings[:1]) for row in rows)
    assert Check(once).retiming_tau is None


def test_published_networks_are_checked_and_never_drawn(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    def check(references: bool) -> Check:
        rng = np.random.default_rng(1)
        spaces = [SPACE, PUBLISHED]
        return check_table(table, spaces, runtime, nets=8, rng=rng, references=references)

    found = check(True)
    assert {r.name for r in found.references.rows} == {r.name for r in PUBLISHED.references}
    assert len(found.random.rows) == 8
    assert check(False).rows == found.random.rows
    published = {PUBLISHED.reference(r.name).digest for r in PUBLISHED.references}
    assert not published & {each.digest for each in found.random.rows}


def test_networks_with_uncertain_kernels_are_counted(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    kernel = runtime.kernels(SPACE.largest.graph)[0]
    wild = Record.of_timing("kernel", Timing((1.0, 5.0, 9.0)), name=kernel.text)
    with table.writing():
        table.append(replace(wild, basis="estimated: by a model"))
    found = check_table(table, [SPACE], runtime, nets=4, rng=np.random.default_rng(5))
    for each in found.rows:
        launches = runtime.kernels(SPACE.from_json(each.architecture).graph)
        assert each.unstable == each.estimated == launches.count(kernel)
    assert found.with_unstable == found.with_estimated > 0


def test_no_network_is_checked_twice(table: LatencyTable, runtime: FakeRuntime) -> None:
    rng = np.random.default_rng(0)
    found = check_table(table, [SPACE], runtime, nets=60, rng=rng)
    digests = [each.digest for each in found.rows]
    assert len(set(digests)) == len(digests) == min(60, SPACE.size)


def test_a_calibration_is_judged_by_networks_that_it_was_not_fitted_on(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    def check() -> Check:
        return check_table(table, [SPACE], runtime, nets=6, rng=np.random.default_rng(5))

    assert fitted_networks(table) is None
    assert check().corrected is None
    digests = [each.digest for each in check().rows]
    correction = {"slope": 1.1, "offset_us": 0.0, "fitted_on": digests[:4]}
    with table.writing():
        table.append(Record("calibration", calibration=correction))
    found = check()
    assert [each.corrected_us is None for each in found.rows] == [True] * 4 + [False] * 2
    assert found.corrected is not None
    without, with_it = found.corrected
    assert without.nets == with_it.nets == 2
    judged = found.rows[4:]
    expected = np.mean([abs(1.1 * r.predicted_us / r.measured_us - 1) for r in judged])
    assert with_it.mape == pytest.approx(expected)
    assert without.mape == pytest.approx(np.mean([abs(r.relative_error) for r in judged]))
    with table.writing():
        table.append(Record("calibration", calibration={**correction, "fitted_on": digests}))
    assert check().corrected is None


def test_a_busier_moment_is_told_from_a_wrong_table(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    def check(runtime: FakeRuntime, now: bool = True) -> Check:
        rng = np.random.default_rng(5)
        return check_table(table, [SPACE], runtime, nets=6, rng=rng, now=now)

    same = check(runtime)
    assert same.now == same.agreement
    assert check(runtime, now=False).now is None
    slower = check(replace(runtime, dispatch_us={"launch": 1.5, "launch_2mib": 1.5}))
    for before, after in zip(same.rows, slower.rows, strict=True):
        graph = SPACE.from_json(before.architecture).graph
        assert after.predicted_us == before.predicted_us
        assert after.now_us == pytest.approx(before.predicted_us + len(runtime.kernels(graph)))
    assert slower.now is not None
    assert slower.to_json()["now"]["mape"] == slower.now.mape != slower.agreement.mape


def test_a_check_needs_this_devices_table(table: LatencyTable) -> None:
    other = FakeRuntime(device(threads=2))
    with pytest.raises(TableDeviceError):
        check_table(table, [SPACE], other, nets=1, rng=np.random.default_rng(0))
    with pytest.raises(RequestError):
        check_table(table, [], other, nets=1, rng=np.random.default_rng(0))


def test_a_network_that_cannot_be_timed_fails_the_check(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    broken = {kernel.text for kernel in runtime.kernels(PUBLISHED.largest.graph)}
    crashing = replace(runtime, broken=frozenset(broken))
    with pytest.raises(MeasurementError, match="could not be timed: RuntimeError: it crashed"):
        check_table(table, [PUBLISHED], crashing, nets=1, rng=np.random.default_rng(0))
