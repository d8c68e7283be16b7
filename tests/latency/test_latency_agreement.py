from __future__ import annotations

import itertools

import numpy as np
import pytest

from nas.errors import RequestError
from nas.statistics import agreement, close_pairs_in_order


def test_close_pairs_by_counting() -> None:
    rng = np.random.default_rng(4)
    measured = rng.uniform(100, 130, 15)
    predicted = measured * rng.uniform(0.95, 1.05, 15)
    found = []
    for i, j in itertools.combinations(range(15), 2):
        low, high = sorted((measured[i], measured[j]))
        if 1.03 <= high / low <= 1.10:
            found.append((predicted[i] < predicted[j]) == (measured[i] < measured[j]))
    assert 0 < sum(found) < len(found)
    assert close_pairs_in_order(predicted, measured) == pytest.approx(sum(found) / len(found))


def test_only_pairs_3_to_10_percent_apart_are_close() -> None:
    assert close_pairs_in_order([1, 2], [100, 102]) is None
    assert close_pairs_in_order([1, 2], [100, 111]) is None
    assert close_pairs_in_order([1, 2], [100, 105]) == 1
    assert close_pairs_in_order([2, 1], [100, 105]) == 0
    # Two networks that are predicted alike leave the choice to chance.
    assert close_pairs_in_order([1, 1], [100, 105]) == 0


def test_the_figures() -> None:
    found = agreement([96, 208, 327, 600], [100, 200, 300, 400])
    assert found.nets == 4
    assert found.mape == pytest.approx((0.04 + 0.04 + 0.09 + 0.5) / 4)
    assert found.bias == pytest.approx((-0.04 + 0.04 + 0.09 + 0.5) / 4)
    assert (found.within_5_percent, found.within_10_percent) == (0.5, 0.75)
    assert (found.kendall_tau, found.pairs_3_to_10) == (1.0, None)
    assert found.to_json()["mape"] == found.mape


def test_two_networks_have_no_order_and_none_no_figures() -> None:
    assert agreement([1, 2], [1, 2]).kendall_tau is None
    with pytest.raises(RequestError, match="No network"):
        agreement([], [])
