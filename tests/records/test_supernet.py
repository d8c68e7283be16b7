"""Rankings, of this version and of earlier ones, and the text of intervals."""

import json
import math
from pathlib import Path

import pytest

from nas.records import IntervalRecord, read_ranking, to_json

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("run", ["tests/early_run", "results/cifar10"])
def test_ranking_is_read_under_earlier_names_and_written_under_new_ones(run, tmp_path):
    text = (ROOT / run / "ranking.json").read_text()
    assert '"alone_accuracy"' in text
    assert '"counted_tau"' in text
    ranking = read_ranking(ROOT / run)
    written = to_json(ranking)
    renamed = text.replace('"alone_accuracy"', '"standalone_accuracy"')
    renamed = renamed.replace('"counted_tau"', '"baseline_tau"')
    expected = json.loads(renamed)
    for space in expected["spaces"].values():
        del space["strata"]  # Groups of similar size took the place of equal latency.
    assert _without_none(json.loads(written)) == _without_none(expected)
    (tmp_path / "ranking.json").write_text(written)
    assert read_ranking(tmp_path) == ranking


def _without_none(value):
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


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
    ranking = read_ranking(ROOT / "results" / "cifar10").spaces["mobilenet_tiny"]
    inside = 0
    for network in ranking.networks:
        low, high = ranking.standalone_range(network.supernet_accuracy)
        assert (low + high) / 2 == pytest.approx(network.supernet_accuracy + ranking.offset.value)
        inside += low <= network.standalone_accuracy <= high
    assert inside >= 0.9 * len(ranking.networks)
    assert ranking.standalone_range(0.999)[1] == 1
