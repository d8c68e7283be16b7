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
    return next((each for each in section(run).rows if each.topic == topic), None)


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
    if rows:
        trials = candidates.read(run / "trials.csv").assign(**rows)
        candidates.write(trials, run / "trials.csv")
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
    return {"data.problems": problems, "data.duplicates": {duplicates: 1}}


def kernels(failed: int, unstable: int, disturbed: int) -> dict[str, Any]:
    """Set how many kernels of the latency table were not timed well."""
    counts = {"failed": failed, "unstable": unstable, "disturbed": disturbed}
    return {f"tables.float32.{name}": count for name, count in counts.items()}


CLOSE = {"holdout_accuracy": lambda rows: np.where(np.arange(len(rows)) % 2, 0.95, 0.955)}
PHONE = {"predicted_us phone": lambda rows: rows["predicted_us"]}
FAILED = {"error": lambda rows: np.where(rows.index < 3, "MeasurementError: <no answer>", "")}
RISING = np.linspace(0.1, 0.98, 80)
LONGER, DATA = "nas search {run} --trials 200", "nas data digits"
RANK, CONTINUE = "nas supernet rank {run}", "nas run {run}/job.toml --out {run}"
BUILD = (
    "nas table build --space {run}/spaces/mobilenet_tiny.py --space {run}/spaces/shufflenet_tiny.py"
    " --space {run}/spaces/squeezenet_tiny.py --image-size 8 --channels 1 --classes 10"
    " --runtime tvm --batch 1 --out latency_tables --target cpu --threads 1 --dtype float32"
    " --retry-failed"
)

CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[str, str, str | None] | None]]] = {
    "unchanged": ({}, {
        "predicted latency": ("fine", "off on average", None),
        "exported files": None,
        "test images": ("fine", "The 359 test images were not read.", None),
        "what was not measured": None,
        "failures": None,
    }),
    "fine": ({
        "record": kernels(0, 0, 0) | images([], "train+train")
        | {"correction.networks": 24, "data.class_counts.holdout": [10_000] * 10},
        "volumes": [*RISING, *[0.98] * 20],
    }, {
        "kernels": ("fine", "All 110 kernels of the latency table were timed.", None),
        "images": ("fine", "Nothing is wrong with the", None),
        "comparing spaces": ("fine", "were compared", None),
        "hold-out images": ("fine", "100,000 hold-out images", None),
        "length of the search": ("fine", "gained 0.0%", None),
    }),
    "notes": ({
        "record": kernels(0, 2, 0) | {"correction.networks": 0}
        | images(["2 images cannot be read and are left out"], "left out+train"),
        "rows": timed(1.08) | FAILED,
        "volumes": [*RISING, *np.linspace(0.98, 1, 20)],
    }, {
        "predicted latency": ("note", "off on average", None),
        "kernels": ("note", ": 2 unstable. The timings of an", BUILD),
        "images": ("note", "2 images cannot be read and are left out. ", DATA),
        "comparing spaces": ("note", "scores of the 3 spaces were compared by 45 trained", None),
        "failures": ("note", "3 of 300 networks could not be scored or timed. "
                     "MeasurementError: <no answer> (3).", None),
        "length of the search": ("note", "gained 2.0%", LONGER),
    }),
    "few": ({
        "record": kernels(1, 0, 2) | images(["rare classes"], "search+holdout")
        | {"correction.networks": 24, "job.search.device": [{"table": "phone.jsonl"}]},
        "rows": PHONE, "volumes": [0.5] * 10, "remove": "ranking.json",
    }, {
        "kernels": ("note", "The core was slowed whenever a disturbed kernel was timed", BUILD),
        "images": ("note", "Rare", DATA),
        "comparing spaces": ("note", "by 24 networks that were trained alone", RANK),
        "what was not measured": ("note", "Latencies on phone are predictions",
                                  "nas retarget {run} --table phone.jsonl"),
        "length of the search": ("note", "too few", "nas search {run} --trials 20"),
    }),
    "limits": ({
        "record": kernels(0, 6, 7) | images(["1 of 9 has a duplicate", "few"], "train+test")
        | {"correction.networks": 0},
        "rows": timed(1.3) | CLOSE, "volumes": np.linspace(0.1, 1, 100), "remove": "ranking.json",
    }, {
        "predicted latency": ("limit", "off on average", None),
        "kernels": ("limit", ": 6 unstable, 7 disturbed. ", BUILD),
        "images": ("limit", "1 of 9 has a duplicate. Few.", DATA),
        "hold-out images": ("limit", "more than the range of accuracies of the whole front", None),
        "ranking": ("limit", "It was not checked whether the supernets rank networks", RANK),
        "comparing spaces": ("limit", "The 3 spaces were scored by 3 supernets", RANK),
        "length of the search": ("limit", "gained", LONGER),
    }),
    "predictions": ({
        "record": {"search.ended": "interrupted", "spaces": {"mobilenet_tiny": "0123456789abcdef"}},
        "rows": {"measured_us": None, "basis": "estimated: by a cycle model"},
    }, {
        "predicted latency": ("limit", "No network was timed as a whole", CONTINUE),
        "comparing spaces": None,
        "what was not measured": ("limit", "all are estimated: by a cycle model", None),
        "length of the search": ("limit", "it has scored 300 architectures so far", CONTINUE),
    }),
}  # fmt: skip
"""Changes of the run, and the severity, words and remedy of rows; None for no row."""


@pytest.mark.parametrize("name", CASES)
def test_rows_of_topics(run, name):
    changes, expected = CASES[name]
    change(run, **changes)
    rows = {each.topic: each for each in section(run).rows}
    for topic, content in expected.items():
        shown = rows.get(topic)
        assert (shown is None) == (content is None), topic
        if shown is not None and content is not None:
            severity, words, remedy = content
            assert shown.severity == severity, topic
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


def test_rows_of_trained_networks(trained_run):
    rows = {each.topic: each for each in section(trained_run).rows}
    for topic, severity, words in (
        ("trained networks", "fine", "were trained to the end, for 60 epochs"),
        ("exported files", "note", "take another time than the search measured"),
        ("test images", "note", "once for each of 5 trained networks"),
    ):
        assert rows[topic].severity == severity
        assert words in rows[topic].finding
    for card in trained_run.glob("models/*/card.json"):
        change_json(card, lambda content: content.update(search_runtime=""))
    assert row(trained_run, "exported files").severity == "fine"
    change(
        trained_run,
        {"training_errors": {"q1234": "The disk is full."}},
        remove="models/*/card.json",
    )
    rows = {each.topic: each for each in section(trained_run).rows}
    assert rows["trained networks"].severity == "limit"
    assert "q1234 was not trained to the end: The disk is full." in rows["trained networks"].details
    assert rows["exported files"].severity == "note"
    assert rows["exported files"].finding.startswith("No trained network was exported")


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
    [
        (None, None),
        (Slowdown(1.02, 1.1), "fine"),
        (Slowdown(1.2, 1.6), "note"),
        (Slowdown(1.7, 3.0), "limit"),
    ],
)
def test_noise_of_the_machine_is_judged_by_its_typical_round(run, monkeypatch, slowdown, severity):
    monkeypatch.setattr(Run, "slowdown", slowdown)
    shown = row(run, "noise of the machine")
    assert (shown and shown.severity) == severity
    assert shown is None or slowdown.text in shown.finding


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


@pytest.mark.parametrize("is_trained", [False, True])
def test_each_probe_is_described_once(run, trained_run, is_trained):
    folder = trained_run if is_trained else run
    probe = {"image_size": 8, "images": 900, "macs": 10_000}
    names = ["one", "other"]
    probes = {
        name: {
            "network": name,
            "image_size": 8,
            "sizes": [probe | {"accuracy": value, "judged": value}],
        }
        for name, value in zip(names, (0.5, 0.6), strict=True)
    }
    change(folder, record={"probes": probes})
    found = row(folder, "linear probe")
    text = f"{found.finding} {found.details}"
    for name in names:
        assert text.count(f"inear probe of {name} reaches") == 1


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
    later = ("tables", "device", "search", "supernets", "study", "correction", "finalists")
    change_json(run / "run.json", lambda c: [c.pop(name) for name in later])
    shown = {each.topic: each for each in section(run).rows}
    assert shown["predicted latency"].severity == "limit"
    assert shown["length of the search"].finding == "The search has scored no architecture yet."
    assert "kernels" not in shown
