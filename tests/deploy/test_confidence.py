"""Confidence: closed forms and brute force for what is pure, and real networks on digits."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax

from nas.deploy.confidence import (
    _last_module,
    calibrate,
    calibration_error,
    coverage,
    fit_temperature,
    make_threshold,
    smallest_threshold,
)
from nas.deploy.model import normalised, preprocessing_of
from nas.space import load_space
from nas.supernet.evaluation import network_logits
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_standalone
from nas.torch_network import to_torch

RNG = np.random.default_rng(0)


def drawn_labels(logits: np.ndarray) -> np.ndarray:
    """Return labels that are drawn with the probabilities of the logits."""
    bounds = softmax(logits, axis=1).cumsum(1)
    return (RNG.random((len(logits), 1)) > bounds).sum(1).clip(max=logits.shape[1] - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fit_recovers_the_temperature_of_the_labels(temperature):
    logits = RNG.normal(0, 2, (40_000, 5))
    labels = drawn_labels(logits)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_temperature_of_two_classes_has_a_closed_form():
    # All images have the logits (1, 0). With 80 of 100 right, and one that is half right, the
    # probability of the first class is 80.5 / 101, and its log-odds are 1 / temperature.
    logits = np.tile([1.0, 0.0], (100, 1))
    labels = np.array([0] * 80 + [1] * 20)
    share = 80.5 / 101
    assert fit_temperature(logits, labels) == pytest.approx(
        1 / np.log(share / (1 - share)), rel=1e-3
    )


def test_network_that_is_always_right_is_not_certain():
    logits = 30 * np.eye(10)[np.arange(100) % 10]
    scaled = logits / fit_temperature(logits, np.arange(100) % 10)
    # The share of the right class is that of the rule: 100 right images and one random image.
    assert softmax(scaled, axis=1).max(1)[0] == pytest.approx((100 + 0.1) / 101, rel=1e-3)


def test_calibration_error_is_that_of_a_loop_over_the_bins():
    probabilities = softmax(RNG.normal(0, 2, (500, 4)), axis=1)
    probabilities[0] = [1, 0, 0, 0]
    labels = RNG.integers(0, 4, 500)
    expected = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        own = [i for i, p in enumerate(probabilities) if low < p.max() <= high]
        if own:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in own])
            confidence = np.mean([probabilities[i].max() for i in own])
            expected += len(own) / 500 * abs(accuracy - confidence)
    assert calibration_error(probabilities, labels) == pytest.approx(expected)


def test_coverage_counts_answered_images_and_right_answers():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    rows = coverage(probabilities, np.array([0, 1, 1]), [0.0, 0.65, 0.95])
    assert [(row.answered, row.accuracy) for row in rows] == [
        (1, pytest.approx(2 / 3)),
        (pytest.approx(2 / 3), 1),
        (0, None),
    ]


@pytest.mark.parametrize("unknown_count", [0, 15])
@pytest.mark.parametrize("min_accuracy", [0.5, 0.8, 0.9, 1.0])
def test_threshold_is_the_smallest_that_reaches_the_accuracy(min_accuracy, unknown_count):
    for _ in range(50):
        # Rounded, so that images have equal confidences.
        confidences = RNG.uniform(0.2, 1, 40).round(2)
        right = RNG.random(40) < confidences
        unknown = RNG.uniform(0.2, 0.9, unknown_count).round(2)
        expected = None
        for candidate in (0.0, *sorted({*confidences, *unknown})):
            answers = (confidences >= candidate).sum() + (unknown >= candidate).sum()
            if right[confidences >= candidate].sum() >= min_accuracy * answers:
                expected = candidate
                break
        chosen = smallest_threshold(confidences, right, unknown, min_accuracy)
        if expected is None:
            assert chosen is None
            continue
        for each in (confidences, unknown):
            assert ((each >= chosen) == (each >= expected)).all()


def test_threshold_has_as_few_decimals_as_tell_the_images_apart():
    right = np.array([True, True, False])
    assert smallest_threshold(np.array([0.98, 0.8912, 0.8877]), right, np.zeros(0), 1) == 0.89
    assert smallest_threshold(np.array([0.98, 0.95, 0.65]), right, np.zeros(0), 1) == 0.7
    assert smallest_threshold(np.array([0.9, 0.8, 0.7]), ~right, np.zeros(0), 0.1) == 0


def test_threshold_counts_an_answer_to_an_unknown_image_as_wrong():
    logits = np.log([[0.95, 0.05], [0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    labels, unknown = np.array([0, 0, 0, 1]), np.log([[0.85, 0.15]])
    without = make_threshold(logits, labels, min_accuracy=1.0)
    assert (without.min_confidence, without.answered, without.right) == (0.7, 3, 3)
    with_unknown = make_threshold(logits, labels, unknown, min_accuracy=1.0)
    assert 0.85 < with_unknown.min_confidence <= 0.9
    assert with_unknown.answered == 2
    assert (with_unknown.unknown, with_unknown.unknown_answered) == (1, 0)
    given = make_threshold(logits, labels, unknown, min_confidence=0.75)
    assert (given.answered, given.right, given.unknown_answered) == (3, 3, 1)
    assert given.accuracy == 0.75
    assert "3 of 4 hold-out images and 1 of 1 images of no class; 75.0%" in given.summary


def test_threshold_that_nothing_reaches_says_so():
    logits, labels = np.log([[0.9, 0.1], [0.8, 0.2]]), np.array([1, 0])
    result = make_threshold(logits, labels, min_accuracy=0.9)
    assert result.min_confidence is None
    assert result.answered == 2
    assert result.summary.startswith("no threshold makes 0.9 of the answers right on 2 hold-out")


@pytest.mark.parametrize("space", ["mobilenet_tiny", "squeezenet_tiny"])
def test_calibration_divides_the_logits_and_changes_no_prediction(digits, space):
    architecture = load_space(space, image_size=8, channels=1, classes=10).sample(seed=1)
    settings = Recipe(epochs=2, learning_rate=0.2)
    network = train_standalone(architecture.graph, digits, settings, seed=0)
    before = network_logits(network, digits, digits.holdout)
    again = copy.deepcopy(network)
    result = calibrate(network, digits)
    after = network_logits(network, digits, digits.holdout)
    np.testing.assert_allclose(after * result.temperature, before, rtol=1e-4, atol=1e-4)
    assert (after.argmax(1) == before.argmax(1)).all()
    own = normalised(digits.holdout, preprocessing_of(digits))
    with torch.no_grad():
        exported = network(torch.from_numpy(own)).numpy()
    np.testing.assert_allclose(exported, after, rtol=1e-3, atol=1e-3)
    assert result.images == len(digits.search)
    labels = digits.holdout.labels
    assert result.error == pytest.approx(
        calibration_error(softmax(after, axis=1), labels), abs=0.02
    )
    assert result.coverage[0].answered == 1
    assert result.coverage[0].accuracy == pytest.approx((after.argmax(1) == labels).mean())
    assert calibrate(again, digits) == result, "a resumed run gets the same temperature"
    assert fit_temperature(
        network_logits(network, digits, digits.search), digits.search.labels
    ) == pytest.approx(1, rel=0.01)


@pytest.mark.slow
def test_networks_of_all_published_spaces_can_be_calibrated():
    for name in ("mobilenet", "shufflenet", "squeezenet"):
        graph = load_space(name, image_size=32, channels=3, classes=7).smallest.graph
        module = _last_module(to_torch(graph))
        assert module is not None
        assert module.weight.shape[0] == 7
