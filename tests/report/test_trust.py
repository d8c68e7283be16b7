"""What the report says of the trust in a run: on each topic, with the problem and without it."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nas.latency.moments import Slowdown
from nas.opened_run import open_run
from nas.report.trust import SEVERITY_NAMES, TrustRow, TrustSection, trust_section
from nas.run import candidates
from nas.run.models import undecided_pairs
from nas.run.run import Run
from tests.conftest import EXAMPLE


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


def change_rows(run: Path, **columns: Any) -> None:
    """Replace columns of `trials.csv`."""
    rows = candidates.read(run / "trials.csv")
    candidates.write(rows.assign(**columns), run / "trials.csv")


def write_history(run: Path, volumes: list[float]) -> None:
    rows = [
        {"completed": at + 1, "seconds": 0.1 * at, "hypervolume": volume}
        for at, volume in enumerate(volumes)
    ]
    pd.DataFrame(rows).to_csv(run / "hypervolume.csv", index=False)


def test_rows_are_sorted_and_the_summary_names_the_worst(run):
    shown = section(run)
    order = [list(SEVERITY_NAMES).index(each.severity) for each in shown.rows]
    assert order == sorted(order)
    limits = [each for each in shown.rows if each.severity == "limit"]
    assert len(limits) > 1
    begin = f"{len(limits)} topics limit what can be concluded from this page."
    assert shown.summary == " ".join([begin, *(each.finding for each in limits[:3])])
    assert len({each.topic for each in shown.rows}) == len(shown.rows)


def test_section_is_a_document(run):
    shown = section(run)
    assert TrustSection.model_validate_json(shown.model_dump_json()) == shown


def test_predictions_are_compared_with_whole_networks(run):
    rows = candidates.read(run / "trials.csv").dropna(subset=["measured_us"])
    errors = (rows["predicted_us"] / rows["measured_us"] - 1).astype(float).abs()
    fine = row(run, "predicted latency")
    assert fine.severity == "fine"
    assert f"{100 * errors.mean():.1f}% off on average, by {len(rows)} networks" in fine.finding


@pytest.mark.parametrize(("factor", "severity"), [(1.08, "note"), (1.3, "limit")])
def test_wrong_predictions_are_noted(run, factor, severity):
    rows = candidates.read(run / "trials.csv")
    change_rows(run, predicted_us=factor * rows["measured_us"].fillna(rows["predicted_us"]))
    assert row(run, "predicted latency").severity == severity


def test_untimed_front_limits_and_names_the_command(run):
    change_rows(run, measured_us=None)
    untimed = row(run, "predicted latency")
    assert untimed.severity == "limit"
    assert "No network was timed as a whole" in untimed.finding
    assert untimed.remedy == f"nas run {run}/job.toml --out {run}"


def test_unchecked_ranking_limits_and_names_the_command(run):
    (run / "ranking.json").unlink()
    unchecked = row(run, "ranking")
    assert unchecked.severity == "limit"
    assert "It was not checked whether the supernets rank networks" in unchecked.finding
    assert unchecked.remedy == f"nas supernet rank {run}"


def test_one_unranked_supernet_is_named(run):
    change_json(run / "ranking.json", lambda c: c["spaces"].pop("shufflenet_tiny"))
    finding = row(run, "ranking").finding
    assert "whether shufflenet_tiny ranks networks" in finding


@pytest.mark.parametrize(
    ("tau", "lead", "severity"),
    [
        ((0.4, -0.1, 0.8), (0.2, 0.1, 0.3), "limit"),
        ((0.4, 0.1, 0.8), (0.2, 0.1, 0.3), "note"),
        ((0.8, 0.6, 0.9), (0.2, -0.1, 0.3), "note"),
        ((0.8, 0.6, 0.9), (0.2, 0.1, 0.3), "fine"),
    ],
)
def test_ranking_is_judged_by_its_interval_and_its_lead(run, tau, lead, severity):
    def change(content):
        for space in content["spaces"].values():
            names = ("value", "low", "high")
            space["matched"]["kendall_tau"]["corrected"] = dict(zip(names, tau, strict=True))
            space["matched"]["lead"] = dict(zip(names, lead, strict=True))

    change_json(run / "ranking.json", change)
    found = row(run, "ranking")
    assert found.severity == severity
    low, high = tau[1:]
    assert f"{tau[0]:.2f} ({low:.2f} to {high:.2f}) by 15 networks" in found.details


def test_spaces_that_were_not_compared_limit(run):
    change_json(run / "run.json", lambda c: c["correction"].update(networks=0))
    compared = row(run, "comparing spaces")
    assert compared.severity == "note"
    assert "The scores of the 3 spaces were compared by 45 trained networks" in compared.finding
    (run / "ranking.json").unlink()
    assert row(run, "comparing spaces").severity == "limit"
    change_json(run / "run.json", lambda c: c["spaces"].pop("shufflenet_tiny"))
    assert row(run, "comparing spaces").severity == "limit"
    change_json(run / "run.json", lambda c: c["spaces"].pop("squeezenet_tiny"))
    assert row(run, "comparing spaces") is None


def test_spaces_on_one_scale_are_fine_once_they_are_ranked(run):
    change_json(run / "run.json", lambda c: c["correction"].update(networks=24))
    assert row(run, "comparing spaces").severity == "fine"
    (run / "ranking.json").unlink()
    compared = row(run, "comparing spaces")
    assert compared.severity == "note"
    assert "on one scale by 24 networks that were trained alone" in compared.finding


def test_untrained_front_limits(run):
    untrained = row(run, "trained networks")
    best = open_run(run).pick().id
    assert untrained.severity == "limit"
    assert untrained.remedy == f"nas retrain {run} --pick {best}"


def test_trained_front_is_fine_unless_its_training_was_short(trained_run):
    fine = row(trained_run, "trained networks")
    assert fine.severity == "fine"
    models = open_run(trained_run).models
    errors = [abs(m.record.supernet_accuracy - m.record.holdout.accuracy) for m in models]
    assert f"{100 * np.mean(errors):.1f} points off" in fine.details
    name = models[0].record.id
    change_json(trained_run / "models" / name / "trained.json", lambda c: c.update(epochs=6))
    short = row(trained_run, "trained networks")
    assert short.severity == "note"
    assert f"{name} had fewer than 30 epochs" in short.details
    assert short.remedy == f"nas retrain {trained_run} --pick {name} --epochs 30"


def test_finalist_that_was_not_trained_limits(trained_run):
    change_json(
        trained_run / "run.json",
        lambda c: c.update(training_errors={"q1234": "The disk is full."}),
    )
    found = row(trained_run, "trained networks")
    assert found.severity == "limit"
    assert "q1234 was not trained to the end: The disk is full." in found.details


@pytest.mark.parametrize(
    ("problems", "duplicates", "severity"),
    [
        ([], {"train+train": 3}, "fine"),
        (["2 images cannot be read and are left out"], {"left out+train": 2}, "note"),
        (["the largest class has 7.0 times the smallest one's"], {"search+holdout": 1}, "note"),
        (["1 of 9 test images have a duplicate", "1 class has fewer"], {"train+test": 1}, "limit"),
    ],
)
def test_images_are_judged_by_their_problems(run, problems, duplicates, severity):
    change_json(
        run / "run.json",
        lambda c: c["data"].update(problems=problems, duplicates=duplicates),
    )
    found = row(run, "images")
    assert found.severity == severity
    text = f"{found.finding} {found.details}".lower()
    assert all(problem.lower() in text for problem in problems)
    assert found.remedy == ("nas data digits" if problems else None)


def test_few_holdout_images_cannot_tell_the_front_apart(run):
    accuracies = np.where(np.arange(len(candidates.read(run / "trials.csv"))) % 2, 0.95, 0.955)
    change_rows(run, holdout_accuracy=accuracies)
    found = row(run, "hold-out images")
    assert found.severity == "limit"
    assert "more than the range of accuracies of the whole front" in found.details


def test_many_holdout_images_are_fine(run):
    def change(content):
        content["data"]["class_counts"]["holdout"] = [10_000] * 10

    change_json(run / "run.json", change)
    found = row(run, "hold-out images")
    assert found.severity == "fine"
    assert "100,000 hold-out images" in found.finding


def test_trained_networks_that_no_test_tells_apart_are_named(trained_run):
    found = row(trained_run, "hold-out images")
    assert found.severity == "note"
    models = open_run(trained_run).models
    first, second = undecided_pairs(models, is_balanced=False)[0]
    assert f"No difference is shown between {first} and {second}" in found.details
    answers = [model.answers for model in open_run(trained_run).models]
    shares = [
        np.mean([a != b for a, b in zip(first.is_right, second.is_right, strict=True)])
        for at, first in enumerate(answers)
        for second in answers[at + 1 :]
    ]
    assert f"about {100 * np.mean(shares):.1f}% of them" in found.details


@pytest.mark.parametrize(
    ("failed", "unstable", "disturbed", "severity"),
    [
        (0, 0, 0, "fine"), (0, 2, 0, "note"), (1, 0, 0, "note"), (0, 0, 2, "note"),
        (0, 30, 0, "limit"), (0, 6, 7, "limit"),
    ],
)  # fmt: skip
def test_kernels_are_counted(run, failed, unstable, disturbed, severity):
    counts = {"failed": failed, "unstable": unstable, "disturbed": disturbed}
    change_json(run / "run.json", lambda c: c["table"].update(counts))
    found = row(run, "kernels")
    assert found.severity == severity
    if severity == "fine":
        assert (found.finding, found.remedy) == (
            "All 110 kernels of the latency table were timed.",
            None,
        )
    else:
        for name, count in counts.items():
            assert (f"{count} {name}" in found.finding) == bool(count)
        assert ("The core was slowed" in found.details) == bool(disturbed)
        assert "--image-size 8 --channels 1 --classes 10 --runtime tvm" in found.remedy


@pytest.mark.parametrize(
    ("slowdown", "severity"),
    [(Slowdown(1.02, 1.1), "fine"), (Slowdown(1.2, 1.6), "note"), (Slowdown(1.7, 3.0), "limit")],
)
def test_noise_of_the_machine_is_judged_by_its_typical_moment(run, monkeypatch, slowdown, severity):
    monkeypatch.setattr(Run, "slowdown", slowdown)
    found = row(run, "noise of the machine")
    assert found.severity == severity
    assert slowdown.text in found.finding


def test_latencies_of_a_core_that_was_always_slowed_are_named(run, monkeypatch):
    monkeypatch.setattr(Run, "slowdown", Slowdown(1.02, 1.1))
    rows = candidates.read(run / "trials.csv")
    measured_us = rows["measured_us"]
    change_rows(
        run, measured_low_us=0.6 * measured_us, measured_high_us=measured_us, disturbed=True
    )
    found = row(run, "noise of the machine")
    members = sorted(open_run(run).members, key=lambda each: each.latency_us)
    assert found.severity == "limit"
    assert f"{len(members)} of {len(members)} latencies of the front" in found.finding
    close = [
        f"{fast.id} and {slow.id}"
        for fast, slow in pairwise(members)
        if fast.latency_us >= 0.6 * slow.latency_us
    ]
    assert close
    assert all(pair in found.details for pair in close)
    assert f"which is faster of {'; '.join(close)}." in found.details


@pytest.mark.parametrize(("typical", "severity"), [(1.02, "note"), (1.6, "limit")])
def test_one_disturbed_member_is_a_note_and_hides_no_noise(run, monkeypatch, typical, severity):
    monkeypatch.setattr(Run, "slowdown", Slowdown(typical, None))
    rows = candidates.read(run / "trials.csv")
    measured = rows["measured_us"].notna()
    first = open_run(run).members[0].id
    change_rows(run, disturbed=(rows["id"] == first).where(measured, None))
    found = row(run, "noise of the machine")
    assert found.severity == severity
    assert found.finding.startswith(f"1 of {len(open_run(run).members)} latencies of the front")


def test_noise_is_left_out_if_nothing_was_timed_twice(run, monkeypatch):
    monkeypatch.setattr(Run, "slowdown", None)
    assert row(run, "noise of the machine") is None


def test_failed_exports_limit_and_name_the_format(trained_run):
    assert row(trained_run, "exported files").severity == "note"
    name = open_run(trained_run).models[0].record.id
    change_json(
        trained_run / "run.json",
        lambda c: c.update(export_errors={name: {"coreml": "It is not installed."}}),
    )
    found = row(trained_run, "exported files")
    assert found.severity == "limit"
    assert f"{name} was not exported as coreml: It is not installed." in found.details
    assert found.remedy == f"nas export {trained_run} --pick {name}"


def test_without_files_nothing_was_checked_in_its_runtime(trained_run, run):
    for card in trained_run.glob("models/*/card.json"):
        card.unlink()
    assert "No trained network was exported" in row(trained_run, "exported files").finding
    assert row(run, "exported files") is None


def test_files_as_fast_as_the_search_measured_are_fine(trained_run):
    def change(content):
        content["search_runtime"] = ""

    for card in trained_run.glob("models/*/card.json"):
        change_json(card, change)
    assert row(trained_run, "exported files").severity == "fine"


def test_test_images_that_were_read_more_than_once_are_noted(run, trained_run):
    assert row(run, "test images").finding == "The 359 test images were not read."
    assert row(run, "test images").severity == "fine"
    found = row(trained_run, "test images")
    assert found.severity == "note"
    assert "once for each of 5 trained networks" in found.finding


def test_estimated_latencies_limit(run):
    assert row(run, "what was not measured") is None
    change_rows(run, basis="estimated: by a cycle model")
    found = row(run, "what was not measured")
    assert found.severity == "limit"
    assert "all are estimated: by a cycle model" in found.finding


def test_devices_that_are_only_predicted_are_noted(run):
    devices = [{"table": "phone.jsonl"}]
    change_json(run / "run.json", lambda c: c["job"]["search"].update(device=devices))
    rows = candidates.read(run / "trials.csv")
    candidates.write(
        rows.assign(**{"predicted_us phone": rows["predicted_us"]}), run / "trials.csv"
    )
    found = row(run, "what was not measured")
    assert found.severity == "note"
    assert "Latencies on phone are predictions" in found.finding
    assert found.remedy == f"nas retarget {run} --table phone.jsonl"


def test_failed_networks_are_counted(run):
    assert row(run, "failures") is None
    rows = candidates.read(run / "trials.csv")
    change_rows(run, error=np.where(rows.index < 3, "MeasurementError: <no answer>", ""))
    found = row(run, "failures")
    assert found.finding == f"3 of {len(rows)} networks could not be scored or timed."
    assert found.details == "MeasurementError: <no answer> (3)."


@pytest.mark.parametrize(
    ("volumes", "severity"),
    [
        ([*np.linspace(0.1, 1.0, 80), *[1.0] * 20], "fine"),
        ([*np.linspace(0.1, 0.98, 80), *np.linspace(0.98, 1.0, 20)], "note"),
        (list(np.linspace(0.1, 1.0, 100)), "limit"),
        ([0.5] * 10, "note"),
    ],
)
def test_search_whose_hypervolume_still_rises_was_too_short(run, volumes, severity):
    write_history(run, volumes)
    found = row(run, "length of the search")
    assert found.severity == severity
    longer = f"nas search {run} --trials {2 * len(volumes)}"
    assert found.remedy == (None if severity == "fine" else longer)


def test_search_that_has_not_ended_limits(run):
    change_json(run / "run.json", lambda c: c["search"].update(ended="interrupted"))
    found = row(run, "length of the search")
    assert found.severity == "limit"
    assert "it has scored 300 architectures so far" in found.finding


def test_run_that_has_only_begun_has_a_section(run):
    for name in ("trials.csv", "hypervolume.csv", "ranking.json", "measurements.jsonl"):
        (run / name).unlink()
    later = ("table", "device", "search", "supernets", "study", "correction", "finalists")
    change_json(run / "run.json", lambda c: [c.pop(name) for name in later])
    found = {each.topic: each for each in section(run).rows}
    assert found["predicted latency"].severity == "limit"
    assert found["length of the search"].finding == "The search has scored no architecture yet."
    assert "kernels" not in found
