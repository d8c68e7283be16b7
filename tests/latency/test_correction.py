"""The correction of predictions, against closed forms and brute force."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError
from nas.latency import (
    Correction,
    LatencyTable,
    TableCheck,
    build_table,
    correct_after_build,
    correct_table,
    lacks_correction,
    merge_tables,
    space_kernels,
)
from nas.latency.check import check_networks
from nas.latency.correction import FITTED_NETWORKS, MIN_NETWORKS, fit_correction, spread_networks
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.statistics import mape
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.small_table import SPACE, checked, correction

OTHER = nas.space.load_space("squeezenet_tiny", image_size=8, channels=1)
PREDICTED = np.linspace(50, 900, 12)
DISPATCH = PREDICTED * np.random.default_rng(0).uniform(0.1, 0.5, len(PREDICTED))
"""What the predictions have beside kernels, in no fixed proportion."""


def check_of(
    measured_us: Callable[[float, float], float], predicted=PREDICTED, dispatch=DISPATCH
) -> TableCheck:
    """Return networks whose measured latencies follow from kernels and dispatch costs."""
    return TableCheck(
        tuple(
            checked(float(us), float(measured_us(us - beside, beside)), dispatch_us=float(beside))
            for us, beside in zip(predicted, dispatch, strict=True)
        )
    )


def least_by_brute_force(
    predicted: np.ndarray, dispatch: np.ndarray, measured: np.ndarray
) -> tuple[float, float]:
    """Return the factors of kernels and of dispatch costs with the least error.

    The best ones predict two of the networks exactly, or one of them with a limit of the factors:
    both equal, or none of the dispatch costs. So all of these can be tried.
    """
    kernels = predicted - dispatch
    tried = [(each, each) for each in measured / predicted]
    tried += [(each, 0.0) for each in measured / kernels]
    for pair in itertools.combinations(range(len(measured)), 2):
        at = list(pair)
        factors = np.linalg.solve(np.stack([kernels[at], dispatch[at]], 1), measured[at])
        if 0 <= factors[1] <= factors[0]:
            tried.append((factors[0], factors[1]))
    return min(tried, key=lambda each: mape(each[0] * kernels + each[1] * dispatch, measured))


@pytest.mark.parametrize("factors", [(1.08, 0.1), (1.25, 1.25), (0.9, 0.0)])
def test_fit_recovers_factors_of_kernels_and_dispatch_costs(factors: tuple[float, float]) -> None:
    own, beside = factors
    fitted = fit_correction(check_of(lambda k, d: own * k + beside * d), [SPACE])
    assert fitted.kernel_factor == pytest.approx(own, rel=1e-3)
    assert fitted.dispatch_factor == pytest.approx(beside, rel=1e-2, abs=1e-3)
    assert fitted.mape_after < 1e-3 < fitted.mape_before
    assert (fitted.nets, fitted.spaces, fitted.batch) == (12, (SPACE.digest,), 1)
    first = fitted.networks[0]
    assert (first.uncorrected_us, first.architecture) == (50, SPACE.smallest.to_json())
    assert first.measured_us == pytest.approx(
        own * (50 - DISPATCH[0]) + beside * DISPATCH[0], rel=1e-3
    )


@pytest.mark.parametrize("beside", [-1.0, 0.2, 0.9, 4.0])
def test_fit_has_the_least_absolute_relative_error(beside: float) -> None:
    rng = np.random.default_rng(0)
    check = check_of(lambda k, d: (1.1 * k + beside * d) * rng.normal(1, 0.05))
    measured = np.array([each.measured_us for each in check.networks])
    least = least_by_brute_force(PREDICTED, DISPATCH, measured)
    fitted = fit_correction(check)
    assert (fitted.kernel_factor, fitted.dispatch_factor) == pytest.approx(least, rel=1e-3)
    assert 0 <= fitted.dispatch_factor <= fitted.kernel_factor
    assert fitted.mape_before == pytest.approx(mape(PREDICTED, measured), rel=1e-3)


def test_correction_changes_nothing_that_it_would_not_predict_better() -> None:
    """Whether it does is cross-validated: networks are predicted by a fit on the others."""
    unchanged = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        check = check_of(lambda k, d, rng=rng: (k + d) * rng.normal(1.01, 0.03))
        measured = np.array([each.measured_us for each in check.networks])
        errors = []
        for left_out in range(1, len(measured) - 1):
            others = np.arange(len(measured)) != left_out
            own, beside = least_by_brute_force(
                PREDICTED[others], DISPATCH[others], measured[others]
            )
            us = own * (PREDICTED - DISPATCH)[left_out] + beside * DISPATCH[left_out]
            errors.append(abs(us / measured[left_out] - 1))
        fitted = fit_correction(check)
        is_plain = (fitted.kernel_factor, fitted.dispatch_factor) == (1, 1)
        assert is_plain == (np.mean(errors) >= mape(PREDICTED[1:-1], measured[1:-1]))
        unchanged += is_plain
    assert 0 < unchanged < 12


def test_few_networks_with_tensors_at_bad_addresses_do_not_change_the_fit() -> None:
    """Three networks take 5% to 12% longer than others would."""
    bad = {PREDICTED[1]: 1.05, PREDICTED[5]: 1.12, PREDICTED[10]: 1.08}
    fitted = fit_correction(check_of(lambda k, d: (1.02 * k + 0.5 * d) * bad.get(k + d, 1.0)))
    assert fitted.kernel_factor == pytest.approx(1.02, rel=1e-3)
    assert fitted.dispatch_factor == pytest.approx(0.5, rel=1e-3)


def test_expected_error_is_not_below_that_of_other_networks_nine_times_of_ten() -> None:
    rng = np.random.default_rng(0)

    def networks(count: int) -> TableCheck:
        predicted = np.geomspace(20, 200, count)
        dispatch = np.full(count, 10.0)
        return check_of(lambda k, d: (1.1 * k + 0.3 * d) * rng.normal(1, 0.02), predicted, dispatch)

    expected, actual = [], []
    others = networks(200).networks
    for _ in range(60):
        fitted = fit_correction(networks(MIN_NETWORKS))
        errors = [
            fitted.apply(each.predicted_us, sum(each.prediction.kernels_us)) / each.measured_us - 1
            for each in others
        ]
        expected.append(fitted.mape_after)
        actual.append(np.mean(np.abs(errors)))
    assert np.mean(np.array(expected) >= actual) >= 0.85
    assert np.mean(expected) <= 1.75 * np.mean(actual), "nothing is overstated"


def test_fit_refuses_few_networks_and_inverse_order() -> None:
    with pytest.raises(RequestError, match="at least 8 networks, not 7"):
        fit_correction(TableCheck(check_of(lambda k, d: k + d).networks[:7]))
    with pytest.raises(MeasurementError, match="no correction fits"):
        fit_correction(check_of(lambda k, d: 1000 - k - d))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path_factory.mktemp("table"), runtime)
    for batch in (1, 4):
        kernels = [k for each in (SPACE, OTHER) for k in space_kernels(each, "tvm", batch=batch)]
        build_table(table, kernels, runtime)
    return table.path


@pytest.fixture
def table(built: Path, tmp_path: Path) -> LatencyTable:
    return LatencyTable.open(shutil.copy(built, tmp_path), runtime=FakeRuntime())


def add(table: LatencyTable, *records: Record | Correction) -> None:
    with table.writing():
        for record in records:
            table.append(record)


def corrected(table: LatencyTable, batch: int = 1) -> Correction:
    networks = spread_networks(table, [SPACE], 10, np.random.default_rng(0), batch)
    return correct_table(table, check_networks(table, networks, FakeRuntime(), batch=batch))


def test_correction_corrects_predictions_and_keeps_the_composition(table: LatencyTable) -> None:
    graph = SPACE.largest.graph
    before = table.predict(graph)
    assert not before.is_corrected
    first = corrected(table)
    # The second correction is fitted on the composition, not on what the first one corrected.
    fitted = corrected(table)
    assert (fitted.kernel_factor, fitted.supersedes) == (first.kernel_factor, first.line)
    after = LatencyTable.open(table.path).predict(graph)
    assert (after.uncorrected_us, after.is_corrected) == (before.latency_us, True)
    applied = fitted.apply(before.latency_us, sum(before.kernels_us))
    assert after.latency_us == pytest.approx(applied)


def test_correction_is_per_batch_size(table: LatencyTable) -> None:
    graph = SPACE.largest.graph
    four = corrected(table, batch=4)
    assert not table.predict(graph).is_corrected, "one image is not what it was fitted on"
    assert (table.correction(), table.correction(4)) == (None, four)
    corrected(table)
    again = LatencyTable.open(table.path)
    assert again.predict(graph).is_corrected
    assert again.predict(graph, 4).is_corrected


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
    spaces = [SPACE, OTHER]
    assert lacks_correction(table, spaces)
    fitted = correct_after_build(table, spaces, FakeRuntime())
    assert fitted is not None
    names = [each.architecture["space"] for each in fitted.networks]
    assert fitted.nets == len(names) == FITTED_NETWORKS
    assert min(names.count(space.name) for space in spaces) >= 2
    ends = {table.predict(e).uncorrected_us for s in spaces for e in (s.smallest, s.largest)}
    fitted_us = [each.uncorrected_us for each in fitted.networks]
    assert fitted_us == sorted(fitted_us)
    assert (fitted_us[0], fitted_us[-1]) == pytest.approx((min(ends), max(ends)), rel=1e-3)
    assert not lacks_correction(table, spaces)
    assert not lacks_correction(table, [OTHER])
    assert lacks_correction(table, [SPACE], batch=4)


def test_networks_of_a_space_keep_its_correction_when_another_space_is_added(
    table: LatencyTable, tmp_path: Path
) -> None:
    """A table is often built for one space, and later for a further one."""
    for space, factor in ((SPACE, 1.5), (OTHER, 2.0)):
        assert lacks_correction(table, [SPACE, space])
        add(table, correction(factor, spaces=(space.digest,)))
        assert not lacks_correction(table, [space])
    # A run of both spaces predicts with one correction, and records it.
    assert lacks_correction(table, [SPACE, OTHER])
    compact = merge_tables([table.path], tmp_path / "compact.jsonl")
    for each in (table, LatencyTable.open(compact.path)):
        for network, factor in (
            (SPACE.largest, 1.5),
            (OTHER.largest, 2.0),
            (SPACE.largest.graph, 2.0),
        ):
            prediction = each.predict(network)
            assert prediction.latency_us == pytest.approx(factor * prediction.uncorrected_us)
        assert [fitted.kernel_factor for fitted in each.corrections()] == [1.5, 2.0]
    # A correction of both spaces replaces those of each.
    correct_after_build(table, [SPACE, OTHER], FakeRuntime())
    assert len(table.corrections()) == 1
    assert not lacks_correction(table, [SPACE, OTHER])


def test_other_launch_costs_need_another_correction(table: LatencyTable) -> None:
    """Miss curves are often timed again, and leave the correction as it is."""
    add(
        table,
        correction(1.5, spaces=(SPACE.digest,)),
        Record.from_timings("dispatch", [Timing((9.0,))], name="weights_64mib"),
    )
    assert not lacks_correction(table, [SPACE])
    add(table, Record.from_timings("dispatch", [Timing((3.0,))], name="invocation"))
    for each in (table, LatencyTable.open(table.path)):
        assert lacks_correction(each, [SPACE])
        assert not each.predict(SPACE.largest).is_corrected


def test_failed_kernels_leave_predictions_uncorrected(tmp_path: Path) -> None:
    kernels = space_kernels(SPACE, "tvm")
    runtime = FakeRuntime(broken=frozenset(each.text for each in kernels))
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, kernels, runtime)
    assert correct_after_build(table, [SPACE], runtime) is None
    assert lacks_correction(table, [SPACE])


def test_estimated_networks_correct_nothing(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeRuntime, "network_basis", "estimated: by a model")
    assert correct_after_build(table, [SPACE], FakeRuntime()) is None
    monkeypatch.setattr(type(table.runtime), "network_basis", "estimated: by a model")
    assert not lacks_correction(table, [SPACE])


def test_chosen_correction_stays_whatever_is_recorded_later(table: LatencyTable) -> None:
    graph = SPACE.largest.graph
    chosen, before = corrected(table), table.predict(graph)
    run = LatencyTable.open(table.path)
    run.use_correction(chosen)
    add(table, correction(2.0))
    run.refresh()
    assert run.predict(graph) == before
    assert LatencyTable.open(table.path).predict(graph) != before
    run.use_correction(None)
    assert not run.predict(graph).is_corrected
