from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError, TableDeviceError
from nas.graph import Graph
from nas.latency import (
    LatencyTable,
    TableCheck,
    build_table,
    calibrate_after_build,
    check_table,
)
from nas.latency import space_kernels as kernels_of
from nas.latency.cache_model import LAUNCH_MIB
from nas.latency.check import MIN_CALIBRATED, calibrated_networks
from nas.latency.check_result import CheckedNetwork
from nas.latency.processor_speed import slowdown
from nas.latency.record import Record
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeNetwork, FakeRuntime, device, latency_us
from tests.latency.small_table import calibration

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
PUBLISHED = nas.space.load_space("squeezenet", image_size=8, channels=1)


def row(predicted: float, *measured: float, reference: str | None = None) -> CheckedNetwork:
    timings = tuple(Timing((each,) * 10) for each in measured)
    return CheckedNetwork({"space": "s"}, predicted, timings, reference, uncorrected_us=predicted)


def test_check_to_json_has_the_documented_keys() -> None:
    check = TableCheck((row(96, 100, 103), row(208, 220, 200), row(320, 302, 300, reference="net")))
    document = check.to_json()
    assert document["nets"] == 3
    assert document["mape"] == pytest.approx((0.04 + 0.04 + 20 / 300) / 3)
    assert document["within_5_percent"] == pytest.approx(2 / 3)
    assert document["within_10_percent"] == 1
    assert document["kendall_tau"] == 1.0
    assert document["pairs_3_to_10"] is None
    assert document["retiming_spread"] == pytest.approx(0.03)
    assert document["target_mape"] == pytest.approx(0.06)
    assert document["target_met"] is True
    assert (document["random"]["nets"], document["references"]["nets"]) == (2, 1)
    assert document["uncorrected"] is None
    assert [each["name"] for each in document["rows"]] == ["random", "random", "net"]
    first, second, _ = document["rows"]
    assert first["architecture"] == {"space": "s"}
    assert (first["predicted_us"], first["measured_us"]) == (96, 100)
    assert (second["measured_us"], second["timings_us"]) == (200, [220, 200])
    assert second["samples_us"] == [200] * 10


def test_target_is_two_percent_on_steady_machine() -> None:
    check = TableCheck((row(98.5, 100, 100.1),))
    assert check.target_mape == 0.02
    assert check.to_json()["target_met"] is True
    assert check.to_json()["references"] is None


def test_check_counts_networks_with_uncertain_latencies() -> None:
    sure = row(96, 100)
    check = TableCheck(
        (
            sure,
            replace(sure, unstable_launches=3),
            replace(sure, unstable_launches=1, estimated_launches=2),
        )
    )
    document = check.to_json()
    assert document["nets_with_unstable_kernels"] == 2
    assert document["nets_with_estimated_kernels"] == 1
    assert [each["unstable_launches"] for each in document["rows"]] == [0, 3, 1]
    assert [each["estimated_launches"] for each in document["rows"]] == [0, 0, 2]


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def table(tmp_path: Path, runtime: FakeRuntime) -> LatencyTable:
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, [*kernels_of(SPACE, "tvm"), *kernels_of(PUBLISHED, "tvm")], runtime)
    return table


def test_check_draws_same_networks_from_same_seed(
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
    assert [each.predicted_us for each in first.networks] == [
        each.predicted_us for each in second.networks
    ]
    assert first.agreement == second.agreement
    half = len(steps) // 2
    assert steps[:half] == [(n, half) for n in range(1, half + 1)]
    for each in first.networks:
        graph = SPACE.from_json(each.architecture).graph
        own = sum(latency_us(kernel) for kernel in runtime.kernels(graph))
        assert each.measured_us == pytest.approx(1.1 * own, rel=1e-3)
        assert each.predicted_us == table.predict(graph).latency_us
    assert first.retiming_spread == 0
    assert first.retiming_tau == 1


def test_retiming_tau_compares_two_halves_of_the_timings() -> None:
    """The halves are every other timing of each network: 10, 30, 20 and 11, 12, 13."""
    timings = [(10, 11, 50, 60), (30, 12), (20, 13, 25)]
    rows = tuple(
        CheckedNetwork({}, 1.0, tuple(Timing((float(us),) * 3) for us in own)) for own in timings
    )
    result = TableCheck(rows)
    assert result.retiming_tau == pytest.approx(1 / 3)
    assert result.to_json()["retiming_tau"] == result.retiming_tau
    assert TableCheck(rows[:2]).retiming_tau is None
    once = tuple(replace(row, timings=row.timings[:1]) for row in rows)
    assert TableCheck(once).retiming_tau is None


def test_check_times_published_networks_and_never_draws_them(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    def check(references: bool) -> TableCheck:
        rng = np.random.default_rng(1)
        spaces = [SPACE, PUBLISHED]
        return check_table(table, spaces, runtime, nets=8, rng=rng, references=references)

    result = check(True)
    assert {r.name for r in result.references.networks} == {r.name for r in PUBLISHED.references}
    assert len(result.random.networks) == 8
    assert check(False).networks == result.random.networks
    published = {PUBLISHED.reference(r.name).digest for r in PUBLISHED.references}
    assert not published & {each.digest for each in result.random.networks}


def test_check_counts_uncertain_launches_of_each_network(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    kernel = runtime.kernels(SPACE.largest.graph)[0]
    wild = Record.from_timing("kernel", Timing((1.0, 5.0, 9.0)), name=kernel.text)
    with table.writing():
        table.append(replace(wild, basis="estimated: by a model"))
    result = check_table(table, [SPACE], runtime, nets=4, rng=np.random.default_rng(5))
    for each in result.networks:
        launches = runtime.kernels(SPACE.from_json(each.architecture).graph)
        assert each.unstable_launches == each.estimated_launches == launches.count(kernel)
    assert result.nets_with_unstable_kernels == result.nets_with_estimated_kernels > 0


def test_check_counts_disturbed_networks(
    table: LatencyTable, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> TableCheck:
        return check_table(table, [SPACE], runtime, nets=4, rng=np.random.default_rng(5))

    assert check().disturbed_nets == 0
    monkeypatch.setattr("nas.latency.processor_speed.slowdown", slowdown)
    monkeypatch.setattr("nas.latency.processor_speed.MAX_SPEED_CHANGE", 0.12)
    # No moment of this test is as fast.
    monkeypatch.setattr(LatencyTable, "quiet_us", 1e-3)
    monkeypatch.setattr("nas.latency.networks.MAX_TIMINGS", 4)
    document = check().to_json()
    assert document["disturbed_nets"] == 4
    assert all(len(row["references_us"]) == 4 for row in document["rows"])


def test_check_draws_no_network_twice(table: LatencyTable, runtime: FakeRuntime) -> None:
    rng = np.random.default_rng(0)
    result = check_table(table, [SPACE], runtime, nets=60, rng=rng)
    digests = [each.digest for each in result.networks]
    assert len(set(digests)) == len(digests) == min(60, SPACE.size)


def test_check_judges_calibration_by_held_out_networks(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    def check() -> TableCheck:
        return check_table(table, [SPACE], runtime, nets=6, rng=np.random.default_rng(5))

    before = check()
    assert before.uncorrected_agreement is None
    digests = [each.digest for each in before.networks]
    with table.writing():
        fitted = calibration(1.1, fitted_on=digests[:4])
        table.append(Record("calibration", calibration=fitted))
    result = check()
    assert len(result.networks) == 6
    assert set(digests[:4]).isdisjoint(each.digest for each in result.networks)
    uncorrected = result.uncorrected_agreement
    assert uncorrected is not None
    for each in result.networks:
        assert each.predicted_us == pytest.approx(1.1 * each.uncorrected_us)
    errors = [abs(each.uncorrected_us / each.measured_us - 1) for each in result.networks]
    assert uncorrected.mape == pytest.approx(np.mean(errors))
    assert result.to_json()["uncorrected"]["mape"] == pytest.approx(np.mean(errors), abs=1e-4)


def test_check_tells_busy_moment_from_wrong_table(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    def check(runtime: FakeRuntime, now: bool = True) -> TableCheck:
        rng = np.random.default_rng(5)
        return check_table(table, [SPACE], runtime, nets=6, rng=rng, retime_dispatch=now)

    same = check(runtime)
    assert same.retimed_dispatch_agreement == same.agreement
    assert check(runtime, now=False).retimed_dispatch_agreement is None
    slower = check(replace(runtime, dispatch_us=dict.fromkeys(LAUNCH_MIB, 1.5)))
    for before, after in zip(same.networks, slower.networks, strict=True):
        graph = SPACE.from_json(before.architecture).graph
        assert after.predicted_us == before.predicted_us
        assert after.retimed_dispatch_us == pytest.approx(
            before.predicted_us + len(runtime.kernels(graph))
        )
    assert slower.retimed_dispatch_agreement is not None
    assert (
        slower.to_json()["retimed_dispatch"]["mape"]
        == slower.retimed_dispatch_agreement.mape
        != slower.agreement.mape
    )


def test_networks_are_divided_by_how_much_longer_kernels_take_beside_them(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    """Kernels are a quarter slower than in the table; the fake networks are as fast as before."""

    def check(used: FakeRuntime) -> TableCheck:
        return check_table(table, [SPACE], used, nets=6, rng=np.random.default_rng(5))

    before = check(runtime)
    slowed = {kernel.text: (1.25,) * 100 for kernel in kernels_of(SPACE, "tvm")}
    after = check(FakeRuntime(slowed=slowed))
    assert after.kernels is not None
    assert after.kernels.median == pytest.approx(1.25, rel=1e-3)
    assert after.as_measured_agreement == before.as_measured_agreement == before.agreement
    for each, own in zip(before.networks, after.networks, strict=True):
        assert own.as_measured_us == each.measured_us
        assert own.measured_us == pytest.approx(each.measured_us / 1.25, rel=2e-3)
    assert after.to_json()["as_measured"] == before.agreement.to_json()
    assert TableCheck(before.networks).as_measured_agreement is None


@dataclass
class SlowNetworks(FakeRuntime):
    """A runtime whose networks take twice as long, and whose kernels do not."""

    def compile(
        self, graph: Graph, schedules: Any, weights: Any = None, batch: int = 1
    ) -> FakeNetwork:
        return FakeNetwork(2 * self.kernels(graph, batch), self.broken)


def test_networks_are_divided_by_how_much_longer_those_of_the_calibration_take(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    """As when another program fills a shared cache, which kernels that run alone do not notice."""

    def check(used: FakeRuntime, table: LatencyTable = table) -> TableCheck:
        return check_table(table, [SPACE], used, nets=6, rng=np.random.default_rng(5))

    assert check(SlowNetworks()).device_ratio == 1, "the table has no calibration"
    fitted = calibrate_after_build(table, [SPACE], runtime)
    assert fitted is not None
    before, after = check(runtime), check(SlowNetworks())
    assert before.device_ratio == pytest.approx(1, rel=1e-3)
    assert after.calibrated is not None
    assert after.kernels is not None
    assert (after.calibrated.count, after.kernels.median) == (len(fitted.networks), 1)
    assert after.device_ratio == after.calibrated.median == pytest.approx(2, rel=1e-3)
    assert after.to_json()["calibrated"]["median"] == after.device_ratio
    for each, own in zip(before.networks, after.networks, strict=True):
        assert own.as_measured_us == pytest.approx(2 * each.as_measured_us, rel=1e-3)
        assert own.measured_us == pytest.approx(each.measured_us, rel=2e-3)
    assert after.agreement.mape == pytest.approx(before.agreement.mape, abs=2e-3)
    assert after.as_measured_agreement is not None
    assert after.as_measured_agreement.bias == pytest.approx(-0.5, abs=0.02)
    reopened = LatencyTable.open(table.path, runtime=runtime)
    assert check(SlowNetworks(), reopened).device_ratio == after.device_ratio


def test_networks_of_the_calibration_are_as_fast_as_the_kernels_that_were_timed_since(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    calibrate_after_build(table, [SPACE], runtime)
    then, fields = calibrated_networks(table, [SPACE]), table.calibration()
    with table.writing():
        for record in table.records("kernel"):
            half = Timing((record.latency_us / 2,) * 10)
            table.append(Record.from_timing("kernel", half, name=record.name))
        for part, us in table.dispatch_us.items():
            table.append(Record.from_timing("dispatch", Timing((us / 2,)), name=part))
        # Other launch costs have cleared it.
        table.append(Record.from_calibration(fields, batch=1))
    for each, before in zip(calibrated_networks(table, [SPACE]), then, strict=True):
        assert each.architecture == before.architecture
        assert each.expected_us == pytest.approx(before.expected_us / 2, rel=1e-2)


def test_few_networks_of_a_calibration_do_not_tell_how_fast_the_device_is(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    calibrate_after_build(table, [SPACE], runtime)
    fields = table.calibration()
    for networks in (fields["networks"][: MIN_CALIBRATED - 1], ()):
        with table.writing():
            table.append(Record.from_calibration({**fields, "networks": networks}, batch=1))
        rng = np.random.default_rng(5)
        result = check_table(table, [SPACE], SlowNetworks(), nets=6, rng=rng)
        assert (result.calibrated, result.device_ratio) == (None, 1)
    assert calibrated_networks(table, [PUBLISHED]) == []


def test_check_refuses_table_of_another_device(table: LatencyTable) -> None:
    other = FakeRuntime(device(threads=2))
    with pytest.raises(TableDeviceError):
        check_table(table, [SPACE], other, nets=1, rng=np.random.default_rng(0))
    with pytest.raises(RequestError):
        check_table(table, [], other, nets=1, rng=np.random.default_rng(0))


def test_check_fails_if_network_cannot_be_timed(table: LatencyTable, runtime: FakeRuntime) -> None:
    broken = {kernel.text for kernel in runtime.kernels(PUBLISHED.largest.graph)}
    crashing = replace(runtime, broken=frozenset(broken))
    with pytest.raises(MeasurementError, match="could not be timed: RuntimeError: it crashed"):
        check_table(table, [PUBLISHED], crashing, nets=1, rng=np.random.default_rng(0))
