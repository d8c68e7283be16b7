from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError
from nas.latency import LatencyTable, build_table, merge_tables, space_kernels
from nas.latency.calibration import (
    MIN_NETWORKS,
    calibrate_after_build,
    calibrate_table,
    calibration_summary,
    calibration_text,
    fit_calibration,
    lacks_calibration,
    spread_networks,
)
from nas.latency.check import check_networks
from nas.latency.check_result import CheckedNetwork, TableCheck
from nas.latency.comparison import Ratios
from nas.latency.correction import Correction
from nas.latency.processor_speed import slowdown
from nas.latency.record import Record
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.small_table import calibration

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
OTHER = nas.space.load_space("squeezenet_tiny", image_size=8, channels=1)


LAUNCH_US, INVOCATION_US = 0.5, 2.0
"""What the composition of the networks has for a launch and an inference."""


def network(
    predicted: float, measured: float, reference: str | None = None, launches: int = 10
) -> CheckedNetwork:
    return CheckedNetwork(
        {},
        predicted,
        (Timing((measured,) * 3),),
        reference,
        f"{predicted}",
        predicted,
        launches,
        predicted - LAUNCH_US * launches - INVOCATION_US,
    )


def check_of(slope: float, invocation_us: float) -> TableCheck:
    """Return networks on the line, whose launches do not follow from their latencies."""
    predicted = np.linspace(50, 900, 12)
    launches = [10 + 7 * (index % 5) for index in range(12)]
    return TableCheck(
        tuple(
            network(float(us), float(slope * us + invocation_us), launches=count)
            for us, count in zip(predicted, launches, strict=True)
        )
    )


@pytest.mark.parametrize("invocation_us", [4.0, -3.0])
def test_fit_recovers_factor_and_invocation(invocation_us: float) -> None:
    calibration = fit_calibration(check_of(1.25, invocation_us))
    assert calibration.slope == pytest.approx(1.25, rel=1e-3)
    assert calibration.invocation_us == pytest.approx(invocation_us, rel=1e-2)
    assert not calibration.replaces_launches
    assert calibration.mape_after < 1e-3 < calibration.mape_before
    assert calibration.used
    assert (calibration.from_us, calibration.to_us) == (50, 900)


def test_fit_replaces_costs_of_launches_that_were_measured_wrong() -> None:
    """A launch costs 0.8 us instead of 0.5, and an inference nothing."""
    rows = [
        network(
            row.predicted_us,
            1.1 * row.without_launches_us + 0.8 * row.launches + 0.01,
            launches=row.launches,
        )
        for row in check_of(1, 0).networks
    ]
    calibration = fit_calibration(TableCheck(tuple(rows)))
    assert calibration.replaces_launches
    assert calibration.slope == pytest.approx(1.1, rel=1e-3)
    assert calibration.launch_us == pytest.approx(0.8, rel=1e-2)
    assert calibration.invocation_us == pytest.approx(0.01, abs=0.02)
    text = calibration_text(dataclasses.asdict(calibration))
    assert "the sum of kernels + 0.8 us a launch" in text
    for row in rows:
        corrected_us = Correction.from_fields(dataclasses.asdict(calibration)).apply(
            row.uncorrected_us, row.without_launches_us, row.launches
        )
        assert corrected_us == pytest.approx(row.measured_us, rel=1e-3)


def test_fit_is_at_the_speed_of_the_table() -> None:
    """Everything took 5% longer while the networks were timed, the kernels as well."""
    check = check_of(1.25, 0)
    slower = [
        replace(
            network(row.predicted_us, 1.05 * row.measured_us, launches=row.launches),
            device_ratio=1.05,
        )
        for row in check.networks
    ]
    ratios = Ratios(16, median=1.05, low=1.04, high=1.06)
    calibration = fit_calibration(TableCheck(tuple(slower), kernels=ratios))
    assert calibration.slope == pytest.approx(1.25, rel=1e-3)
    assert calibration.kernels_ratio == 1.05


def test_further_parameters_are_fitted_only_if_other_networks_gain() -> None:
    noise = np.random.default_rng(0).normal(1, 0.01, 12)
    rows = [
        network(row.predicted_us, 1.25 * row.predicted_us * float(factor), launches=row.launches)
        for row, factor in zip(check_of(1.25, 0).networks, noise, strict=True)
    ]
    calibration = fit_calibration(TableCheck(tuple(rows)))
    assert (calibration.launch_us, calibration.invocation_us) == (0, 0)
    assert not calibration.replaces_launches
    assert calibration.slope == pytest.approx(1.25, rel=0.01)


def test_correction_that_does_not_help_is_not_used() -> None:
    noise = np.random.default_rng(1).normal(1, 0.02, 12)
    rows = [
        network(row.predicted_us, row.predicted_us * float(factor / noise.mean()))
        for row, factor in zip(check_of(1, 0).networks, noise, strict=True)
    ]
    calibration = fit_calibration(TableCheck(tuple(rows)))
    assert not calibration.used
    assert "not corrected" in calibration_text(dataclasses.asdict(calibration))
    published = [network(100, 100, "a"), network(300, 300, "b")]
    harmful = fit_calibration(TableCheck((*check_of(1.25, 0.4).networks, *published)))
    assert harmful.mape_after < harmful.mape_before
    assert not harmful.used, "published networks are predicted worse with it"


def test_published_networks_judge_the_correction_only() -> None:
    random = check_of(1.25, 4)
    published = [network(100, 200, "a"), network(300, 300, "b")]
    calibration = fit_calibration(TableCheck((*random.networks, *published)))
    alone = fit_calibration(random)
    assert replace(
        calibration,
        used=True,
        references=0,
        references_mape_before=None,
        references_mape_after=None,
    ) == replace(alone, used=True)
    assert calibration.references == 2
    assert calibration.references_mape_before == pytest.approx(0.5 / 2, rel=1e-3)
    assert calibration.references_mape_after == pytest.approx((71 / 200 + 79 / 300) / 2, rel=1e-3)
    assert calibration.fitted_on == tuple(row.digest for row in random.networks)
    assert (alone.references, alone.references_mape_after) == (0, None)


def test_expected_error_is_that_of_other_networks() -> None:
    """The launches that an inference costs are drawn, and so is the noise of each network."""
    rng = np.random.default_rng(0)

    def networks(count: int) -> TableCheck:
        rows = []
        for us in np.geomspace(20, 200, count):
            launches = int(rng.integers(5, 60))
            kernels_us = float(us) - LAUNCH_US * launches / 10 - INVOCATION_US
            measured_us = (kernels_us + launches + 20) * rng.normal(1, 0.02)
            row = network(float(us), float(measured_us), launches=launches)
            rows.append(replace(row, without_launches_us=kernels_us))
        return TableCheck(tuple(rows))

    estimated, actual = [], []
    others = networks(200).networks
    for _ in range(30):
        calibration = fit_calibration(networks(MIN_NETWORKS))
        assert calibration.replaces_launches
        correction = Correction.from_fields(dataclasses.asdict(calibration))
        errors = [
            correction.apply(row.uncorrected_us, row.without_launches_us, row.launches)
            / row.measured_us
            - 1
            for row in others
        ]
        estimated.append(calibration.mape_after)
        actual.append(np.mean(np.abs(errors)))
    assert np.mean(estimated) == pytest.approx(np.mean(actual), rel=0.15)


def test_fit_refuses_too_few_networks() -> None:
    with pytest.raises(RequestError, match="at least 8"):
        fit_calibration(TableCheck(check_of(1, 1).networks[:7]))


def test_fit_refuses_inverse_order() -> None:
    rows = [network(10.0 * n, 2000.0 - 90 * n, launches=40 - n) for n in range(1, 11)]
    with pytest.raises(MeasurementError, match="no line fits"):
        fit_calibration(TableCheck(tuple(rows)))


def test_correction_reaches_a_little_beyond_the_networks_of_its_fit() -> None:
    correction = Correction(1.25, -0.5, from_us=60, to_us=900)
    assert correction.apply(100, 90, 10) == pytest.approx(120)
    assert correction.apply(41, 30, 10) == pytest.approx(1.25 * 41 - 5)
    assert correction.apply(39, 30, 10) == 39
    assert correction.apply(1300, 1200, 10) == pytest.approx(1620)
    assert correction.apply(1400, 1300, 10) == 1400
    assert correction.apply(100, 90, 250) == 100, "no latency is zero or below"


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    for batch in (1, 4):
        kernels = [k for each in (SPACE, OTHER) for k in space_kernels(each, "tvm", batch=batch)]
        build_table(table, kernels, runtime)
    return table


def timed(table: LatencyTable, seed: int, batch: int = 1) -> TableCheck:
    networks = spread_networks(table, [SPACE], 10, np.random.default_rng(seed), batch)
    return check_networks(table, networks, FakeRuntime(), batch=batch)


def test_calibration_corrects_predictions_and_keeps_the_composition(table: LatencyTable) -> None:
    graph = SPACE.largest.graph
    before = table.predict(graph)
    assert not before.is_corrected
    calibrate_table(table, timed(table, 0))
    # The second calibration is fitted on the composition, not on what the first one corrected.
    fitted = calibrate_table(table, timed(table, 0))
    assert fitted.used
    after = LatencyTable.open(table.path).predict(graph)
    assert after.uncorrected_us == before.latency_us
    correction = Correction.from_fields(dataclasses.asdict(fitted))
    without_us = table.predict(graph, dispatch_us=table.dispatch.without_launches.parts_us)
    corrected_us = correction.apply(before.latency_us, without_us.uncorrected_us, before.launches)
    assert after.latency_us == pytest.approx(corrected_us)
    assert after.is_corrected
    assert sum(line.count('"calibration"') for line in table.path.read_text().splitlines()) == 2


def test_table_predicts_with_costs_that_replace_launches(table: LatencyTable) -> None:
    graph = SPACE.largest.graph
    without_us = table.predict(graph, dispatch_us=table.dispatch.without_launches.parts_us)
    costs = {"launch_us": 1.0, "invocation_us": 3.0, "replaces_launches": True}
    table.use_calibration(calibration(2.0, **costs))
    predicted = table.predict(graph)
    assert without_us.uncorrected_us < predicted.uncorrected_us
    expected_us = 2 * without_us.uncorrected_us + predicted.launches + 3
    assert predicted.latency_us == pytest.approx(expected_us)


def test_calibration_is_per_batch_size(table: LatencyTable) -> None:
    graph = SPACE.largest.graph
    check = timed(table, 0, batch=4)
    assert check.to_json()["batch"] == 4
    four = calibrate_table(table, check)
    assert four.batch == 4
    assert not table.predict(graph).is_corrected, "one image is not what it was fitted on"
    assert table.calibration() == {}
    assert set(table.calibration(4)["fitted_on"]) == set(four.fitted_on)
    calibrate_table(table, timed(table, 0))
    again = LatencyTable.open(table.path)
    assert again.predict(graph).is_corrected
    assert again.predict(graph, 4).is_corrected


def test_few_networks_with_tensors_at_bad_addresses_do_not_change_the_fit() -> None:
    """The smallest, the largest and one more network take 5% to 12% longer than others would."""
    rows = list(check_of(1.02, 0).networks)
    for index, factor in ((0, 1.05), (5, 1.12), (11, 1.08)):
        row = rows[index]
        rows[index] = network(row.predicted_us, factor * row.measured_us, launches=row.launches)
    calibration = fit_calibration(TableCheck(tuple(rows)))
    assert calibration.slope == pytest.approx(1.02, rel=1e-3)
    assert calibration.invocation_us == 0


def test_drawn_networks_are_quantiles_of_the_latencies(table: LatencyTable) -> None:
    networks = spread_networks(table, [SPACE], 5, np.random.default_rng(0))
    us = [table.predict(network).latency_us for _, network in networks]
    assert us == sorted(us)
    rng = np.random.default_rng(1)
    others = [table.predict(SPACE.sample(rng, uniform_over="choices")) for _ in range(400)]
    between = np.searchsorted(us, [other.latency_us for other in others])
    shares = np.bincount(between, minlength=5)[1:5] / len(others)
    assert shares == pytest.approx([0.25] * 4, abs=0.1)


def test_networks_after_a_build_are_spread_over_all_spaces(table: LatencyTable) -> None:
    assert lacks_calibration(table, [SPACE, OTHER])
    calibration = calibrate_after_build(table, [SPACE, OTHER], FakeRuntime())
    assert calibration is not None
    assert calibration.nets == len(set(calibration.fitted_on)) == MIN_NETWORKS
    ends = [end for space in (SPACE, OTHER) for end in (space.smallest, space.largest)]
    by_latency = sorted(ends, key=lambda end: table.predict(end).uncorrected_us)
    assert {end.graph.digest for end in (by_latency[0], by_latency[-1])} <= {*calibration.fitted_on}
    chosen = spread_networks(table, [SPACE, OTHER], MIN_NETWORKS, np.random.default_rng(0))
    names = [architecture.space.name for _, architecture in chosen]
    assert min(names.count(space.name) for space in (SPACE, OTHER)) >= 2
    assert not lacks_calibration(table, [SPACE, OTHER])
    assert not lacks_calibration(table, [OTHER])
    assert lacks_calibration(table, [SPACE], batch=4)


def test_networks_of_a_space_keep_its_calibration_when_another_space_is_added(
    table: LatencyTable, tmp_path: Path
) -> None:
    """A table is often built for one space, and later for a further one."""
    for space, slope in ((SPACE, 1.5), (OTHER, 2.0)):
        with table.writing():
            assert lacks_calibration(table, [SPACE, space])
            fields = calibration(slope, spaces=[space.digest])
            table.append(Record.from_calibration(fields, batch=1))
        assert not lacks_calibration(table, [SPACE, space])
    compact = merge_tables([table.path], tmp_path / "compact.jsonl")
    for each in (table, LatencyTable.open(compact.path)):
        for network, slope in (
            (SPACE.largest, 1.5),
            (OTHER.largest, 2.0),
            (SPACE.largest.graph, 2.0),
        ):
            prediction = each.predict(network)
            assert prediction.latency_us == pytest.approx(slope * prediction.uncorrected_us)
        assert each.calibration(space=SPACE.digest)["slope"] == 1.5
        assert [r.calibration["slope"] for r in each.calibrations() if r.calibration] == [1.5, 2.0]
    # A calibration of both spaces replaces those of each.
    calibrate_after_build(table, [SPACE, OTHER], FakeRuntime())
    assert len(table.calibrations()) == 1


def test_other_launch_costs_need_another_calibration(table: LatencyTable) -> None:
    """Miss curves are often timed again, and leave the calibration as it is."""
    with table.writing():
        fields = calibration(1.5, spaces=[SPACE.digest])
        table.append(Record.from_calibration(fields, batch=1))
        table.append(Record.from_timing("dispatch", Timing((9.0,)), name="weights_64mib"))
    assert not lacks_calibration(table, [SPACE])
    with table.writing():
        table.append(Record.from_timing("dispatch", Timing((3.0,)), name="invocation"))
    for each in (table, LatencyTable.open(table.path)):
        assert lacks_calibration(each, [SPACE])
        prediction = each.predict(SPACE.largest)
        assert prediction.latency_us == prediction.uncorrected_us


def test_failed_kernels_leave_predictions_uncorrected(tmp_path: Path) -> None:
    kernels = space_kernels(SPACE, "tvm")
    runtime = FakeRuntime(broken=frozenset(each.text for each in kernels))
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, kernels, runtime)
    assert calibrate_after_build(table, [SPACE], runtime) is None
    assert lacks_calibration(table, [SPACE])


def test_chosen_calibration_stays_whatever_is_recorded_later(table: LatencyTable) -> None:
    graph = SPACE.largest.graph
    calibrate_table(table, timed(table, 0))
    chosen, before = table.calibration(), table.predict(graph)
    run = LatencyTable.open(table.path)
    run.use_calibration(json.loads(json.dumps(chosen)))
    other = {**chosen, "slope": 2.0}
    with table.writing():
        table.append(Record("calibration", calibration=other))
    run.refresh()
    assert run.predict(graph) == before
    assert LatencyTable.open(table.path).predict(graph) != before
    uncorrected = LatencyTable.open(table.path)
    uncorrected.use_calibration({})
    assert not uncorrected.predict(graph).is_corrected


def test_slow_processor_calibrates_no_table(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.processor_speed.slowdown", slowdown)
    monkeypatch.setattr("nas.latency.processor_speed.MAX_SPEED_CHANGE", 0.12)
    # No moment of this test is as fast.
    monkeypatch.setattr(LatencyTable, "quiet_us", 1e-3)
    with pytest.raises(MeasurementError, match="slower than when the table was built"):
        calibrate_after_build(table, [SPACE], FakeRuntime())
    assert table.calibration() == {}


@pytest.mark.parametrize("used", [True, False])
def test_summary_says_in_words_whether_predictions_are_corrected(used):
    fitted = dataclasses.replace(
        fit_calibration(check_of(1.1, 3.0)), mape_before=0.05, mape_after=0.02, used=used
    )
    text = calibration_summary(fitted)
    assert "12 whole networks were timed" in text
    assert "mean error of 5.0%" in text
    assert ("all predictions are now corrected, and 2.0% is expected" in text) == used
    assert ("predictions stay as they are" in text) != used
