"""`card.json`: what it says about the latencies of files, and which images its accuracy is of."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nas.data import load_dataset
from nas.deploy.card import measure_accuracy, render_card
from nas.latency.rounds import Latency
from nas.latency.timing import Timing
from nas.run.answers import ConfusedPair
from nas.run.model_card import CARD, LatencyRecord
from tests.latency.rounds_without_readings import latency_of
from tests.run.test_answers import answers_of

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


def card_with(files_us, **changes):
    """Return a card of a network that the search measured at 100 us, with these files."""
    card = CARD.read(next(EXAMPLE.glob("models/*/card.json")))
    files = [
        card.files[0].model_copy(
            update={
                "file": f"model.{name}",
                "runtime": runtime,
                "precision": precision,
                "latency": None if us is None else LatencyRecord.of(latency_of([us]), 1),
            }
        )
        for (name, runtime, precision), us in files_us.items()
    ]
    changes = {"latencies_us": {"measured": 100.0}, "search_runtime": "tvm", **changes}
    return card.model_copy(update={"files": tuple(files), "search_dtype": "float32", **changes})


SHIPPED = ("so", "tvm", "float32")
ONNX = ("onnx", "onnxruntime", "float32")
INT8 = ("int8", "onnxruntime", "int8")
TORCH = ("pt", "", "float32")


@pytest.mark.parametrize(
    ("latencies_us", "notes"),
    [
        ({SHIPPED: 109.0, ONNX: 91.0, INT8: None}, []),
        (
            {SHIPPED: 130.0},
            ["model.so takes 1.3 times as long as the search measured: the device has another "
             "speed now."],
        ),
        (
            {SHIPPED: 100.0, ONNX: 470.0, INT8: 80.0},
            ["The network was chosen for tvm in float32. It takes as model.onnx 4.7 times as long, "
             "as model.int8 0.8 times as long. To choose for such a file: nas retarget RUN "
             "--runtime onnxruntime --dtype float32"],
        ),
        (
            {TORCH: 200.0},
            ["The network was chosen for tvm in float32. It takes as model.pt 2 times as long."],
        ),
    ],
)  # fmt: skip
def test_files_with_another_latency_than_the_search_measured_are_named(latencies_us, notes):
    assert list(card_with(latencies_us).latency_notes) == notes


@pytest.mark.parametrize("changes", [{"search_runtime": ""}, {"latencies_us": {"predicted": 9.0}}])
def test_latencies_of_other_things_are_not_compared(changes):
    assert card_with({ONNX: 470.0}, **changes).latency_notes == ()


def test_latency_has_the_figures_of_its_rounds():
    rounds = [Timing((4.0,), 10.0, 4.5), Timing((3.0,), 10.0, 6.0), Timing((5.0,), 15.0, 5.5)]
    record = LatencyRecord.of(Latency(rounds, full_us=10.0), threads=2)
    assert record.rounds_us == (4.0, 3.0, 5.0)
    assert record.first_us == (4.5, 6.0, 5.5)
    assert (record.fastest_us, record.typical_us, record.slowest_us) == (3.0, 5.5, 6.0)
    assert not record.is_disturbed
    assert LatencyRecord.of(Latency(rounds[2:], full_us=10.0), threads=2).is_disturbed
    # No first sample makes the slowest one faster than the latency.
    record = LatencyRecord.of(
        Latency([Timing((4.0,), 10.0, 3.5), Timing((4.1,), 10.0, 3.9)]), threads=1
    )
    assert (record.fastest_us, record.slowest_us) == (4.0, 4.1)


def test_file_of_the_script_is_the_one_that_was_checked_in_any_order():
    card = CARD.read(next(EXAMPLE.glob("models/*/card.json")))
    assert [card.script.file, card.files[0].format] == ["model.so", "tvm"]
    turned = card.model_copy(update={"files": card.files[::-1]})
    assert card.script_file == turned.script_file == card.files[0]
    assert "pip install 'apache-tvm>=0.27,<0.28' " in render_card(turned, None)
    assert card.model_copy(update={"script": None}).script_file is None


def test_card_says_which_latency_is_disturbed():
    card = card_with({ONNX: 100.0})
    assert "disturbed" not in render_card(card, None)
    (file,) = card.files
    slowed = LatencyRecord.of(Latency([Timing((100.0,), 15.0, 110.0)], full_us=10.0), threads=1)
    card = card.model_copy(update={"files": (file.model_copy(update={"latency": slowed}),)})
    page = render_card(card, None)
    assert "| 0.1 (0.11, 0.11), disturbed |" in page
    assert f"The core was slowed whenever {file.file} was timed" in page


def test_card_says_which_images_its_accuracy_is_of():
    card = card_with({ONNX: 100.0})
    assert card.data.counts["holdout"] == 240
    share = card.data.text(card.accuracy.holdout, "holdout")
    assert f"\nHold-out {share}, test " in render_card(card, None)
    assert "The search images helped" not in render_card(card, None)
    counts = {**card.data.class_counts, "search": [15] * 10, "holdout": [5] * 10}
    few = card.model_copy(update={"data": card.data.model_copy(update={"class_counts": counts})})
    share = few.data.text(card.accuracy.holdout, "search", "holdout")
    answers = answers_of([True] * 180 + [False] * 20, (20,) * 10)
    wrong = (ConfusedPair(label=9, predicted=8, images=20),)
    page = render_card(few, None, answers.model_copy(update={"confused": wrong}))
    assert f"\nSearch and hold-out {share}, test " in page
    assert "used the 200 search and hold-out images. The search images helped to choose" in page
    assert "Search and hold-out images by true class" in page
    right = render_card(few, None, answers_of([True] * 200, (20,) * 10))
    assert "It is right on all 200 search and hold-out images." in right


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("parts", [("holdout",), ("search", "holdout")])
def test_accuracy_of_a_card_is_that_of_the_images_that_judge_it(metric, parts):
    data = replace(load_dataset("digits"), metric=metric)
    rng = np.random.default_rng(0)
    logits = {
        name: rng.random((len(getattr(data, name)), 10)) for name in ("test", "search", "holdout")
    }
    parts_of = {id(getattr(data, name).pixels): own for name, own in logits.items()}
    shipped = {id(data.test.pixels): parts_of.pop(id(data.test.pixels))}
    judged = SimpleNamespace(pixel_logits=lambda pixels: parts_of[id(pixels)])
    model = SimpleNamespace(pixel_logits=lambda pixels: shipped[id(pixels)], judged=judged)
    accuracy = measure_accuracy(model, data, parts)
    pairs = [
        (label, label == row.argmax())
        for part in parts
        for label, row in zip(getattr(data, part).labels, logits[part], strict=True)
    ]
    strata = [[label] for label in range(10)] if "balanced" in metric else [range(10)]
    shares = [np.mean([right for label, right in pairs if label in labels]) for labels in strata]
    assert accuracy.holdout == pytest.approx(np.mean(shares))
