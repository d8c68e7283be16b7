from dataclasses import replace
from pathlib import Path

import pytest

from nas.describe import checks, table_figures, tables
from nas.errors import TableError
from nas.latency import Check, LatencyTable, Verification, compare
from nas.latency.calibration import fit
from nas.latency.check import CheckedNetwork
from nas.latency.device import Fingerprint
from nas.latency.peak import Peak
from nas.latency.record import Record, header
from nas.latency.timing import Timing
from nas.latency.verify import VerifiedRow
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import SearchSpace, Stage

DEVICE = Fingerprint("Test CPU", ("fma",), "tvm", {"kernels": "1"}, "cpu", "float32", 1)
STEM = "conv2d 3x8x8 -> 8x8x8 k3 s1 p1 g1 bias relu"  # 8 * 64 * 27 MACs
HEAD = "linear 8x1x1 -> 10x1x1 bias"
POOL = "global_pool 8x8x8 -> 8x1x1"
SPACE = SearchSpace(
    "small",
    (Stage("stem", "conv", 8, per_stage={"kernel": 3}), Stage("head", "linear_classifier")),
    image_size=8,
    classes=10,
)


def table(path: Path, *records: Record) -> LatencyTable:
    from nas import jsonl

    jsonl.append(path, header(DEVICE))
    for record in records:
        jsonl.append(path, record.to_json())
    return LatencyTable.open(path)


def kernel(text: str, us: float, spread: float = 0.0) -> Record:
    samples = (us, us * (1 - spread), us * (1 + spread))
    return Record.of_timing("kernel", Timing(samples), name=text)


def network(predicted: float, measured: float, reference: str | None = None) -> CheckedNetwork:
    timings = (Timing((measured,)), Timing((1.01 * measured,)))
    return CheckedNetwork({"space": "small"}, predicted, timings, reference)


CHECK = Check(
    (*(network(100 + 9 * n, 110 + 10 * n) for n in range(8)), network(300, 310, "published_net"))
)


def test_a_table_says_how_fast_its_kernels_are_and_what_it_lacks(tmp_path):
    found = table(
        tmp_path / "a.jsonl",
        kernel(STEM, 3.0),
        kernel(POOL, 1.0, spread=0.5),
        Record("kernel", HEAD, "failed", error="no luck"),
    )
    shown = tables.table(found, [SPACE], Peak(100.0, "a product"))
    assert list(shown["kinds"]) == ["conv 3x3", "global_pool"]
    stem, pool = shown["kinds"].values()
    assert stem["share_of_time"] == 0.75
    assert stem["best_gflops"] == stem["median_gflops"] == pytest.approx(2 * 8 * 64 * 27 / 3000)
    assert pool["best_gflops"] is None
    # The samples 0.5, 1 and 1.5: quartiles 0.75 and 1.25.
    assert shown["noise"]["median_spread"] == pytest.approx(0.25)
    assert shown["noise"]["spread_of_90_percent"] == pytest.approx(0.45)
    (space,) = shown["coverage"]
    assert space["space"] == "small"
    assert space["kernels"] == sum(space[key] for key in ("ok", "unstable", "failed", "missing"))
    assert (space["ok"], space["unstable"], space["failed"]) == (1, 1, 1)
    assert shown["failed"] == {HEAD: "no luck"}


def test_a_table_as_a_person_sees_it(tmp_path, capsys):
    found = table(tmp_path / "a.jsonl", kernel(STEM, 3.0))
    tables.show_table(tables.table(found, [SPACE], Peak(20.0, "a product of matrices")))
    shown = capsys.readouterr().out
    assert "20 GFLOP/s in a product of matrices" in shown
    assert "46%" in shown  # 9.216 of 20
    tables.show_table(tables.table(table(tmp_path / "empty.jsonl")))
    assert "dispatch: not measured" in capsys.readouterr().out


def uncertain_table(path: Path) -> LatencyTable:
    """All that the largest network of `SPACE` needs: one kernel estimated, one unstable."""
    fitted = {"slope": 2.0, "offset_us": 1.0, "nets": 20, "mape_before": 0.5, "mape_after": 0.01}
    costs = dict.fromkeys(TvmRuntime.dispatch_parts, 30.0) | {"launch": 0.5, "launch_2mib": 0.5}
    parts = [Record.of_timing("dispatch", Timing((us,)), name=part) for part, us in costs.items()]
    parts[1] = Record.of_timing("dispatch", Timing((20.0, 30.0, 40.0)), name="invocation")
    return table(
        path,
        *parts,
        replace(kernel(STEM, 3.0), basis="estimated: by a model"),
        kernel(POOL, 1.0, spread=0.5),
        kernel(HEAD, 2.0),
        Record("calibration", calibration=fitted),
    )


def test_a_prediction_says_what_it_rests_on(tmp_path, capsys):
    found = uncertain_table(tmp_path / "a.jsonl")
    graph = SPACE.largest.graph
    shown = tables.prediction(found, graph)
    # By hand: 3 + 1 + 2 for the kernels, three launches of 0.5, and an invocation of 30.
    assert shown["predicted_us"] == pytest.approx(37.5)
    assert shown["calibrated_us"] == pytest.approx(2 * 37.5 + 1)
    assert (shown["launches"], shown["unstable_launches"], shown["estimated_launches"]) == (3, 1, 1)
    assert shown["basis"] == "estimated: by a model"
    assert shown["unstable_dispatch"] == ["invocation"]
    by_kernel = {row["kernel"]: (row["status"], row["basis"]) for row in shown["kernels"]}
    assert by_kernel == {
        STEM: ("ok", "estimated: by a model"),
        POOL: ("unstable", "measured"),
        HEAD: ("ok", "measured"),
    }
    tables.show_prediction(shown)
    text = capsys.readouterr().out
    assert "ok, estimated: by a model" in text
    assert "predicted 0.0375 ms: 3 kernels (1 unstable, 1 estimated)" in text
    assert "the rest is estimated: by a model" in text
    assert "unstable dispatch costs: invocation" in text
    assert "with the table's calibration: 0.076 ms" in text


def test_a_table_names_estimates_and_calibrations(tmp_path, capsys):
    shown = tables.table(uncertain_table(tmp_path / "a.jsonl"))
    assert shown["basis"] == {"estimated: by a model": 1, "measured": 2}
    assert shown["unstable_dispatch"] == ["invocation"]
    (fitted,) = shown["calibrations"]
    assert (fitted["batch"], fitted["slope"], fitted["mape_after"]) == (1, 2.0, 0.01)
    tables.show_table(shown)
    text = capsys.readouterr().out
    assert "1 of the kernels are estimated: by a model" in text
    assert "latency = 2.0000 x predicted + 1 us, fitted on 20 networks: mean error 1.00%" in text


def test_a_table_with_half_of_the_dispatch_costs_is_shown(tmp_path, capsys):
    part = TvmRuntime.dispatch_parts[3]
    half = table(tmp_path / "a.jsonl", Record.of_timing("dispatch", Timing((1.0,)), name=part))
    tables.show_table(tables.table(half))
    assert "0 kernels" in capsys.readouterr().out
    with pytest.raises(TableError, match="launch costs"):
        half.predict(SPACE.largest.graph)


def test_a_comparison_by_kind_and_as_a_picture(tmp_path, capsys):
    before = table(tmp_path / "a.jsonl", kernel(STEM, 3.0), kernel(POOL, 1.0))
    after = table(tmp_path / "b.jsonl", kernel(STEM, 6.0), kernel(HEAD, 1.0))
    found = compare(before, after)
    shown = tables.comparison(found)
    assert (shown["common"], shown["only_before"], shown["only_after"]) == (1, 1, 1)
    assert shown["kinds"] == {"conv 3x3": {"count": 1, "median": 2.0, "low": 2.0, "high": 2.0}}
    assert shown["changes"][0]["kind"] == "conv 3x3"
    tables.show_comparison(found, 5)
    text = capsys.readouterr().out
    assert "1 are only in the first, 1 only in the second" in text
    assert "unstable: 0 rows of the first, 0 of the second" in text
    for suffix in ("png", "svg"):
        table_figures.draw_comparison(found, ("a", "b"), tmp_path / f"diff.{suffix}")
    assert "conv 3x3: 1" in (tmp_path / "diff.svg").read_text()


def test_a_check_as_a_person_sees_it(tmp_path, capsys):
    checks.show_check(CHECK)
    shown = capsys.readouterr().out
    assert "published_net" in shown
    assert "two timings of the same network at different moments: 1.00% apart" in shown
    assert f"mean error {CHECK.agreement.mape:.2%}" in shown
    assert "of 9 networks, 0 have kernels with unstable timings, 0 have estimated ones" in shown
    assert "is 2.00%: missed" in shown
    table_figures.draw_check(CHECK, "a check", tmp_path / "check.svg")
    picture = (tmp_path / "check.svg").read_text()
    assert "published_net" in picture
    assert "small: 8 random" in picture


def test_a_calibration_shows_both_errors(capsys):
    found = fit(CHECK)
    checks.show_calibration(found)
    shown = capsys.readouterr().out
    for error in (found.mape_before, found.mape_after, found.references_mape_after):
        assert f"{error:.2%}" in shown
    assert "published, in no fit" in shown


def test_a_verification_names_what_is_off(capsys):
    rows = (
        VerifiedRow(STEM, "conv 3x3", 3.0, 3.9),
        VerifiedRow(POOL, "global_pool", 1.0, None, "RuntimeError: no"),
    )
    checks.show_verification(Verification(rows, 7, ("governor is powersave, was performance",)))
    shown = capsys.readouterr().out
    assert "RuntimeError: no" in shown
    assert "2 of 7 rows timed again, 2 of them off" in shown
    assert "note: governor is powersave" in shown
    assert "The table does not hold: 1 of 2 rows cannot be timed now; rows are 30%" in shown
