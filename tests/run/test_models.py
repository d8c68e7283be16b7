"""Trained models: their order, who dominates whom, and how the report shows them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from nas.errors import CheckpointError
from nas.report import page
from nas.run import candidates
from nas.run.front import with_trained
from nas.run.models import read_models
from nas.run.run import open_run
from nas.run.settings import SearchSettings
from nas.run.trained import read_trained


def trained(row: pd.Series, holdout: float, **changes: object) -> dict[str, object]:
    """Return the content of a `trained.json` for a candidate."""
    accuracy = {"accuracy": holdout, "images": 200, "class_accuracy": {"0": holdout, "1": None}}
    return {
        "schema": 2,
        "id": row["id"],
        "space": row["space"],
        "digest": row["digest"],
        "architecture": json.loads(row["architecture"]),
        "start": "supernet",
        "supernet_accuracy": 0.75,
        "holdout": accuracy,
        "test": {**accuracy, "images": 400},
        "calibration": {
            "temperature": 1.25,
            "images": 100,
            "error_before": 0.08,
            "error": 0.02,
            "coverage": [
                {"min_confidence": 0.0, "answered": 1.0, "accuracy": holdout},
                {"min_confidence": 0.9, "answered": 0.5, "accuracy": 1.0},
                {"min_confidence": 0.99, "answered": 0.0, "accuracy": None},
            ],
        },
        "epochs": 2,
        "seed": 0,
        "training": {},
        "teacher": None,
        "data_digest": "0123",
        "seconds": 1.0,
        "versions": {},
        **changes,
    }


@pytest.fixture
def run(untrained_run: Path) -> Path:
    """Return a run with three trained front members and a published network."""
    folder = untrained_run
    front = open_run(folder).front
    fast, middle, slow = (front.iloc[at] for at in (0, len(front) // 2, -1))
    published = {"id": "mobilenet_v2_0.5", "digest": "z" + "f" * 15, "supernet_accuracy": None}
    for content in (
        trained(slow, 0.93),
        trained(fast, 0.90),
        trained(middle, 0.85, supernet_accuracy=0.91),
        trained(middle, 0.95, start="scratch", **published),
    ):
        path = folder / "models" / str(content["id"]) / "trained.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    rows = with_trained(
        candidates.read(folder / "trials.csv"), read_trained(folder), SearchSettings()
    )
    candidates.write(rows, folder / "trials.csv")
    return folder


def test_models_are_ordered_by_latency_with_published_networks_last(run):
    models = read_models(run, candidates.read(run / "trials.csv"), {})
    latencies = [model.latency_us for model in models[:3]]
    assert latencies == sorted(latencies)
    assert models[3].record.id == "mobilenet_v2_0.5"
    assert models[3].latency_us is None


def test_model_that_a_faster_one_beats_is_off_the_front(run):
    rows = candidates.read(run / "trials.csv")
    fast, middle, slow, published = read_models(run, rows, {})
    assert middle.candidate.dominated_by == fast.record.id
    assert fast.candidate.dominated_by is slow.candidate.dominated_by is None
    assert published.candidate is None
    assert fast.supernet_error == pytest.approx(0.75 - 0.90)
    assert published.supernet_error is None


def test_report_shows_trained_models_and_how_far_the_supernet_was_off(run):
    text = page.build(open_run(run)).read_text()
    assert "Trained models" in text
    assert "off the front" in text
    # The mean of |0.75 - 0.93|, |0.75 - 0.90| and |0.91 - 0.85|.
    assert "13.0 points off on average (-18.0 to +6.0)" in " ".join(text.split())
    assert "front of the trained networks" in text
    assert "only the trained models were tested on" in text


def test_report_of_run_without_trained_models_does_not_mention_them(untrained_run):
    text = page.build(open_run(untrained_run)).read_text()
    assert "Trained models" not in text
    assert "images that this run has not read" in text


def test_damaged_record_is_named(run):
    path = next(run.glob("models/*/trained.json"))
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": "2"'))
    with pytest.raises(CheckpointError, match=r"trained\.json .*epochs is '2'"):
        page.build(open_run(run))


def test_report_says_which_formats_and_networks_failed(run):
    fast, other, *_ = read_models(run, candidates.read(run / "trials.csv"), {})
    record = json.loads((run / "run.json").read_text())
    record["export_errors"] = {fast.record.id: {"onnx-int8": "The disk <is> full."}}
    record["training_errors"] = {"abcde": "It diverged.", other.record.id: "It had diverged."}
    (run / "run.json").write_text(json.dumps(record))
    text = page.build(open_run(run)).read_text()
    assert "was not exported as onnx-int8: The disk &lt;is&gt; full." in text
    assert "<code>abcde</code> was not trained to the end: It diverged." in text
    assert "It had diverged" not in text, "it was trained since"
