"""The intervals of accuracies by part and metric."""

import pytest

from nas.run.judged import SUFFICIENT_HOLDOUT_IMAGES
from nas.run.record import DataSummary
from nas.statistics import wilson_interval

COUNTS = {"train": [700, 100], "search": [320, 80], "holdout": [80, 20], "test": [40, 10]}
IMAGES = DataSummary(source="toy", digest="0123", classes=["a", "b"], class_counts=COUNTS)


def test_interval_is_that_of_the_images_of_a_part_or_of_several():
    assert IMAGES.counts == {"train": 800, "search": 400, "holdout": 100, "test": 50}
    assert IMAGES.interval(0.9, "holdout") == wilson_interval(0.9, [100])
    assert IMAGES.interval(0.9, "search", "holdout") == wilson_interval(0.9, [500])
    assert IMAGES.interval(0.9, "search", images=50) == wilson_interval(0.9, [50])
    assert IMAGES.interval(None, "test") is None
    assert (IMAGES.text(0.9, "holdout"), IMAGES.text(None, "test")) == ("90.0% (82.6 to 94.5)", "")


def test_balanced_accuracy_is_known_by_the_images_of_each_class():
    balanced = IMAGES.model_copy(update={"metric": "balanced_accuracy"})
    assert balanced.interval(0.9, "holdout") == wilson_interval(0.9, [80, 20])
    assert balanced.interval(0.9, "search", images=100) == wilson_interval(0.9, [80, 20])
    plain = IMAGES.interval(0.9, "holdout")
    assert balanced.interval(0.9, "holdout").low < plain.low


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("few", [True, False])
def test_few_holdout_images_judge_with_those_of_the_search(metric, few):
    holdout = SUFFICIENT_HOLDOUT_IMAGES - few
    counts = {**COUNTS, "holdout": [holdout - 20, 20]}
    images = IMAGES.model_copy(update={"class_counts": counts, "metric": metric})
    assert images.judging_parts == (("search", "holdout") if few else ("holdout",))
    own = [320 + holdout - 20, 80 + 20] if few else [holdout - 20, 20]
    strata = own if metric == "balanced_accuracy" else [sum(own)]
    assert images.interval(0.9, *images.judging_parts) == wilson_interval(0.9, strata)
    name = "search and hold-out" if few else "hold-out"
    assert (images.judging_name, images.judging_images) == (name, f"{sum(own)} {name} images")
    assert ("not the weights" in images.judging_note) == few
