from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError
from nas.latency import LatencyTable, build_table, check_table, space_kernels
from nas.latency.calibration import calibrate, fit
from nas.latency.check import Check, CheckedNetwork, fitted_networks
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)


def network(predicted: float, measured: float, reference: str | None = None) -> CheckedNetwork:
    digest = f"{predicted}"
    return CheckedNetwork({}, predicted, (Timing((measured,) * 3),), reference, digest)


def check_of(slope: float, offset: float) -> Check:
    predicted = np.linspace(50, 900, 12)
    return Check(tuple(network(float(p), float(slope * p + offset)) for p in predicted))


def test_a_straight_line_is_found_again() -> None:
    found = fit(check_of(1.25, 10))
    assert found.slope == pytest.approx(1.25, rel=1e-3)
    assert found.offset_us == pytest.approx(10, rel=1e-2)
    assert found.mape_after < 1e-3 < found.mape_before
    assert found.apply(100) == pytest.approx(135, rel=1e-3)


def test_no_network_is_ever_corrected_to_nothing() -> None:
    found = fit(check_of(1.25, -20))
    assert found.offset_us == 0
    assert found.apply(1) > 0


def test_published_networks_judge_the_line_and_are_in_no_fit() -> None:
    random = check_of(1.25, 10)
    published = [network(100, 200, "a"), network(300, 300, "b")]
    found = fit(Check((*random.rows, *published)))
    alone = fit(random)
    assert (found.slope, found.offset_us, found.nets) == (alone.slope, alone.offset_us, 12)
    assert (found.mape_before, found.mape_after) == (alone.mape_before, alone.mape_after)
    assert found.references == 2
    assert found.references_mape_before == pytest.approx((0.5 + 0) / 2)
    assert found.references_mape_after == pytest.approx((65 / 200 + 85 / 300) / 2, rel=1e-3)
    assert found.fitted_on == tuple(row.digest for row in random.rows)
    assert (alone.references, alone.references_mape_after) == (0, None)


def test_an_outlier_is_not_in_the_fit_that_judges_it() -> None:
    rows = list(check_of(1, 0).rows)
    rows[0] = network(50, 100)
    found = fit(Check(tuple(rows)))
    # The eleven others are on the line, so the outlier is missed by half.
    assert found.mape_after >= 0.5 / 12


def test_a_few_networks_are_too_few() -> None:
    with pytest.raises(RequestError, match="at least 8"):
        fit(Check(check_of(1, 1).rows[:7]))


def test_no_line_is_fitted_where_the_order_is_the_wrong_way_round() -> None:
    rows = [network(10.0 * n, 1000.0 - 90 * n) for n in range(1, 11)]
    with pytest.raises(MeasurementError, match="no line fits"):
        fit(Check(tuple(rows)))


def test_a_calibration_stands_beside_the_prediction(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, space_kernels(SPACE, "tvm"), runtime)
    graph = SPACE.largest.graph
    before = table.predict(graph)
    check = check_table(table, [SPACE], runtime, nets=10, rng=np.random.default_rng(0))
    first = calibrate(table, check)
    second = calibrate(table, check)
    assert first == second
    again = LatencyTable.open(table.path).predict(graph)
    assert again.latency_us == before.latency_us
    assert again.calibrated_us == pytest.approx(first.apply(before.latency_us))
    assert sum(line.count('"calibration"') for line in table.path.read_text().splitlines()) == 2


def test_every_batch_size_has_a_line_of_its_own(tmp_path: Path) -> None:
    runtime, rng = FakeRuntime(), np.random.default_rng(0)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    for batch in (1, 4):
        build_table(table, space_kernels(SPACE, "tvm", batch=batch), runtime)
    graph = SPACE.largest.graph
    check = check_table(table, [SPACE], runtime, nets=10, rng=rng, batch=4)
    assert check.to_json()["batch"] == 4
    four = calibrate(table, check)
    assert four.batch == 4
    assert table.predict(graph).calibrated_us is None, "one image is not what it was fitted on"
    assert fitted_networks(table) is None
    assert set(fitted_networks(table, 4) or ()) == set(four.fitted_on)
    one = calibrate(table, check_table(table, [SPACE], runtime, nets=10, rng=rng))
    again = LatencyTable.open(table.path)
    for batch, own in ((1, one), (4, four)):
        found = again.predict(graph, batch)
        assert found.calibrated_us == pytest.approx(own.apply(found.latency_us))
