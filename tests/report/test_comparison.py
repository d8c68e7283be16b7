"""The page that compares runs: what differs, the shared architectures, and what choices lose."""

import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nas.errors import MissingKernelError, RequestError, RunFolderError
from nas.opened_run import open_run
from nas.report import comparison
from nas.report.comparison import compare_runs
from nas.report.comparison_document import ComparisonDocument
from nas.run import candidates
from nas.run.run import Run
from nas.statistics import kendall_tau
from tests.conftest import EXAMPLE
from tests.report.cases import change_record

LEFT_OUT = shutil.ignore_patterns("models", "*.safetensors", "study.journal", "standalone.jsonl")


def copy_of_example(folder: Path) -> Path:
    return shutil.copytree(EXAMPLE, folder, ignore=LEFT_OUT)


@pytest.fixture(autouse=True)
def _without_tables(monkeypatch, tmp_path):
    """Work in an empty folder: `make quickstart` may leave the example's table in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one(tmp_path) -> Path:
    return copy_of_example(tmp_path / "one")


@pytest.fixture
def other(tmp_path) -> Path:
    """Return a run on another device, whose latency follows MACs and peak memory."""
    folder = copy_of_example(tmp_path / "other")
    rows = candidates.read(folder / "trials.csv")
    costs = (rows["macs"] + 100 * rows["peak_memory_bytes"]) / 1e5
    rows["predicted_us"] = costs
    rows["measured_us"] = (1.01 * costs).where(rows["measured_us"].notna())
    candidates.write(rows, folder / "trials.csv")
    change_record(folder, {"job.device.runtime": "litert"})
    return folder


def compared(*folders: Path) -> ComparisonDocument:
    return compare_runs([open_run(folder) for folder in folders])


def test_equal_runs_differ_in_nothing_and_lose_nothing(one, tmp_path):
    document = compared(one, copy_of_example(tmp_path / "later"))
    assert document.different == []
    assert document.notes == []
    (pair,) = document.pairs
    assert [each.kendall_tau for each in pair.agreements] == pytest.approx([1, 1])
    assert pair.swaps == []
    for transfers in document.transfers:
        assert {row.lost_accuracy for row in transfers.rows} == {0.0}
        assert {row.latency_ratio for row in transfers.rows} == {1.0}
    front = len(document.runs[0].front)
    assert document.joint_front == [front, 0]


def test_order_of_shared_architectures_is_that_of_their_latencies(one, other):
    document = compared(one, other)
    assert document.different == ["runtime"]
    assert document.differences == "runtime (tvm / litert)"
    rows = [open_run(folder).trials.set_index("digest") for folder in (one, other)]
    (pair,) = document.pairs
    assert pair.common == len(rows[0])
    for agreement in pair.agreements:
        values = [each[f"{agreement.basis}_us"].dropna() for each in rows]
        assert agreement.networks == len(values[0])
        expected = kendall_tau(values[0].to_numpy(), values[1][values[0].index].to_numpy())
        assert agreement.kendall_tau == pytest.approx(expected)
    fronts = [set(open_run(folder).front["id"]) for folder in (one, other)]
    members = {point.id: point.us for point in pair.points if any(point.is_on_front)}
    assert set(members) == fronts[0] | fronts[1]
    largest = max(
        min(us[0] / others[0], others[1] / us[1])
        for us, others in [
            pair for a, b in combinations(members.values(), 2) for pair in ((a, b), (b, a))
        ]
    )
    assert min(pair.swaps[0].ratios) == pytest.approx(largest)
    for swap in pair.swaps:
        fast, slow = (members[each] for each in swap.ids)
        assert swap.ratios == pytest.approx((slow[0] / fast[0], fast[1] / slow[1]))
        assert min(swap.ratios) >= comparison.MIN_SWAP_RATIO
    named = [each for swap in pair.swaps for each in swap.ids]
    assert len(set(named)) == len(named)


def test_losses_equal_a_search_through_the_other_front(one, other):
    document = compared(one, other)
    transfers = document.transfers[0]
    assert (transfers.source, transfers.target, transfers.unknown) == (0, 1, 0)
    target = open_run(other)
    front = {each.id: each for each in candidates.of_table(target.front)}
    everything = {each.id: each for each in candidates.of_table(target.trials)}
    assert [row.id for row in transfers.rows] == list(open_run(one).front["id"])
    for row in transfers.rows:
        own = everything[row.id]
        assert (row.us, row.accuracy) == (own.latency_us, own.score)
        assert row.basis == ("predicted" if own.measured_us is None else "measured")
        gains = [f.score - own.score for f in front.values() if f.latency_us <= own.latency_us]
        assert row.lost_accuracy == (pytest.approx(max(gains)) if gains else None)
        assert (row.rival is None) == (not gains)
        ratios = [own.latency_us / f.latency_us for f in front.values() if f.score >= own.score]
        assert row.latency_ratio == (pytest.approx(max(ratios)) if ratios else None)
    lost = [row.lost_accuracy for row in transfers.rows if row.lost_accuracy is not None]
    assert f"they lose {100 * np.median(lost):.1f} points of accuracy in the median" in (
        transfers.text
    )
    assert f"and {100 * max(lost):.1f} at most" in transfers.text


def test_runs_with_other_images_have_no_joint_front(one, other, tmp_path):
    change_record(other, {"data.digest": "0123"})
    document = compared(one, other)
    assert "images" in document.different
    assert document.groups == [[0], [1]]
    assert document.joint_front == [len(run.front) for run in document.runs]
    assert document.transfers == []
    assert "their accuracies cannot be compared" in document.notes[0]
    text = comparison.build([open_run(one), open_run(other)], tmp_path / "c.html").read_text()
    assert "their accuracies cannot be compared" in text
    assert "Chosen in" not in text
    assert "joint front" not in text
    later = compared(one, other, copy_of_example(tmp_path / "later"))
    assert later.groups == [[0, 2], [1]]
    assert "of one and later from other differ" in later.notes[0]
    assert [(each.source, each.target) for each in later.transfers] == [(0, 2), (2, 0)]
    assert len(later.pairs) == 3


def test_scores_of_supernets_that_were_trained_apart_are_not_mixed(one, other):
    change_record(other, {"supernets.mobilenet_tiny.largest_accuracy": 0.5})
    split(one, other)
    document = compared(one, other)
    assert "trained apart" in document.notes[0]
    patched = {row.id for row in document.transfers[0].rows}
    assert patched == set(), "no latency is known of networks that only one run has"


def split(one: Path, other: Path) -> None:
    """Keep every second architecture in each of two runs."""
    for start, folder in enumerate((one, other)):
        rows = candidates.read(folder / "trials.csv")
        candidates.write(rows.iloc[start::2], folder / "trials.csv")


def test_runs_without_common_architectures_say_so(one, other, tmp_path):
    split(one, other)
    runs = [open_run(one), open_run(other)]
    document = compare_runs(runs)
    (pair,) = document.pairs
    assert (pair.common, pair.points, pair.agreements, pair.swaps) == (0, [], [], [])
    for transfers in document.transfers:
        assert transfers.rows == []
        assert transfers.unknown == len(document.runs[transfers.source].front)
        assert "There is no latency table" in transfers.reason
    text = comparison.build(runs, tmp_path / "c.html").read_text()
    assert "The runs have no architectures in common" in text


def test_latency_that_a_run_lacks_is_predicted_by_its_table(one, other, monkeypatch):
    split(one, other)

    members = {each.id: each for each in candidates.of_table(open_run(one).front)}
    missing = {each.digest for each in list(members.values())[::2]}

    def predict(architecture, batch):
        if architecture.digest in missing:
            raise MissingKernelError("A kernel is missing.")
        return SimpleNamespace(latency_us=architecture.macs / batch)

    table = SimpleNamespace(predict=predict)
    monkeypatch.setattr(Run, "tables", property(lambda run: {"float32": table}))
    document = compared(one, other)
    transfers = document.transfers[0]
    assert (transfers.unknown, transfers.reason) == (len(missing), "A kernel is missing.")
    assert len(transfers.rows) == len(members) - len(missing) > 0
    for row in transfers.rows:
        assert (row.us, row.basis) == (members[row.id].macs, "predicted")
        assert row.accuracy == members[row.id].score
    assert f"{len(transfers.rows)} are predicted by its latency table" in transfers.text


def test_page_holds_its_document_and_makes_no_request(one, other, tmp_path):
    named = other.rename(tmp_path / "<b>other")
    out = tmp_path / "compare.html"
    out.write_text("the comparison of before")
    text = comparison.build([open_run(one), open_run(named)], out).read_text()
    assert "<b>other" not in text
    assert "&lt;b&gt;other" in text
    (embedded,) = re.findall(r'<script type="application/json" id="report">(.*?)</script>', text)
    document = ComparisonDocument.model_validate_json(embedded)
    assert document.runs[1].label == "<b>other"
    assert json.loads(embedded)["schema"] == 2
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["<b>other", "compare.html", "one"]


def test_runs_of_folders_with_one_name_are_named_by_their_paths(one, tmp_path):
    later = copy_of_example(tmp_path / "later" / "one")
    assert [run.label for run in compared(one, later).runs] == [str(one), str(later)]


def test_trained_networks_are_shown_with_their_training(other):
    trained = compared(EXAMPLE, other).runs[0].trained
    assert len(trained) == len(list((EXAMPLE / "models").iterdir()))
    assert {each.training for each in trained} == {"trained for 60 epochs from the supernet"}
    assert all(each.interval[0] < each.accuracy < each.interval[1] for each in trained)


def test_run_that_has_only_begun_cannot_be_compared(one, other):
    change_record(other, {"tables": {}})
    with pytest.raises(RunFolderError, match=r"has no tables yet: the job has only begun"):
        compared(one, other)


def test_empty_front_is_said(one, other):
    change_record(other, {"job.search.max_latency_ms": 1e-9})
    document = compared(one, other)
    assert "The front of other is empty." in document.notes
    assert all(row.rival is None for row in document.transfers[0].rows)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("compare.txt", "cannot be written to"),
        ("one/report.html", "is the report of a run"),
    ],
)
def test_place_that_cannot_hold_the_page_is_refused(one, other, tmp_path, out, words):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(RequestError, match=words):
        comparison.build([open_run(one), open_run(other)], tmp_path / out)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_is_not_compared_with_itself(one, tmp_path):
    for runs in ([one], [one, one / "." / ".." / "one"]):
        with pytest.raises(RequestError, match="needs two different runs"):
            comparison.build([open_run(each) for each in runs], tmp_path / "c.html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{one}", "{other}"), "needs the name of its file"),
        (("{one}", "--out", "c.html"), "--out is for the comparison of several runs"),
        (("{one}", "{other}", "--figures", "f"), "--figures takes one run"),
    ],
)
def test_command_says_what_is_missing(one, other, invoke, arguments, words):
    done = invoke("report", *(each.format(one=one, other=other) for each in arguments))
    assert done.returncode == 2
    assert words in done.stderr
