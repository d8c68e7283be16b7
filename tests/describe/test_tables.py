from dataclasses import replace
from pathlib import Path

import pytest

from nas.describe import tables
from nas.errors import TableError
from nas.latency import LatencyTable
from nas.latency.cache_model import LAUNCH_PARTS
from nas.latency.matrix_benchmark import Peak
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.describe.small_table import HEAD, POOL, SPACE, STEM, kernel_record, write_table
from tests.latency.small_table import calibration


def test_describe_table_has_speed_of_kinds_and_coverage(tmp_path):
    latency_table = write_table(
        tmp_path / "a.jsonl",
        kernel_record(STEM, 3.0),
        kernel_record(POOL, 1.0, spread=0.5),
        Record("kernel", HEAD, "failed", error="no luck"),
    )
    shown = tables.describe_table(latency_table, [SPACE], Peak(100.0, "a product"))
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


def test_show_table_prints_speed_and_missing_dispatch_costs(tmp_path, capsys):
    latency_table = write_table(tmp_path / "a.jsonl", kernel_record(STEM, 3.0))
    tables.show_table(
        tables.describe_table(latency_table, [SPACE], Peak(20.0, "a product of matrices"))
    )
    shown = capsys.readouterr().out
    assert "20 GFLOP/s in a product of matrices" in shown
    assert "46%" in shown  # 9.216 of 20
    tables.show_table(tables.describe_table(write_table(tmp_path / "empty.jsonl")))
    assert "dispatch: not measured" in capsys.readouterr().out


def uncertain_table(path: Path) -> LatencyTable:
    """Return a table of all kernels of `SPACE`, one of them estimated and one unstable."""
    fitted = calibration(2.0, launch_us=-0.5, from_us=30.0, to_us=60.0, nets=20)
    costs = dict.fromkeys(TvmRuntime.dispatch_parts, 30.0) | dict.fromkeys(LAUNCH_PARTS, 0.5)
    costs |= {"first_cache": 1e-6}
    timings = {part: Timing((us,)) for part, us in costs.items()}
    timings["invocation"] = Timing((20.0, 30.0, 40.0))
    parts = [Record.from_timing("dispatch", each, name=part) for part, each in timings.items()]
    return write_table(
        path,
        *parts,
        replace(kernel_record(STEM, 3.0), basis="estimated: by a model"),
        kernel_record(POOL, 1.0, spread=0.5),
        kernel_record(HEAD, 2.0),
        Record("calibration", calibration=fitted),
    )


def test_prediction_names_uncertain_latencies(tmp_path, capsys):
    latency_table = uncertain_table(tmp_path / "a.jsonl")
    graph = SPACE.largest.graph
    shown = tables.describe_prediction(latency_table, graph)
    # By hand: 3 + 1 + 2 for the kernels, three launches of 0.5, and an invocation of 30.
    assert shown["uncorrected_us"] == pytest.approx(37.5)
    assert shown["predicted_us"] == pytest.approx(2 * 37.5 - 3 * 0.5)
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
    assert "predicted 0.0735 ms: 3 kernels (1 unstable, 1 estimated)" in text
    assert "the rest is estimated: by a model" in text
    assert "84% of it are launches and the start of the network" in text
    assert "unstable dispatch costs: invocation" in text
    assert "corrected by the table's calibration on whole networks; without it 0.0375 ms" in text


def test_show_table_names_estimates_and_calibrations(tmp_path, capsys):
    shown = tables.describe_table(uncertain_table(tmp_path / "a.jsonl"))
    assert shown["basis"] == {"estimated: by a model": 1, "measured": 2}
    assert shown["unstable_dispatch"] == ["invocation"]
    # Twice what an invocation of 30 and 15 or 60 launches of 0.5 take.
    assert shown["rough_below"] == [
        {"launches": 15, "latency_us": 75.0},
        {"launches": 60, "latency_us": 120.0},
    ]
    (fitted,) = shown["calibrations"]
    assert (fitted["batch"], fitted["slope"], fitted["mape_after"]) == (1, 2.0, 0.01)
    tables.show_table(shown)
    text = capsys.readouterr().out
    assert "1 of the kernels are estimated: by a model" in text
    assert "networks below 75 us (15 kernels) or 120 us (60 kernels) are launches" in text
    assert "expect an error of up to 10%" in text
    assert "2.0000 x the sum of kernels and dispatch costs - 0.5 us a launch, fitted on 20" in text
    assert "mean error is 50.00%; with it, 1.00% are expected for other networks" in text


def test_show_table_accepts_incomplete_dispatch_costs(tmp_path, capsys):
    part = TvmRuntime.dispatch_parts[3]
    half = write_table(
        tmp_path / "a.jsonl", Record.from_timing("dispatch", Timing((1.0,)), name=part)
    )
    tables.show_table(tables.describe_table(half))
    shown = capsys.readouterr().out
    assert "0 kernels" in shown
    assert "networks below" not in shown
    with pytest.raises(TableError, match="has no dispatch overhead"):
        half.predict(SPACE.largest.graph)
