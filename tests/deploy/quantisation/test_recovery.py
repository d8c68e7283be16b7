"""The search for a quantised network that loses little accuracy."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from nas.deploy.quantisation import FineTuning, quantise_within, recovery
from nas.deploy.quantisation.recovery import native_weight_bits
from nas.errors import RequestError
from nas.quantisation import simulate
from nas.records import Int8Summary, to_json
from nas.supernet.evaluation import choose_calibration_images
from tests.deploy.digits_models import GRAPHS, digits, digits_model
from tests.deploy.quantisation.uneven import uneven_model

SHORT = FineTuning(steps=20, learning_rate=1e-3, device="cpu")
RANGES = ["min-max", "percentile", "least squares"]


class Unreadable:
    """Test images that nothing may read."""

    def __getattr__(self, name):
        raise AssertionError("the test images were read")


def data():
    return replace(digits(), test=Unreadable())


def methods(result):
    return [attempt.method for attempt in result.summary.attempts]


@pytest.mark.parametrize("name", GRAPHS)
def test_families_are_within_the_limit(name):
    """A limit of one point: half a point of these 719 images is 3 images."""
    result = quantise_within(digits_model(name), data(), max_drop=0.01, fine_tuning=SHORT)
    summary = result.summary
    assert result.is_within_limit
    assert summary.float_accuracy - summary.accuracy <= 0.01
    assert methods(result) == ["min-max"]
    assert summary.attempts[0].agreement > 0.95


def test_equalisation_saves_a_network_of_uneven_channels():
    result = quantise_within(uneven_model(), data(), max_drop=0.01, fine_tuning=SHORT)
    assert methods(result) == [*RANGES, "equalisation"]
    assert result.summary.method == "equalisation"
    assert all(attempt.drop > 0.2 for attempt in result.summary.attempts[:3])
    assert result.is_within_limit


def test_all_methods_are_tried_and_the_best_is_returned(monkeypatch):
    monkeypatch.setattr(recovery, "equalise", lambda graph, weights: None)
    seen = []
    result = quantise_within(
        uneven_model(),
        data(),
        max_drop=0.0,
        fine_tuning=SHORT,
        progress=lambda method, fraction: seen.append(method),
    )
    expected = [*RANGES, "bias correction", "fine-tuning"]
    assert methods(result) == expected
    assert [method for method in dict.fromkeys(seen) if method != "equalisation"] == expected
    attempts = {attempt.method: attempt for attempt in result.summary.attempts}
    best = max(attempts.values(), key=lambda attempt: attempt.accuracy)
    assert result.summary.method == best.method
    assert result.summary.accuracy == best.accuracy
    assert not result.is_within_limit
    for attempt in attempts.values():
        assert attempt.drop == pytest.approx(result.summary.float_accuracy - attempt.accuracy)
        assert attempt.seconds > 0


def test_accuracy_is_that_of_the_returned_network_on_the_validation_images():
    from nas.deploy.model import normalised

    model = digits_model("mobilenet_v3")
    result = quantise_within(model, data(), fine_tuning=SHORT)
    right = [
        simulate(result.network, normalised(part, model.preprocessing)).argmax(1) == part.labels
        for part in (digits().search, digits().holdout)
    ]
    assert result.summary.accuracy == np.concatenate(right).mean()
    assert result.summary.validation_images == sum(map(len, right))


def test_training_that_fails_leaves_the_best_network_of_the_methods_before_it(monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(recovery, "equalise", lambda graph, weights: None)
    monkeypatch.setattr(recovery, "fine_tune", fail)
    with pytest.warns(UserWarning, match="RuntimeError: out of memory. The int8 network is that"):
        result = quantise_within(uneven_model(), data(), max_drop=0.0, fine_tuning=SHORT)
    assert methods(result) == [*RANGES, "bias correction"]
    assert result.summary.accuracy == max(each.accuracy for each in result.summary.attempts)


def test_first_method_that_fails_is_an_error(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(recovery, "measure", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        quantise_within(uneven_model(), data(), fine_tuning=SHORT)


def test_all_training_images_calibrate_if_they_are_few():
    train = digits().train
    few = replace(data(), train=train.take(np.arange(5)))
    summary = quantise_within(digits_model("squeezenet"), few, max_drop=1.0).summary
    assert summary.calibration_images == 5
    assert summary.float_accuracy - summary.accuracy < 0.05


def test_calibration_images_are_training_images_and_are_recorded():
    summary = quantise_within(digits_model("squeezenet"), data(), fine_tuning=SHORT).summary
    images = choose_calibration_images(digits().train, 256)
    assert summary.calibration_images == 256
    digest = hashlib.sha256(np.ascontiguousarray(images.pixels).data).hexdigest()
    assert summary.calibration_digest == digest[:16]
    assert Int8Summary.model_validate_json(to_json(summary)) == summary


@pytest.mark.parametrize("limit", [-0.1, 1.5])
def test_limit_that_is_no_fraction_is_refused(limit):
    with pytest.raises(RequestError, match="largest loss of accuracy") as caught:
        quantise_within(digits_model("squeezenet"), digits(), max_drop=limit)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        (("avx2", "fma"), 7),
        (("avx512f", "avx512_vnni"), 8),
        (("avx2", "avx_vnni"), 8),
        (("asimd", "asimddp"), 8),
        ((), 8),
    ],
)
def test_weights_have_seven_bits_where_products_overflow(monkeypatch, features, bits):
    monkeypatch.setattr(recovery, "processor", lambda: ("a processor", features))
    assert native_weight_bits() == bits
