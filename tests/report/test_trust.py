"""What the report says of the trust in a run: on each topic, with the problem and without it."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nas.latency.rounds import Slowdown
from nas.opened_run import open_run
from nas.report.trust import SEVERITY_NAMES, TrustRow, TrustSection, trust_section
from nas.run import candidates
from nas.run.models import undecided_pairs
from nas.run.run import Run
from tests.conftest import EXAMPLE
from tests.report.cases import change_record


@pytest.fixture
def run(untrained_run: Path) -> Path:
    return untrained_run


@pytest.fixture
def trained_run(tmp_path: Path) -> Path:
    """Return a copy of the example run, with its trained and exported networks."""
    ignored = shutil.ignore_patterns("*.safetensors", "study.journal", "standalone.jsonl")
    return shutil.copytree(EXAMPLE, tmp_path / "trained", ignore=ignored)


def section(run: Path) -> TrustSection:
    return trust_section(open_run(run))


def row(run: Path, topic: str) -> TrustRow | None:
    """Return the row of a topic."""
    rows = {each.topic: each for each in section(run).rows}
    return rows.get(topic)


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change(
    run: Path,
    record: dict[str, Any] | None = None,
    rows: dict[str, Any] | None = None,
    volumes: Sequence[float] = (),
    remove: str = "",
) -> None:
    """Change a run.

    Args:
        run: its folder.
        record: values of `run.json` by their dotted keys.
        rows: columns of `trials.csv`, or functions that return them for the rows.
        volumes: hypervolumes of the search.
        remove: pattern of files to remove.
    """
    change_record(run, record or {})
    candidates.write(candidates.read(run / "trials.csv").assign(**(rows or {})), run / "trials.csv")
    if len(volumes):
        history = pd.DataFrame({"seconds": 0.1, "hypervolume": volumes})
        history.insert(0, "completed", history.index + 1)
        history.to_csv(run / "hypervolume.csv", index=False)
    for path in run.glob(remove) if remove else ():
        path.unlink()


def timed(factor: float) -> dict[str, Any]:
    """Let predicted latencies be so many times the measured ones."""
    return {"predicted_us": lambda rows: factor * rows["measured_us"].fillna(rows["predicted_us"])}


def images(problems: list[str], duplicates: str) -> dict[str, Any]:
    """Set what is wrong with the images."""
    return {"record": {"data.problems": problems, "data.duplicates": {duplicates: 1}}}


def kernels(failed: int, unstable: int, disturbed: int) -> dict[str, Any]:
    """Set how many kernels of the latency table were not timed well."""
    counts = {"failed": failed, "unstable": unstable, "disturbed": disturbed}
    return {"record": {f"table.{name}": count for name, count in counts.items()}}


CLOSE = {"holdout_accuracy": lambda rows: np.where(np.arange(len(rows)) % 2, 0.95, 0.955)}
PHONE = {"predicted_us phone": lambda rows: rows["predicted_us"]}
FAILED = {"error": lambda rows: np.where(rows.index < 3, "MeasurementError: <no answer>", "")}
UNRANKED = "ranking.json"
RISING = np.linspace(0.1, 0.98, 80)
LONGER = "nas search {run} --trials 200"
BUILD = (
    "nas table build --space {run}/spaces/mobilenet_tiny.py --space {run}/spaces/shufflenet_tiny.py"
    " --space {run}/spaces/squeezenet_tiny.py --image-size 8 --channels 1 --classes 10"
    " --runtime tvm --batch 1 --out latency_tables --target cpu --threads 1 --dtype float32"
    " --retry-failed"
)

CASES: list[tuple[str, dict[str, Any], str | None, str, str | None]] = [
    ("predicted latency", {}, "fine", "off on average", None),
    ("predicted latency", {"rows": timed(1.08)}, "note", "off on average", None),
    ("predicted latency", {"rows": timed(1.3)}, "limit", "off on average", None),
    ("predicted latency", {"rows": {"measured_us": None}}, "limit",
     "No network was timed as a whole", "nas run {run}/job.toml --out {run}"),
    ("ranking", {"remove": UNRANKED}, "limit",
     "It was not checked whether the supernets rank networks", "nas supernet rank {run}"),
    ("comparing spaces", {"record": {"correction.networks": 0}}, "note",
     "The scores of the 3 spaces were compared by 45 trained networks", None),
    ("comparing spaces", {"record": {"correction.networks": 24}}, "fine", "were compared", None),
    ("comparing spaces", {"record": {"correction.networks": 24}, "remove": UNRANKED}, "note",
     "on one scale by 24 networks that were trained alone", "nas supernet rank {run}"),
    ("comparing spaces", {"record": {"correction.networks": 0}, "remove": UNRANKED}, "limit",
     "The 3 spaces were scored by 3 supernets", "nas supernet rank {run}"),
    ("comparing spaces", {"record": {"spaces": {"mobilenet_tiny": "0123456789abcdef"}}}, None,
     "", None),
    ("images", images([], "train+train"), "fine", "Nothing is wrong with the", None),
    ("images", images(["2 images cannot be read and are left out"], "left out+train"), "note",
     "2 images cannot be read and are left out. ", "nas data digits"),
    ("images", images(["rare classes"], "search+holdout"), "note", "Rare", "nas data digits"),
    ("images", images(["1 of 9 has a duplicate", "1 class has fewer"], "train+test"), "limit",
     "1 of 9 has a duplicate. 1 class has fewer.", "nas data digits"),
    ("hold-out images", {"rows": CLOSE}, "limit",
     "more than the range of accuracies of the whole front", None),
    ("hold-out images", {"record": {"data.class_counts.holdout": [10_000] * 10}}, "fine",
     "100,000 hold-out images", None),
    ("kernels", kernels(0, 0, 0), "fine", "All 110 kernels of the latency table were timed.", None),
    ("kernels", kernels(0, 2, 0), "note", ": 2 unstable. The timings of an", BUILD),
    ("kernels", kernels(1, 0, 0), "note", ": 1 failed. Networks that need", BUILD),
    ("kernels", kernels(0, 0, 2), "note", ": 2 disturbed. The core was slowed", BUILD),
    ("kernels", kernels(0, 30, 0), "limit", ": 30 unstable. ", BUILD),
    ("kernels", kernels(0, 6, 7), "limit", ": 6 unstable, 7 disturbed. ", BUILD),
    ("exported files", {}, None, "", None),
    ("test images", {}, "fine", "The 359 test images were not read.", None),
    ("what was not measured", {}, None, "", None),
    ("what was not measured", {"rows": {"basis": "estimated: by a cycle model"}}, "limit",
     "all are estimated: by a cycle model", None),
    ("what was not measured",
     {"record": {"job.search.device": [{"table": "phone.jsonl"}]}, "rows": PHONE}, "note",
     "Latencies on phone are predictions", "nas retarget {run} --table phone.jsonl"),
    ("failures", {}, None, "", None),
    ("failures", {"rows": FAILED}, "note",
     "3 of 300 networks could not be scored or timed. MeasurementError: <no answer> (3).", None),
    ("length of the search", {"volumes": [*RISING, *[0.98] * 20]}, "fine", "gained 0.0%", None),
    ("length of the search", {"volumes": [*RISING, *np.linspace(0.98, 1, 20)]}, "note",
     "gained 2.0%", LONGER),
    ("length of the search", {"volumes": np.linspace(0.1, 1, 100)}, "limit", "gained", LONGER),
    ("length of the search", {"volumes": [0.5] * 10}, "note",
     "too few", "nas search {run} --trials 20"),
    ("length of the search", {"record": {"search.ended": "interrupted"}}, "limit",
     "it has scored 300 architectures so far", "nas run {run}/job.toml --out {run}"),
]  # fmt: skip
"""Topics, changes of the run, and the severity, words and remedy of the row; None for no row."""


@pytest.mark.parametrize(("topic", "changes", "severity", "words", "remedy"), CASES)
def test_row_of_a_topic(run, topic, changes, severity, words, remedy):
    change(run, **changes)
    shown = row(run, topic)
    assert (shown and shown.severity) == severity
    if shown:
        assert words in f"{shown.finding} {shown.details} "
        assert shown.remedy == (remedy and remedy.format(run=run))


def test_rows_are_sorted_and_the_summary_names_the_worst(run):
    shown = section(run)
    assert TrustSection.model_validate_json(shown.model_dump_json()) == shown
    order = [list(SEVERITY_NAMES).index(each.severity) for each in shown.rows]
    assert order == sorted(order)
    limits = [each for each in shown.rows if each.severity == "limit"]
    assert len(limits) > 1
    begin = f"{len(limits)} topics limit what can be concluded from this page."
    assert shown.summary == " ".join([begin, *(each.finding for each in limits[:3])])
    assert len({each.topic for each in shown.rows}) == len(shown.rows)


def test_predictions_are_compared_with_whole_networks(run):
    rows = candidates.read(run / "trials.csv").dropna(subset=["measured_us"])
    errors = (rows["predicted_us"] / rows["measured_us"] - 1).astype(float).abs()
    finding = row(run, "predicted latency").finding
    assert f"{100 * errors.mean():.1f}% off on average, by {len(rows)} networks" in finding


def test_one_unranked_supernet_is_named(run):
    change_json(run / "ranking.json", lambda c: c["spaces"].pop("shufflenet_tiny"))
    finding = row(run, "ranking").finding
    assert "whether shufflenet_tiny ranks networks" in finding


@pytest.mark.parametrize(
    ("tau", "count", "severity"),
    [
        ((0.4, -0.1, 0.8), -0.2, "limit"),
        ((0.4, 0.1, 0.8), 0.0, "note"),
        ((0.8, 0.6, 0.9), 0.7, "note"),
        ((0.8, 0.6, 0.9), 0.5, "fine"),
    ],
)
def test_ranking_is_judged_by_its_interval_and_by_counting_operations(run, tau, count, severity):
    def change(content):
        for space in content["spaces"].values():
            value, low, high = tau
            space["kendall_tau"]["corrected"] = {"value": value, "low": low, "high": high}
            space["kendall_tau"]["macs"]["value"] = count

    change_json(run / "ranking.json", change)
    ranking = row(run, "ranking")
    assert ranking.severity == severity
    value, low, high = tau
    assert (
        f"{value:.2f} ({low:.2f} to {high:.2f}) by 15 networks; counting operations has {count:.2f}"
        in ranking.details
    )


@pytest.mark.parametrize(
    ("topic", "changes", "severity", "words"),
    [
        ("trained networks", {}, "fine", "were trained to the end, for 60 epochs"),
        (
            "trained networks", {"record": {"training_errors": {"q1234": "The disk is full."}}},
            "limit", "q1234 was not trained to the end: The disk is full.",
        ),
        ("exported files", {}, "note", "take another time than the search measured"),
        ("exported files", {"remove": "models/*/card.json"}, "note", "No trained network was"),
        ("test images", {}, "note", "once for each of 5 trained networks"),
    ],
)  # fmt: skip
def test_row_of_a_topic_of_trained_networks(trained_run, topic, changes, severity, words):
    change(trained_run, **changes)
    shown = row(trained_run, topic)
    assert shown.severity == severity
    assert words in f"{shown.finding} {shown.details}"


def test_files_as_fast_as_the_search_measured_are_fine(trained_run):
    for card in trained_run.glob("models/*/card.json"):
        change_json(card, lambda content: content.update(search_runtime=""))
    assert row(trained_run, "exported files").severity == "fine"


def test_untrained_front_limits(run):
    untrained = row(run, "trained networks")
    best = open_run(run).pick().id
    assert untrained.severity == "limit"
    assert untrained.remedy == f"nas retrain {run} --pick {best}"


def test_trained_front_is_fine_unless_its_training_was_short(trained_run):
    fine = row(trained_run, "trained networks")
    models = open_run(trained_run).models
    errors = [abs(m.record.supernet_accuracy - m.record.holdout.accuracy) for m in models]
    assert f"{100 * np.mean(errors):.1f} points off" in fine.details
    name = models[0].record.id
    change_json(trained_run / "models" / name / "trained.json", lambda c: c.update(epochs=6))
    short = row(trained_run, "trained networks")
    assert short.severity == "note"
    assert f"{name} had fewer than 30 epochs" in short.details
    assert short.remedy == f"nas retrain {trained_run} --pick {name} --epochs 30"


def test_trained_networks_that_no_test_tells_apart_are_named(trained_run):
    shown = row(trained_run, "hold-out images")
    assert shown.severity == "note"
    models = open_run(trained_run).models
    first, second = undecided_pairs(models, is_balanced=False)[0]
    assert f"No difference is shown between {first} and {second}" in shown.details
    answers = [model.answers for model in open_run(trained_run).models]
    shares = [
        np.mean([a != b for a, b in zip(first.is_right, second.is_right, strict=True)])
        for at, first in enumerate(answers)
        for second in answers[at + 1 :]
    ]
    assert f"about {100 * np.mean(shares):.1f}% of them" in shown.details


@pytest.mark.parametrize(
    ("slowdown", "severity"),
    [(Slowdown(1.02, 1.1), "fine"), (Slowdown(1.2, 1.6), "note"), (Slowdown(1.7, 3.0), "limit")],
)
def test_noise_of_the_machine_is_judged_by_its_typical_round(run, monkeypatch, slowdown, severity):
    monkeypatch.setattr(Run, "slowdown", slowdown)
    shown = row(run, "noise of the machine")
    assert shown.severity == severity
    assert slowdown.text in shown.finding


def test_latencies_of_a_core_that_was_always_slowed_are_named(run, monkeypatch):
    monkeypatch.setattr(Run, "slowdown", Slowdown(1.02, 1.1))
    rows = candidates.read(run / "trials.csv")
    measured_us = rows["measured_us"]
    ends = {"measured_low_us": 0.6 * measured_us, "measured_high_us": measured_us}
    change(run, rows={**ends, "disturbed": True})
    shown = row(run, "noise of the machine")
    members = sorted(open_run(run).members, key=lambda each: each.latency_us)
    assert shown.severity == "limit"
    assert f"{len(members)} of {len(members)} latencies of the front" in shown.finding
    close = [
        f"{fast.id} and {slow.id}"
        for fast, slow in pairwise(members)
        if fast.latency_us >= 0.6 * slow.latency_us
    ]
    assert close
    assert all(pair in shown.details for pair in close)
    assert f"which is faster of {'; '.join(close)}." in shown.details


@pytest.mark.parametrize(("typical", "severity"), [(1.02, "note"), (1.6, "limit")])
def test_one_disturbed_member_is_a_note_and_hides_no_noise(run, monkeypatch, typical, severity):
    monkeypatch.setattr(Run, "slowdown", Slowdown(typical, None))
    rows = candidates.read(run / "trials.csv")
    measured = rows["measured_us"].notna()
    first = open_run(run).members[0].id
    change(run, rows={"disturbed": (rows["id"] == first).where(measured, None)})
    shown = row(run, "noise of the machine")
    assert shown.severity == severity
    assert shown.finding.startswith(f"1 of {len(open_run(run).members)} latencies of the front")


def test_noise_is_left_out_if_nothing_was_timed_twice(run, monkeypatch):
    monkeypatch.setattr(Run, "slowdown", None)
    assert row(run, "noise of the machine") is None


def test_failed_exports_limit_and_name_the_format(trained_run):
    name = open_run(trained_run).models[0].record.id
    change(trained_run, record={"export_errors": {name: {"coreml": "It is not installed."}}})
    shown = row(trained_run, "exported files")
    assert shown.severity == "limit"
    assert f"{name} was not exported as coreml: It is not installed." in shown.details
    assert shown.remedy == f"nas export {trained_run} --pick {name}"


def test_run_that_has_only_begun_has_a_section(run):
    for name in ("trials.csv", "hypervolume.csv", "ranking.json", "measurements.jsonl"):
        (run / name).unlink()
    later = ("table", "device", "search", "supernets", "study", "correction", "finalists")
    change_json(run / "run.json", lambda c: [c.pop(name) for name in later])
    shown = {each.topic: each for each in section(run).rows}
    assert shown["predicted latency"].severity == "limit"
    assert shown["length of the search"].finding == "The search has scored no architecture yet."
    assert "kernels" not in shown
