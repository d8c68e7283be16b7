"""Rankings, of this version and of earlier ones, and the text of intervals."""

import json
import math
from pathlib import Path

import pytest

from nas.records import IntervalRecord, read_ranking, to_json

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("run", ["example", "cifar10"])
def test_ranking_is_read_under_earlier_names_and_written_under_new_ones(run, tmp_path):
    text = (RESULTS / run / "ranking.json").read_text()
    assert '"alone_accuracy"' in text
    assert '"counted_tau"' in text
    ranking = read_ranking(RESULTS / run)
    written = to_json(ranking)
    renamed = text.replace('"alone_accuracy"', '"standalone_accuracy"')
    renamed = renamed.replace('"counted_tau"', '"baseline_tau"')
    assert json.loads(written) == json.loads(renamed)
    (tmp_path / "ranking.json").write_text(written)
    assert read_ranking(tmp_path) == ranking


def test_run_without_ranking_has_none(tmp_path):
    assert read_ranking(tmp_path) is None


def test_text_of_interval_has_digits_scale_and_sign():
    interval = IntervalRecord(value=0.684, low=0.571, high=0.802)
    assert interval.text() == "0.68 (0.57 to 0.80)"
    assert interval.text(1, scale=100, sign="+") == "+68.4 (+57.1 to +80.2)"


def test_infinite_ends_of_an_interval_are_unbounded():
    interval = IntervalRecord(value=0.5, low=-math.inf, high=math.inf)
    assert (interval.low, interval.high) == (None, None)
    assert interval.text() == "0.50 (unbounded to unbounded)"
