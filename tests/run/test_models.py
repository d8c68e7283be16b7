"""Trained models: their order, who dominates whom, and how the report shows them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from nas.errors import CheckpointError, InfeasibleError
from nas.files.documents import to_json
from nas.opened_run import open_run
from nas.report import page
from nas.report.document import report_document
from nas.run import candidates
from nas.run.front import with_trained
from nas.run.model_card import LatencyRecord
from nas.run.models import undecided_pairs
from nas.run.objectives import run_objectives
from nas.run.selection import Limits, knee
from nas.run.settings import SearchSettings
from nas.run.trained import read_trained
from nas.statistics import wilson_interval
from tests.conftest import EXAMPLE
from tests.latency.rounds_without_readings import latency_of
from tests.run.test_answers import answers_of


def trained(row: pd.Series, holdout: float, **changes: object) -> dict[str, object]:
    """Return the content of a `trained.json` for a candidate."""
    accuracy = {"accuracy": holdout, "images": 200, "class_accuracy": {"0": holdout, "1": None}}
    return {
        "schema": 4,
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
    # Of 200 images, the fast one gets 10 right that the middle one does not.
    for row, right in ((fast, 180), (middle, 170), (slow, 186)):
        answers = answers_of([True] * right + [False] * (200 - right), (100, 100))
        (folder / "models" / row["id"] / "answers.json").write_text(to_json(answers))
    rows = with_trained(
        candidates.read(folder / "trials.csv"),
        read_trained(folder),
        run_objectives(SearchSettings(), ()),
    )
    candidates.write(rows, folder / "trials.csv")
    return folder


def test_models_are_ordered_and_one_that_a_faster_one_beats_is_off_the_front(run):
    fast, middle, slow, published = open_run(run).models
    assert fast.latency_us < middle.latency_us < slow.latency_us
    assert (published.record.id, published.latency_us) == ("mobilenet_v2_0.5", None)
    assert middle.candidate.dominated_by == fast.record.id
    assert fast.candidate.dominated_by is slow.candidate.dominated_by is None
    assert published.candidate is None
    assert fast.supernet_error == pytest.approx(0.75 - 0.90)
    assert published.supernet_error is None


def test_better_is_said_of_two_models_only_if_the_same_images_show_it(run):
    fast, middle, slow, published = open_run(run).models
    assert fast.difference(middle, is_balanced=False) == 1
    assert middle.difference(fast, is_balanced=False) == -1
    assert "is more accurate, as 200 images show" in fast.advantage(middle, is_balanced=False)
    assert slow.difference(fast, is_balanced=False) == 1
    path = run / "models" / middle.record.id / "answers.json"
    path.write_text(to_json(answers_of([True] * 178 + [False] * 22, (100, 100))))
    fast, middle, slow, published = open_run(run).models
    assert fast.difference(middle, is_balanced=False) == 0
    assert undecided_pairs([fast, middle, slow], is_balanced=False) == [
        (fast.record.id, middle.record.id)
    ]
    text = page.build(open_run(run)).read_text()
    better = f"off the front: <code>{fast.record.id}</code> was measured no worse in any objective"
    assert f"{better}, and no difference of the accuracies is shown by 200 images" in text
    assert f"between {fast.record.id} and {middle.record.id} (exact test of McNemar" in text
    assert published.difference(fast, is_balanced=False) is None
    assert published.advantage(fast, is_balanced=False) == "was measured no worse in any objective"


def test_select_names_trained_members_that_may_be_as_accurate(run):
    opened = open_run(run)
    fast, _, slow, _ = opened.models
    for model, right in ((fast, 184), (slow, 186)):
        answers = answers_of([True] * right + [False] * (200 - right), (100, 100))
        (run / "models" / model.record.id / "answers.json").write_text(to_json(answers))
    selection = opened.selection()
    options = {each.member.id: each for each in selection.options}
    chosen, other = options[slow.record.id], options[fast.record.id]
    assert selection.indistinguishable(chosen) == [other]
    limited = opened.selection(Limits(min_accuracy=0.92))
    assert limited.indistinguishable(limited.choose("most_accurate")) == []
    compared = selection.compare(chosen, other)
    assert (compared.shown, compared.images) == (0, "240 hold-out images")
    assert "; 240 hold-out images cannot tell the accuracies apart" in compared.text
    assert opened.pick(knee=True).id == knee(opened.options()).member.id
    untrained = next(each for each in selection.options if not each.is_trained)
    assert selection.indistinguishable(untrained) == []


def test_few_holdout_images_judge_trained_networks_with_those_of_the_search(run, invoke):
    """Everything that is said of trained networks is of 200 images, and of the supernet of 50."""
    record = json.loads((run / "run.json").read_text())
    record["data"]["class_counts"] |= {"search": [15] * 10, "holdout": [5] * 10}
    (run / "run.json").write_text(json.dumps(record))
    opened = open_run(run)
    fast = opened.models[0]
    intervals = fast.candidate.intervals(opened.images)
    accuracy = fast.candidate.trained_accuracy
    assert intervals["trained_accuracy"] == wilson_interval(accuracy, [200])
    score = fast.candidate.holdout_accuracy
    assert intervals["holdout_accuracy"] == wilson_interval(score, [50])
    document = report_document(opened)
    assert document.judging_images == "200 search and hold-out images"
    point = next(each for each in document.trained if each.id == fast.record.id)
    member = next(each for each in document.members if each.id == fast.record.id)
    interval = wilson_interval(accuracy, [200])
    assert point.interval == member.interval == (interval.low, interval.high)
    note = "The search images helped to choose the architectures, not the weights."
    row = next(each for each in document.trust.rows if each.topic == "search and hold-out images")
    assert row.finding.startswith("200 search and hold-out images show only differences")
    assert row.details.endswith(note)
    text = page.build(opened).read_text()
    assert text.count(note) >= 3
    for said in (
        '<th class="number">search and hold-out accuracy</th>',
        "with the accuracy on 200 search and hold-out images",
        "is measured on 200 search and hold-out images, which no training used,",
        "of 200 search and hold-out images are classified wrongly",
        "on the same 200 search and hold-out images (Newcombe 1998)",
    ):
        assert said in text
    selection = opened.selection()
    options = {each.member.id: each for each in selection.options}
    slow = options[opened.models[2].record.id]
    said = selection.compare(slow, options[fast.record.id]).text
    assert said.endswith("; 200 search and hold-out images show the difference of the accuracies")
    limit = ("--max-latency-ms", fast.candidate.latency_us / 1000)
    said = invoke("select", run, *limit).stdout
    assert f"\nIt is judged by 200 search and hold-out images. {note}\n" in said
    chosen = json.loads(invoke("select", run, *limit, "--json").stdout)
    front = json.loads((run / "front.json").read_text())
    assert chosen["judging_images"] == front["judging_images"] == "200 search and hold-out images"


def test_accuracies_name_the_weights_of_refitted_networks(run, invoke):
    weights = (
        "old-out accuracies are of weights that did not learn these images, test accuracies of "
        "the shipped weights, which learned all 1,440 other images"
    )
    fast = open_run(run).models[0]
    limit = ("--max-latency-ms", fast.candidate.latency_us / 1000)
    assert weights not in invoke("select", run, *limit).stdout
    assert "refitted" not in page.build(open_run(run)).read_text()
    path = run / "models" / fast.record.id / "trained.json"
    refit = {"images": 1440, "epochs": 2, "seconds": 1.0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "refit": refit}))
    assert f"\nH{weights}.\n" in invoke("select", run, *limit).stdout
    text = page.build(open_run(run)).read_text()
    assert f"Of refitted networks, h{weights}. " in text
    assert text.count("; refitted</td>") == 1
    assert "which no training but a refit used" in text


def test_networks_that_were_trained_in_different_ways_are_not_compared(run):
    """The finalists had two epochs from the supernet, the fast network got six from scratch."""
    opened = open_run(run)
    fast, middle, slow, _ = opened.models
    row = opened.trials.set_index("id", drop=False).loc[fast.record.id]
    content = trained(row, 0.95, start="scratch", epochs=6)
    path = run / "models" / fast.record.id / "trained.json"
    path.write_text(json.dumps(content))
    opened.write_trials(opened.trials)
    fast, middle, slow, _ = opened.models
    assert str(fast.record.recipe) == "6 epochs from scratch; without a teacher"
    assert str(slow.record.recipe) == "2 epochs from the supernet; without a teacher"
    assert fast.candidate.recipe == str(fast.record.recipe)
    assert middle.candidate.dominated_by is slow.candidate.dominated_by is None
    assert fast.difference(middle, is_balanced=False) is None
    assert undecided_pairs([fast, middle, slow], is_balanced=False) == []
    selection = opened.selection()
    (own,) = (each for each in selection.options if each.member.id == fast.record.id)
    assert selection.indistinguishable(own) == []


def test_recipe_says_what_differs_between_the_trainings_of_a_run(run):
    _, _, slow, published = open_run(run).models
    training = {"learning_rate": 0.01, "progressive_resizing": 0.0, "flip": None}
    changes = {"training": training, "teacher": "largest of toy", "epochs": 1}
    recipe = slow.record.model_copy(update=changes).recipe
    assert recipe.text == "1 epoch from the supernet"
    assert recipe.details == (
        "learning rate 0.01, smaller images for 0.0 of it, taught by the largest of toy"
    )
    assert published.record.recipe.text == "2 epochs from scratch"


@pytest.mark.slow
def test_report_shows_confusions_and_pictures_of_mistakes(run):
    """Class names are text, whatever is in them."""
    fast, middle, *_ = open_run(run).models
    mistakes = [
        {
            "label": 0,
            "predicted": 1,
            "confidence": 0.97,
            "file": "a & b/1.png",
            "picture": "data:image/png;base64,iVBORw0KGgo=",
        }
    ] * 40
    confused = [{"label": 0, "predicted": 1, "images": 20}]
    fields = {"confused": confused, "mistakes": mistakes, "has_pictures": True}
    few = answers_of([True] * 180 + [False] * 20, (100, 100), **fields, classes=("<b>x</b>", "y"))
    counts = (*[10] * 20,)
    many = answers_of([True] * 180 + [False] * 20, counts, **fields)
    for model, answers in ((fast, few), (middle, many)):
        (run / "models" / model.record.id / "answers.json").write_text(to_json(answers))
    text = page.build(open_run(run)).read_text()
    assert '<th scope="row">&lt;b&gt;x&lt;/b&gt;</th>' in text
    assert "<b>x</b>" not in text
    assert ">20 <small>20%</small></td>" in text
    assert "<td>class 0</td><td>class 1</td>" in text
    assert "The 1 most confused of 1 pairs of classes, of 20 classes." in text
    assert 'alt="Image of class &lt;b&gt;x&lt;/b&gt;, taken for y"' in text
    assert "a &amp; b/1.png" in text
    assert 20 <= text.count("data:image/png") <= 40
    record = json.loads((run / "run.json").read_text())
    record["job"]["finish"]["pictures"] = False
    (run / "run.json").write_text(json.dumps(record))
    assert "data:image/png" not in page.build(open_run(run)).read_text()


def test_report_shows_trained_models_and_how_far_the_supernet_was_off(run):
    text = page.build(open_run(run)).read_text()
    assert "Trained models" in text
    assert "off the front" in text
    # The mean of |0.75 - 0.93|, |0.75 - 0.90| and |0.91 - 0.85|.
    assert "13.0 points off on average (-18.0 to +6.0)" in " ".join(text.split())
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
    fast, other, *_ = open_run(run).models
    record = json.loads((run / "run.json").read_text())
    record["export_errors"] = {fast.record.id: {"onnx-int8": "The disk <is> full."}}
    record["training_errors"] = {"abcde": "It diverged.", other.record.id: "It had diverged."}
    (run / "run.json").write_text(json.dumps(record))
    text = page.build(open_run(run)).read_text()
    assert "was not exported as onnx-int8: The disk &lt;is&gt; full." in text
    assert "abcde was not trained to the end: It diverged." in text
    assert "It had diverged" not in text, "it was trained since"


def export_files(run: Path, model_id: str, files: dict[str, tuple[float, float | None]]) -> None:
    """Write a card with a file of each format, with its hold-out accuracy and its latency in us."""
    card = json.loads(next(EXAMPLE.glob("models/*/card.json")).read_text())
    file = card["files"][0]
    card["files"] = [
        {
            **file,
            "format": name,
            "file": f"model.{name}",
            "precision": "int8" if name.endswith("int8") else "float32",
            "runtime": "onnxruntime" if name.startswith("onnx") else "",
            "holdout_accuracy": accuracy,
            "latency": us and LatencyRecord.of(latency_of([us]), 1).model_dump(mode="json"),
        }
        for name, (accuracy, us) in files.items()
    ]
    (run / "models" / model_id / "card.json").write_text(json.dumps(card))


@pytest.fixture
def exported_run(run: Path) -> Path:
    """Return the run with files of two networks; int8 is faster for one of the two runtimes."""
    fast, _, slow, published = (model.record.id for model in open_run(run).models)
    export_files(
        run,
        slow,
        {
            "onnx": (0.93, 300.0),
            "onnx-int8": (0.92, 200.0),
            "tflite": (0.93, 250.0),
            "torch": (0.99, 1.0),
            "openvino-int8": (0.99, None),
        },
    )
    export_files(run, fast, {"onnx": (0.90, 50.0), "onnx-int8": (0.91, 60.0)})
    export_files(run, published, {"onnx": (0.99, 9.0), "onnx-int8": (0.99, 9.0)})
    return run


def test_int8_file_is_joined_with_the_float32_file_of_its_runtime(exported_run):
    _, middle, slow, _ = open_run(exported_run).models
    (pair,) = slow.precision_pairs
    assert [point.file.format for point in pair] == ["onnx", "onnx-int8"]
    assert [(point.latency_us, point.accuracy) for point in pair] == [(300, 0.93), (200, 0.92)]
    assert middle.precision_pairs == []


def test_choice_of_a_file_equals_brute_force_over_the_files_of_the_front(exported_run):
    opened = open_run(exported_run)
    fast, _, slow, _ = (model.record.id for model in opened.models)
    files = [  # A format without an int8 file, and what was not timed, are not to choose from.
        (0.93, 300, slow, "onnx"),
        (0.92, 200, slow, "onnx-int8"),
        (0.90, 50, fast, "onnx"),
        (0.91, 60, fast, "onnx-int8"),
    ]
    for limit in (50, 60, 70, 200, 250, 300):
        expected = max(file for file in files if file[1] <= limit)
        pick = opened.pick(max_latency_ms=limit / 1000, int8=True, most_accurate=True)
        assert (pick.file.holdout_accuracy, pick.file.latency_us, pick.id, pick.file.format) == (
            expected
        )
        assert pick.path == exported_run / "models" / pick.id / f"model.{pick.file.format}"
    with pytest.raises(InfeasibleError, match=r"No file .*/model\.onnx \(onnx\).* by 25\.0%"):
        opened.pick(max_latency_ms=0.04, int8=True)
    assert opened.pick().file is None
    assert opened.pick().path is None


def test_select_names_the_file_to_deploy(exported_run, invoke):
    fast = open_run(exported_run).models[0].record.id
    limits = ("--int8", "--most-accurate", "--max-latency-ms", 0.1)
    result = invoke("select", exported_run, *limits)
    first, *_, other = result.stdout.splitlines()
    assert first.startswith(f"Deploy {exported_run}/models/{fast}/model.onnx-int8 (onnx-int8): ")
    assert "hold-out accuracy 91.0%" in first
    assert "0.06 ms in the fastest rounds and typically 0.06 ms on AMD EPYC" in first
    assert other.startswith(f"models/{fast}/model.onnx (onnx): hold-out accuracy 90.0%")
    document = json.loads(invoke("select", exported_run, *limits, "--json").stdout)
    assert document["id"] == fast
    assert document["file"]["path"] == f"{exported_run}/models/{fast}/model.onnx-int8"
    assert document["file"]["latency_us"] == 60


def test_without_int8_files_select_says_how_to_make_them(run, invoke):
    result = invoke("select", run, "--int8")
    assert result.returncode == 2
    ids = [each.id for each in open_run(run).members if each.trained_accuracy is not None]
    picks = " ".join(f"--pick {name}" for name in ids)
    assert f"nas export {run} {picks} --format onnx,onnx-int8" in result.stderr


@pytest.mark.parametrize(
    ("device", "is_drawn"),
    [
        ({"runtime": "onnxruntime"}, True),
        ({"runtime": "onnxruntime", "threads": 2}, False),  # The files were timed with one thread.
    ],
)
def test_report_shows_both_precisions_in_table_and_picture(exported_run, device, is_drawn):
    record = json.loads((exported_run / "run.json").read_text())
    record["job"]["device"] |= device
    (exported_run / "run.json").write_text(json.dumps(record))
    text = page.build(open_run(exported_run)).read_text()
    for expected in (
        "onnx-int8, int8",
        "0.67 times the latency of onnx, -1.00 points",
        "1.20 times the latency of onnx, +1.00 points",
    ):
        assert (expected in text) is is_drawn, expected
    pairs = report_document(open_run(exported_run)).pairs
    assert [pair.formats for pair in pairs] == [("onnx", "onnx-int8")] * (3 if is_drawn else 0)
