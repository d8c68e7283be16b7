"""The report of a run, with whole and with damaged files."""

import html
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nas.errors import RunFolderError
from nas.opened_run import open_run
from nas.report import page
from nas.report.document import ReportDocument, report_document
from nas.run import candidates
from tests.plans.cases import complementary_run, copy_of_example
from tests.report.cases import change_record

WRITTEN = ("front.csv", "front.json", "report.html")
LOG = "supernets/mobilenet_tiny/training.jsonl"


@pytest.fixture
def run(untrained_run: Path) -> Path:
    (untrained_run / "report.html").write_text("the report of before")
    return untrained_run


def embedded_document(text: str) -> ReportDocument:
    """Return the document that a page holds."""
    embedded = re.search(r'<script type="application/json" id="report">(.*?)</script>', text)
    assert embedded
    return ReportDocument.model_validate_json(embedded[1])


def test_report_has_the_figures_of_the_search_and_the_ranking(run):
    assert page.build(open_run(run)) == run / "report.html"
    text = (run / "report.html").read_text()
    document = embedded_document(text)
    opened = open_run(run)
    volumes = [row.hypervolume for row in opened.history if row.hypervolume is not None]
    assert document.hypervolume[0].y == volumes
    assert opened.ranking
    assert len(document.ranked) == sum(own.nets for own in opened.ranking.spaces.values())
    assert [member.id for member in document.members] == opened.front["id"].tolist()
    assert document.progress is None
    assert 'id="progress"' not in text
    assert "http-equiv" not in text
    (shown,) = re.findall(r'<section id="trust">.*?</section>', text, re.DOTALL)
    for row in document.trust.rows:
        assert f'<th scope="row">{row.topic}<br>' in shown
    assert html.unescape(shown).count(document.trust.summary) == 1


def test_large_fronts_are_not_compared_in_words(run, monkeypatch):
    count = len(open_run(run).members)
    for most, compared in ((count, count - 1), (count - 1, 0)):
        monkeypatch.setattr("nas.report.document.MAX_COMPARED", most)
        members = report_document(open_run(run)).members
        assert {len(member.comparisons) for member in members} == {compared}


def test_training_that_estimates_its_steps_anew_is_a_curve_that_goes_forwards(run):
    rows = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    for index, row in enumerate(rows[:-1]):
        row["steps"] *= 1 + index % 3
    (run / LOG).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (line, *_) = embedded_document(page.build(open_run(run)).read_text()).training_loss
    assert line.x == sorted(line.x)
    assert line.x[-1] == round(100 * rows[-1]["step"] / rows[-1]["steps"], 2)


def test_report_says_what_the_record_says(run):
    changes = {
        "data.summary": "24 images of 2 classes: <cat> 12, dog 12; train 14",
        "image_changes": {"flip": True, "shift": 4, "is_from_job": True},
        "data.problems": ["1 class has fewer than 10 images: <script>"],
    }
    change_record(run, changes)
    text = page.build(open_run(run)).read_text()
    assert "(24 images of 2 classes: &lt;cat&gt; 12, dog 12; train 14)" in text
    assert "training images are shifted by up to 4 pixels and mirrored at random" in text
    assert "1 class has fewer than 10 images: &lt;script&gt;" in text


def test_report_names_members_that_are_launches_more_than_kernels(run):
    first, second = open_run(run).front["digest"][:2]
    rows = pd.read_csv(run / "trials.csv", dtype=str)
    rows["dispatch_share"] = rows["digest"].map({first: 0.625, second: 0.5})
    rows.to_csv(run / "trials.csv", index=False)
    page.build(open_run(run))
    members = json.loads((run / "front.json").read_text())["front"]
    assert [m["dispatch_share"] for m in members[:3]] == [0.625, 0.5, None]
    text = (run / "report.html").read_text()
    assert text.count("62% launches") == 1
    assert f"In 1 of {len(members)} networks of the front, launches have more of the" in text


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("trials.csv", r"0\.\d+", "nan", "line 2 .* validation_accuracy is 'nan'"),
        ("run.json", '"schema": 6', '"schema": 7', "has schema 7; this version reads schema 6"),
        ("run.json", '"spaces": {\n  "mob', '"spaces": {\n  "../../mob', r"spaces\.\.\./"),
        ("run.json", '"data": {\n  "me', '"date": {\n  "me', "has no data yet: the job has"),
        (LOG, '"loss": 2.2', '"loss": "', "line 1 is not a training log"),
        ("hypervolume.csv", r"0\.\d+$", "inf", r"line \d+ .* hypervolume is 'inf'"),
        ("ranking.json", '"schema": 3', '"schema": 4', "has schema 4; this version reads schema 3"),
    ],
)
def test_damaged_file_is_named_and_nothing_is_written(run, name, before, after, words):
    path = run / name
    text = path.read_text()
    changed = re.sub(before, after, text, count=1, flags=re.MULTILINE)
    assert changed != text
    path.write_text(changed)
    contents = {each: (run / each).read_bytes() for each in WRITTEN}
    with pytest.raises(RunFolderError, match=rf"{Path(name).name}.*{words}"):
        page.build(open_run(run))
    assert {each: (run / each).read_bytes() for each in WRITTEN} == contents


def test_report_shows_cascades_and_whether_they_are_better(run, tmp_path):
    without = embedded_document(page.build(open_run(run)).read_text())
    assert without.cascades is None
    for name, is_better in (("better", True), ("equal", False)):
        own = (complementary_run if is_better else copy_of_example)(tmp_path / name)
        text = page.build(open_run(own)).read_text()
        section = embedded_document(text).cascades
        assert section
        plan = open_run(own).cascades()
        chosen = plan.choose()
        assert section.chosen == chosen
        assert chosen.is_better == is_better
        start = "<p>" if is_better else '<p class="note">'
        assert f"{start}{html.escape(plan.verdict_of(chosen))}</p>" in text
        (shown,) = re.findall(r'<section id="cascades">.*?</section>', text, re.DOTALL)
        assert shown.count("<tr><td>") == len(section.curve)
        assert (": shown" in shown) == any(each.is_better for each in section.curve)


BEGUN = {
    "prepare": ("device", "image_changes", "batch_size", "tables", "supernets"),
    "latency table": ("tables", "supernets"),
    "supernet mobilenet_tiny": ("supernets",),
    "search": (),
}
"""Stages of the example run, with what it does not know yet when each of them begins."""


@pytest.mark.parametrize("stage", BEGUN)
def test_report_of_a_run_that_has_only_begun_says_what_is_missing(run, stage):
    remaining = [*list(BEGUN)[list(BEGUN).index(stage) :], "measure the front"]
    record = json.loads((run / "run.json").read_text())
    for name in (*BEGUN[stage], "search", "study", "correction", "finalists", "score_images"):
        record.pop(name, None)
    (run / "run.json").write_text(json.dumps({**record, "remaining": remaining}))
    for name in ("trials.csv", "hypervolume.csv", "ranking.json", "measurements.jsonl"):
        (run / name).unlink()
    if stage != "search":
        shutil.rmtree(run / "supernets")
    text = page.build(open_run(run)).read_text()
    assert f"it was interrupted in {stage}. The search has scored no architecture yet." in text
    assert "The front is empty: no architecture was scored yet." in text
    document = embedded_document(text)
    assert document.progress
    assert document.progress.remaining == tuple(remaining)
    assert document.progress.command == f"nas run {run}/job.toml --out {run}"
    assert (document.front, document.members, document.networks.id) == ([], [], [])
    assert json.loads((run / "front.json").read_text())["front"] == []


def test_report_says_that_the_front_of_a_search_is_predicted(run):
    change_record(run, {"search": None, "remaining": ["search", "measure the front", "export"]})
    rows = pd.read_csv(run / "trials.csv", dtype=str).head(200)
    rows[["measured_us", "holdout_accuracy"]] = None
    rows.to_csv(run / "trials.csv", index=False)
    scored = int((rows["state"] == "complete").sum())
    progress = embedded_document(page.build(open_run(run)).read_text()).progress
    assert progress
    sentences = " ".join(progress.sentences)
    assert f"scored 300 architectures, of which this page has {scored}." in sentences
    assert "The front is predicted: no network was timed as a whole yet." in sentences
    assert "Not begun: measure the front, export." in sentences


def test_latencies_have_one_unit_in_tables_plots_and_limits(untrained_run):
    """Architectures that were tried and not scored do not decide the unit."""
    rows = candidates.read(untrained_run / "trials.csv")
    slow = rows.index[-1]
    rows.loc[slow, ["state", "predicted_us"]] = "infeasible", 5e6
    candidates.write(rows, untrained_run / "trials.csv")
    text = page.build(open_run(untrained_run)).read_text()
    assert '<th class="number">predicted, ms</th>' in text
    assert 'const unit = {"name": "ms", "us": 1000.0};' in text
    assert '"label":"latency, ms"' in text
    assert "latency, µs" not in text
