"""Where the time of the networks of a run goes."""

from __future__ import annotations

import html
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nas.files import jsonl
from nas.kernels.kernel import Kernel
from nas.latency.device import Fingerprint
from nas.latency.installed_runtimes import configured_runtime
from nas.latency.record import BlockRecord, Record, new_header
from nas.latency.timing import Timing
from nas.opened_run import open_run
from nas.report import page
from nas.report.times import Percentiles, TimesSection, kernel_label, times_section
from nas.run import candidates
from tests.latency.fake_runtime import device
from tests.report.cases import change_record

Rows = list[dict[str, Any]]
"""Rows of a latency table."""


def fake_us(kernel: Kernel) -> float:
    """Return a latency that tells kernels and dtypes apart."""
    return round((2 if kernel.dtype == "int8" else 1) + kernel.macs / 1e4, 2)


@pytest.fixture
def run(untrained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run with its front, whose tables are in the folder of its parent."""
    monkeypatch.chdir(untrained_run.parent)
    return untrained_run


def write_table(
    run: Path, runtime: str = "tvm", dtype: str = "float32", edit: Callable[[Rows], Rows] = list
) -> str:
    """Write a table with the kernels of the networks on the front, and return its name.

    Args:
        run: the run.
        runtime, dtype: those of the table.
        edit: returns what is written for the rows of the kernels.
    """
    fingerprint: Fingerprint = device(runtime=runtime, dtype=dtype, features=("avx512f",))
    opened = open_run(run)
    configured = configured_runtime(
        runtime, target="cpu", threads=1, dtype=dtype, features=fingerprint.features
    )
    kernels: dict[Kernel, None] = {}
    for digest in opened.front["digest"]:
        kernels.update(dict.fromkeys(configured.kernels(opened.architecture(digest).graph)))
    path = Path("latency_tables") / f"test.{runtime}.{dtype}.1t.jsonl"
    path.parent.mkdir(exist_ok=True)
    jsonl.append(path, new_header(fingerprint))
    for number, part in enumerate(configured.capabilities.dispatch_parts):
        timing = Timing((0.25 + number,))
        jsonl.append(path, Record.from_timings("dispatch", [timing], name=part).to_json())
    timings = {kernel.text: Timing((fake_us(kernel),)) for kernel in kernels}
    rows = [
        Record.from_timings("kernel", [timing], name=text, schedule={}).to_json()
        for text, timing in timings.items()
    ]
    asked = configured.fused_blocks.asked if configured.fused_blocks else {}
    for row in (*edit(rows), *(BlockRecord.of(*each).to_json() for each in asked.items())):
        jsonl.append(path, row)
    return path.name


def set_table(run: Path, name: str) -> None:
    """Set the name of the latency table of a run, which has no correction."""
    change_record(run, {"tables.float32.calibration": None, "tables.float32.file": name})


def section_of(run: Path) -> TimesSection:
    section = times_section(open_run(run))
    assert section is not None
    return TimesSection.model_validate_json(section.model_dump_json())


def test_times_of_every_member_add_up_to_its_prediction(run: Path) -> None:
    set_table(run, write_table(run))
    section, opened = section_of(run), open_run(run)
    assert [each.id for each in section.networks] == opened.front["id"].tolist()
    assert (section.problem, section.batch) == ("", 1)
    for network in section.networks:
        (times,) = network.tables
        prediction = opened.table.predict(opened.architecture(network.id))
        kernels = [section.kernels[at] for at in times.kernels]
        assert [each.text for each in kernels] == [each.text for each in prediction.kernels]
        assert [each.warm_us for each in kernels] == [*map(fake_us, prediction.kernels)]
        total = times.start_us + times.correction_us
        total += sum(each.warm_us for each in kernels)
        total += sum(times.cold_us) + sum(times.launch_us)
        assert total == pytest.approx(times.predicted_us, rel=1e-5)
        assert times.predicted_us == prediction.latency_us
        assert sum(count for _, count in times.stages) == len(kernels)
        space = opened.architecture(network.id).space
        assert [name for name, _ in times.stages] == [stage.name for stage in space.stages]
        assert not network.differences
    texts = [each.text for each in section.kernels]
    assert len(texts) == len(set(texts)), "each kernel once"


def test_two_dtypes_are_compared_by_stage_and_operation(run: Path) -> None:
    names = {dtype: write_table(run, "onnxruntime", dtype) for dtype in ("float32", "int8")}
    set_table(run, names["float32"])
    record = json.loads((run / "run.json").read_text())
    device = {"runtime": "onnxruntime", "dtype": ["float32", "int8"]}
    change_record(
        run,
        {
            "job.device": record["job"]["device"] | device,
            "tables.int8": record["tables"]["float32"] | {"file": names["int8"]},
        },
    )
    section = section_of(run)
    assert section.tables == names
    for network in section.networks:
        first, second = network.tables
        assert (first.dtype, second.dtype) == ("float32", "int8")
        gaps = [abs(each.times_us[0] - each.times_us[1]) for each in network.differences]
        assert gaps == sorted(gaps, reverse=True)
        assert network.unmatched_us is not None
        for times, alone_us in zip(network.tables, network.unmatched_us, strict=True):
            kinds = {section.kernels[at].label.partition(" ")[0] for at in times.kernels}
            assert alone_us < times.predicted_us
            assert {
                each.label.partition(",")[0].partition(" ")[0] for each in network.differences
            } <= kinds
    kinds = {each.label.partition(" ")[0] for each in section.kernels}
    assert {"quantize", "dequantize", "linear"} <= kinds


def test_member_whose_kernels_are_not_in_the_table_says_so(run: Path) -> None:
    name = write_table(run, edit=lambda rows: rows[:-1])
    set_table(run, name)
    networks = section_of(run).networks
    assert any(each.tables for each in networks)
    (problem,) = {each.problem for each in networks} - {""}
    assert problem.startswith(f"{name} has no kernel '")


@pytest.mark.parametrize(
    ("has_table", "words"), [(True, "has no kernel"), (False, "There is no latency table")]
)
def test_without_kernels_the_timings_of_whole_networks_remain(
    run: Path, has_table: bool, words: str
) -> None:
    set_table(run, write_table(run, edit=lambda rows: []) if has_table else "<b>&.jsonl")
    section = section_of(run)
    assert section.problem.count(words) == 1
    assert "in which the job was run" in section.problem
    assert not section.kernels
    assert all(not each.tables and each.latency for each in section.networks)
    text = page.build(open_run(run)).read_text()
    note = f"The kernels of the networks are not known here. {section.problem}"
    shown = text.partition("<script")[0]
    assert note in html.unescape(shown)
    assert "<b>&.jsonl" not in shown
    assert 'id="times-panel"' not in text


@pytest.mark.parametrize("status", ["unstable", "disturbed"])
def test_flags_of_kernels_are_counted_by_launch(run: Path, status: str) -> None:
    flags = {"status": status, "basis": "estimated: by a <model>"}

    def flag(rows: Rows) -> Rows:
        return [row | flags if row["kernel"].startswith("linear") else row for row in rows]

    set_table(run, write_table(run, edit=flag))
    section = section_of(run)
    flagged = [at for at, each in enumerate(section.kernels) if each.uncertain == status]
    assert flagged
    assert all(section.kernels[at].text.startswith("linear") for at in flagged)
    assert {section.kernels[at].basis for at in flagged} == {flags["basis"]}
    launched = [at for each in section.networks for at in each.tables[0].kernels]
    share = sum(at in flagged for at in launched) / len(launched)
    assert section.uncertain == section.estimated == pytest.approx(share)
    text = page.build(open_run(run)).read_text()
    assert f"{100 * share:.1f}% of all launches rest on timings that did not agree or" in text


def test_percentiles_come_from_the_samples_that_each_round_found(run: Path) -> None:
    opened = open_run(run)
    section = section_of(run)
    assert section.slowdown is not None
    assert section.slowdown.networks == len(section.networks)
    ratios = []
    for network, digest in zip(section.networks, opened.front["digest"], strict=True):
        lines = (run / "measurements.jsonl").read_text().splitlines()
        samples = [line["first_us"] for line in map(json.loads, lines) if line["digest"] == digest]
        assert network.latency is not None
        assert network.latency.samples == len(samples)
        assert network.latency.median_us == pytest.approx(statistics.median(samples), rel=1e-3)
        assert network.latency.slowest_us == max(samples)
        ratios += [us / statistics.median(samples) for us in samples]
    assert section.slowdown.samples == len(ratios)
    assert section.slowdown.p95 is not None
    above = sum(ratio > section.slowdown.p95 for ratio in ratios) / len(ratios)
    assert above == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("count", "known"), [(2, (False, False)), (19, (False, False)), (20, (True, False)),
                         (99, (True, False)), (100, (True, True))],
)  # fmt: skip
def test_percentile_that_no_sample_would_exceed_is_left_out(
    count: int, known: Sequence[bool]
) -> None:
    made = Percentiles.of([float(us) for us in range(1, count + 1)])
    assert (made.p95_us is not None, made.p99_us is not None) == known
    assert (made.samples, made.slowest_us) == (count, count)
    assert made.median_us == (count + 1) / 2
    if made.p95_us is not None:
        assert 0.95 * count <= made.p95_us <= 0.95 * count + 1


def test_page_has_the_sums_of_every_network_without_javascript(run: Path) -> None:
    set_table(run, write_table(run))
    text = page.build(open_run(run)).read_text()
    (table,) = re.findall(r'<table id="times-table".*?</table>', text, re.DOTALL)
    for network in section_of(run).networks:
        (times,) = network.tables
        (row,) = re.findall(rf'<tr data-network="{network.id}">.*?</tr>', table, re.DOTALL)
        cells = re.findall(r'class="number[^"]*">([^<]*)<', row)
        assert int(cells[0]) == len(times.kernels)
        cells_us = [1000 * float(each) for each in cells[1:6]]
        kernels_us, waiting_us, dispatch_us, correction_us, predicted_us = cells_us
        parts_us = kernels_us + waiting_us + dispatch_us + correction_us
        assert parts_us == pytest.approx(predicted_us, rel=2e-3)
        assert predicted_us == pytest.approx(times.predicted_us, rel=1e-3)
    assert ">99%, " not in table, "no network has samples for it"


def test_run_without_a_network_to_choose_has_no_section(run: Path) -> None:
    rows = candidates.read(run / "trials.csv")
    candidates.write(rows[rows["state"] == "infeasible"], run / "trials.csv")
    assert times_section(open_run(run)) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("conv2d 3x32x32 -> 16x16x16 k3 s2 p1 g1 bias relu", "conv 3x3 3→16, 32→16 px"),
        ("conv2d batch4 72x9x9 -> 24x9x9 k1 s1 p0 g1 bias add", "pointwise 72→24, 9 px + add"),
        ("conv2d 72x9x5 -> 72x9x5 k3 s1 p1 g72 bias", "depthwise 3x3 72, 9x5 px"),
        ("conv2d 116x14x14[58:116] -> 58x14x14 k1 s1 p0 g1 bias relu", "pointwise 58, 14 px"),
        ("conv2d 8x9x9 expanded bias -> 24x9x9 k3 s1 p1 g24 bias",
         "expanded depthwise 3x3 8→24, 9 px"),
        ("copy 72x14x14 -> 72x14x14 multiply", "multiply 72, 14 px"),
        ("copy int8 72x14x14 -> 72x14x14 hard_swish", "hard swish 72, 14 px"),
        ("linear 64x1x1 -> 10x1x1 bias", "linear 64→10"),
        ("global_pool 64x7x7 -> 64x1x1", "global pool 64, 7→1 px"),
        ("node Relu f32[1,32,8,8] -> f32[1,32,8,8]", "relu 32, 8 px"),
    ],
)  # fmt: skip
def test_label_of_a_kernel(text: str, label: str) -> None:
    assert kernel_label(Kernel.parse(text)) == label
