"""The report of a study."""

import re

import pytest

from nas.report.study import study_table, study_text, write_study
from nas.run.study import read_study
from nas.run.study_comparison import StudyComparison
from tests.markdown import ROOT
from tests.run.test_study import network, study


@pytest.fixture
def record():
    networks = [
        network("a", latency_us=1000.0),
        network("b", latency_us=2000.0),
        network("published_1.0", "published", 1000.0),
        network("published_2.0", "published", 2000.0),
        network("random-a-1", "random", 1010.0, found="a"),
    ]
    accuracies = {
        "a": [0.7, 0.72],
        "b": [0.8, 0.82],
        "published_1.0": [0.68, 0.7],
        "published_2.0": [0.8, 0.81],
        "random-a-1": [0.6, None],
    }
    return study(networks, accuracies)


def test_table_has_a_row_for_each_training(record):
    rows = study_table(record)
    assert len(rows) == 10
    row = rows[(rows["network"] == "published_2.0") & (rows["seed"] == 1)].iloc[0]
    assert (row["kind"], row["test_accuracy"], row["latency_us"]) == ("published", 0.81, 2000)
    assert (row["epochs"], row["space"], row["error"]) == (30, "mobile", "")
    assert rows["test_accuracy"].isna().sum() == 1
    assert list(study_table(record.model_copy(update={"trainings": ()})).columns) == list(rows)


def test_report_has_figure_and_tables_and_is_the_same_when_written_again(record, tmp_path):
    write_study(tmp_path, record)
    text = (tmp_path / "study.md").read_text()
    assert "| a | mobile | 1 ms | 71.0% (70.0 to 72.0) | +11.0 |" in text
    assert re.search(r"\| published_1.0 \| 1 ms \| 69.0% .*2.0 points .* more accurate", text)
    assert "trainings have ended" not in text
    svg = (tmp_path / "study.svg").read_text()
    for word in ("published_1.0", "found", "measured latency", "test accuracy"):
        assert word in svg
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"study.csv", "study.json", "study.md", "study.svg", "study.png"}
    write_study(tmp_path, read_study(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_committed_study_is_what_its_record_says():
    folder = ROOT / "results/study"
    record = read_study(folder)
    assert record is not None
    assert (folder / "study.csv").read_text() == study_table(record).to_csv(index=False)
    assert (folder / "study.md").read_text() == study_text(record, StudyComparison.of(record))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_interrupted_study_has_a_report_that_says_so(record, tmp_path, count):
    write_study(tmp_path, record.model_copy(update={"trainings": record.trainings[:count]}))
    assert f"{count} of 10 trainings have ended" in (tmp_path / "study.md").read_text()
