import itertools

import numpy as np
import pandas as pd
import pytest

from nas.report.agreement import agreement


def test_against_definitions():
    rng = np.random.default_rng(0)
    measured = rng.uniform(10, 20, 12)
    predicted = measured * rng.uniform(0.85, 1.15, 12)
    found = agreement(pd.DataFrame({"measured_us": measured, "predicted_us": predicted}))
    assert found is not None
    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    assert found.mape == pytest.approx(sum(errors) / 12)
    assert found.within_5_percent == sum(e <= 0.05 for e in errors) / 12
    pairs = list(itertools.combinations(range(12), 2))
    agree = sum((predicted[i] < predicted[j]) == (measured[i] < measured[j]) for i, j in pairs)
    assert found.kendall_tau == pytest.approx((2 * agree - len(pairs)) / len(pairs))


def test_only_rows_with_both_numbers_count():
    table = pd.DataFrame({"measured_us": [10.0, np.nan, 20.0], "predicted_us": [11.0, 5.0, 20.0]})
    found = agreement(table)
    assert found is not None
    assert (found.nets, found.mape, found.kendall_tau) == (2, pytest.approx(0.05), None)
    assert agreement(table.iloc[1:2]) is None
