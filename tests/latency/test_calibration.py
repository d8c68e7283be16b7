from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError
from nas.latency import LatencyTable, build_table, check_table, space_kernels
from nas.latency.calibration import calibrate_table, fit_calibration
from nas.latency.check import CheckedNetwork, TableCheck, fitted_networks
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)


def network(predicted: float, measured: float, reference: str | None = None) -> CheckedNetwork:
    digest = f"{predicted}"
    return CheckedNetwork({}, predicted, (Timing((measured,) * 3),), reference, digest)


def check_of(slope: float, offset: float) -> TableCheck:
    predicted = np.linspace(50, 900, 12)
    return TableCheck(tuple(network(float(p), float(slope * p + offset)) for p in predicted))


def test_fit_recovers_straight_line() -> None:
    calibration = fit_calibration(check_of(1.25, 10))
    assert calibration.slope == pytest.approx(1.25, rel=1e-3)
    assert calibration.offset_us == pytest.approx(10, rel=1e-2)
    assert calibration.mape_after < 1e-3 < calibration.mape_before
    assert calibration.apply(100) == pytest.approx(135, rel=1e-3)


def test_fit_keeps_corrected_latency_positive() -> None:
    calibration = fit_calibration(check_of(1.25, -20))
    assert calibration.offset_us == 0
    assert calibration.apply(1) > 0


def test_published_networks_judge_the_line_only() -> None:
    random = check_of(1.25, 10)
    published = [network(100, 200, "a"), network(300, 300, "b")]
    calibration = fit_calibration(TableCheck((*random.networks, *published)))
    alone = fit_calibration(random)
    assert (calibration.slope, calibration.offset_us, calibration.nets) == (
        alone.slope,
        alone.offset_us,
        12,
    )
    assert (calibration.mape_before, calibration.mape_after) == (
        alone.mape_before,
        alone.mape_after,
    )
    assert calibration.references == 2
    assert calibration.references_mape_before == pytest.approx((0.5 + 0) / 2)
    assert calibration.references_mape_after == pytest.approx((65 / 200 + 85 / 300) / 2, rel=1e-3)
    assert calibration.fitted_on == tuple(row.digest for row in random.networks)
    assert (alone.references, alone.references_mape_after) == (0, None)


def test_outlier_is_judged_by_fit_without_it() -> None:
    rows = list(check_of(1, 0).networks)
    rows[0] = network(50, 100)
    calibration = fit_calibration(TableCheck(tuple(rows)))
    # The other eleven are on the line, so the prediction of the outlier is off by half.
    assert calibration.mape_after >= 0.5 / 12


def test_fit_refuses_too_few_networks() -> None:
    with pytest.raises(RequestError, match="at least 8"):
        fit_calibration(TableCheck(check_of(1, 1).networks[:7]))


def test_fit_refuses_inverse_order() -> None:
    rows = [network(10.0 * n, 1000.0 - 90 * n) for n in range(1, 11)]
    with pytest.raises(MeasurementError, match="no line fits"):
        fit_calibration(TableCheck(tuple(rows)))


def test_calibration_leaves_prediction_unchanged(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, space_kernels(SPACE, "tvm"), runtime)
    graph = SPACE.largest.graph
    before = table.predict(graph)
    check = check_table(table, [SPACE], runtime, nets=10, rng=np.random.default_rng(0))
    first = calibrate_table(table, check)
    second = calibrate_table(table, check)
    assert first == second
    again = LatencyTable.open(table.path).predict(graph)
    assert again.latency_us == before.latency_us
    assert again.calibrated_us == pytest.approx(first.apply(before.latency_us))
    assert sum(line.count('"calibration"') for line in table.path.read_text().splitlines()) == 2


def test_calibration_is_per_batch_size(tmp_path: Path) -> None:
    runtime, rng = FakeRuntime(), np.random.default_rng(0)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    for batch in (1, 4):
        build_table(table, space_kernels(SPACE, "tvm", batch=batch), runtime)
    graph = SPACE.largest.graph
    check = check_table(table, [SPACE], runtime, nets=10, rng=rng, batch=4)
    assert check.to_json()["batch"] == 4
    four = calibrate_table(table, check)
    assert four.batch == 4
    assert table.predict(graph).calibrated_us is None, "one image is not what it was fitted on"
    assert fitted_networks(table) is None
    assert set(fitted_networks(table, 4) or ()) == set(four.fitted_on)
    one = calibrate_table(table, check_table(table, [SPACE], runtime, nets=10, rng=rng))
    again = LatencyTable.open(table.path)
    for batch, own in ((1, one), (4, four)):
        prediction = again.predict(graph, batch)
        assert prediction.calibrated_us == pytest.approx(own.apply(prediction.latency_us))
