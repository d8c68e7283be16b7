"""Rankings, and the text of intervals."""

import math
from pathlib import Path

import pytest

from nas.supernet.ranking_records import IntervalRecord, read_ranking

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


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


def test_standalone_range_holds_most_networks():
    ranking = read_ranking(EXAMPLE).spaces["squeezenet_tiny"]
    differences = [each.standalone_accuracy - each.supernet_accuracy for each in ranking.networks]
    low, high = ranking.standalone_range(0.5)
    assert (low + high) / 2 == pytest.approx(0.5 + ranking.offset.value)
    assert sum(low <= 0.5 + each <= high for each in differences) >= 0.9 * len(differences)
    assert ranking.standalone_range(0.999)[1] == 1
