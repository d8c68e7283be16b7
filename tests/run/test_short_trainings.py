"""Scores of candidates after short trainings."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from nas.run.short_trainings import ShortTraining, with_short_trainings

SCORES = pd.DataFrame(
    {
        "digest": ["gaaa", "gbbb", "gccc", "gddd"],
        "validation_accuracy": [0.5, 0.6, 0.7, 0.8],
        "corrected_accuracy": [0.55, np.nan, np.nan, 0.85],
    }
)


def trained(epochs: float, **accuracies: float) -> list[ShortTraining]:
    return [
        ShortTraining(schema=1, digest=digest, epochs=epochs, accuracy=accuracy)
        for digest, accuracy in accuracies.items()
    ]


def test_short_trainings_order_their_networks_on_the_scale_of_the_scores():
    rows = with_short_trainings(SCORES, trained(2, gaaa=0.9, gbbb=0.8, gccc=0.85))
    corrected = rows["corrected_accuracy"].tolist()
    assert corrected[0] > corrected[2] > corrected[1]
    assert np.diff(logit(corrected[:3])) == pytest.approx(np.diff(logit([0.9, 0.8, 0.85])))
    before = logit([0.55, 0.6, 0.7]).mean()
    assert logit(corrected[:3]).mean() == pytest.approx(before), "others are compared with them"
    assert corrected[3] == 0.85
    assert SCORES["corrected_accuracy"].isna().sum() == 2, "the rows themselves stay"


def test_longer_trainings_decide_between_those_that_have_them():
    short = trained(1, gaaa=0.9, gbbb=0.8, gccc=0.85)
    rows = with_short_trainings(SCORES, trained(2, gaaa=0.85, gccc=0.95) + short)
    corrected = rows["corrected_accuracy"].tolist()
    assert corrected[2] > corrected[0]
    first = with_short_trainings(SCORES, short)["corrected_accuracy"].tolist()
    assert corrected[1] == first[1]
    pair = logit([corrected[0], corrected[2]]).mean()
    assert pair == pytest.approx(logit([first[0], first[2]]).mean())


def test_correction_that_is_made_again_changes_nothing():
    trainings = trained(1, gaaa=0.9, gbbb=0.7, gccc=0.85) + trained(2, gaaa=0.85, gccc=0.95)
    once = with_short_trainings(SCORES, trainings)
    again = with_short_trainings(once, trainings)
    assert again["corrected_accuracy"].tolist() == pytest.approx(
        once["corrected_accuracy"].tolist(), abs=1e-6
    )


def test_saturated_scores_are_corrected_once():
    """Logits beyond that of 0.9999, as which a score of 1 counts, are not cut when read again."""
    perfect = SCORES.assign(validation_accuracy=1.0, corrected_accuracy=np.nan)
    trainings = trained(1, gaaa=0.9967, gbbb=0.9, gccc=1.0) + trained(2, gaaa=1.0, gccc=0.99)
    once = with_short_trainings(perfect, trainings)
    again = with_short_trainings(once, trainings)
    assert once["corrected_accuracy"].nunique() == 3
    assert again["corrected_accuracy"].tolist() == pytest.approx(
        once["corrected_accuracy"].tolist(), abs=1e-6, nan_ok=True
    )


def test_network_that_stays_perfect_does_not_fall_behind_perfect_scores():
    perfect = SCORES.assign(validation_accuracy=1.0, corrected_accuracy=1.0)
    rows = with_short_trainings(perfect, trained(1, gaaa=1.0, gbbb=1.0, gccc=0.99))
    first, second, third, untrained = rows["corrected_accuracy"]
    assert first == second == untrained == 1
    assert third < 1


def test_without_short_trainings_all_scores_stay():
    pd.testing.assert_frame_equal(with_short_trainings(SCORES, []), SCORES)
