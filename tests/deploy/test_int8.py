"""The quantised network of a trained model, and what is recorded of it."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from nas.deploy import int8
from nas.deploy.int8 import quantise_within
from nas.deploy.model import TrainedModel, normalised
from nas.errors import RequestError
from nas.files.documents import to_json
from nas.quantisation.simulation import simulate
from nas.run.model_card import Int8Summary
from nas.supernet.evaluation import choose_calibration_images
from nas.torch_network import to_torch
from tests.deploy.digits_models import digits, digits_model


class Unreadable:
    """Images that nothing may read, because they judge what is chosen."""

    def __getattr__(self, name):
        raise AssertionError("hold-out or test images were read")


def data():
    return replace(digits(), holdout=Unreadable(), test=Unreadable())


def methods(result):
    return [attempt.method for attempt in result.summary.attempts]


@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet", "squeezenet_without_norm"])
def test_families_are_within_the_limit(name):
    """A limit of one point: half a point of these 479 images is 2 images."""
    model = digits_model(name)
    result = quantise_within(model, data(), max_drop=0.01)
    summary = result.summary
    assert summary.float_accuracy - summary.accuracy <= 0.01
    assert methods(result) == ["min-max"]
    assert summary.attempts[0].agreement > 0.95
    images = digits().search
    logits = simulate(result.network, normalised(images, model.preprocessing))
    assert summary.accuracy == (logits.argmax(1) == images.labels).mean()
    assert summary.validation_images == len(images)
    images = choose_calibration_images(digits().train, 256)
    assert summary.calibration_images == 256
    digest = hashlib.sha256(np.ascontiguousarray(images.pixels).data).hexdigest()
    assert summary.calibration_digest == digest[:16]
    assert Int8Summary.model_validate_json(to_json(summary)) == summary


def test_all_methods_are_tried_and_the_best_is_returned(monkeypatch):
    """Ranges of a tenth ruin the network; the other method is tried, and its network returned."""
    monkeypatch.setitem(int8._RANGE_METHODS, "min-max", lambda h: (0.1 * h.low, 0.1 * h.high))
    seen = []
    result = quantise_within(
        digits_model("shufflenet"), data(), max_drop=0.01, progress=seen.append
    )
    first, second = result.summary.attempts
    assert methods(result) == seen == ["min-max", "least squares"]
    assert first.drop > 0.2
    assert second.drop <= 0.01
    assert (result.summary.method, result.summary.accuracy) == (second.method, second.accuracy)
    for attempt in (first, second):
        assert attempt.drop == pytest.approx(result.summary.float_accuracy - attempt.accuracy)
        assert attempt.seconds > 0


def test_a_refit_is_quantised_as_the_weights_decided_that_did_not_learn_the_images():
    model = digits_model("shufflenet")
    other = to_torch(model.network.graph, seed=1)
    shipped = TrainedModel(None, other, model.preprocessing, judged=model)
    result = quantise_within(shipped, data(), max_drop=0.01)
    alone = quantise_within(model, data(), max_drop=0.01)
    assert alone.judged is alone.network
    attempts = [
        [attempt.model_copy(update={"seconds": 0.0}) for attempt in each.summary.attempts]
        for each in (result, alone)
    ]
    assert attempts[0] == attempts[1]
    images = normalised(digits().search.take(slice(0, 40)), model.preprocessing)
    np.testing.assert_array_equal(simulate(result.judged, images), simulate(alone.network, images))
    logits, expected = simulate(result.network, images), shipped.logits(images)
    assert np.abs(logits - expected).max() < 0.3 * expected.std()


def test_all_training_images_calibrate_if_they_are_few():
    train = digits().train
    few = replace(data(), train=train.take(np.arange(5)))
    summary = quantise_within(digits_model("shufflenet"), few, max_drop=1.0).summary
    assert summary.calibration_images == 5
    assert summary.float_accuracy - summary.accuracy < 0.05


@pytest.mark.parametrize("limit", [-0.1, 1.5])
def test_limit_that_is_no_fraction_is_refused(limit):
    with pytest.raises(RequestError, match="largest loss of accuracy") as caught:
        quantise_within(digits_model("shufflenet"), digits(), max_drop=limit)
    assert caught.value.exit_status == 2
