"""Quantisation-aware fine-tuning on digits."""

import numpy as np
import pytest

from nas.deploy.model import normalised
from nas.deploy.quantisation import FineTuning
from nas.deploy.quantisation.fine_tuning import fine_tune
from nas.errors import ExportError
from nas.quantisation import quantise, simulate
from nas.quantisation.post_training import assemble
from tests.deploy.digits_models import digits, digits_model
from tests.deploy.quantisation.uneven import uneven_model

SETTINGS = FineTuning(steps=40, learning_rate=1e-3, device="cpu")


def tuned(model, settings=SETTINGS, progress=None):
    images = normalised(digits().train, model.preprocessing)[:128]
    before = quantise(model.graph, model.weights, images)
    weights, affines = fine_tune(
        model.graph,
        model.weights,
        model.weights,
        before.activations,
        digits(),
        8,
        settings,
        seed=0,
        progress=progress,
    )
    return before, assemble(model.graph, weights, affines, images, 8)


def test_rounded_network_comes_closer_to_its_teacher():
    model = uneven_model()
    before, after = tuned(model)
    images = normalised(digits().search, model.preprocessing)
    classes = model.logits(images).argmax(1)
    agreements = [float((simulate(q, images).argmax(1) == classes).mean()) for q in (before, after)]
    assert agreements[1] > agreements[0] + 0.1


def test_same_arguments_give_the_same_network():
    model = digits_model("mobilenet")
    settings = FineTuning(steps=3, device="cpu")
    (_, one), (_, other) = (tuned(model, settings) for _ in range(2))
    assert one.activations == other.activations
    for slot, weight in one.weights.items():
        np.testing.assert_array_equal(weight, other.weights[slot])


def test_images_are_mirrored_as_the_settings_say():
    """Digits are not mirrored unless the settings of the training did so."""
    model = digits_model("mobilenet")
    results = [
        tuned(model, FineTuning(steps=2, device="cpu", flip=flip))[1]
        for flip in (None, False, True)
    ]
    weights = [np.concatenate([w.ravel() for w in each.weights.values()]) for each in results]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()


def test_trained_ranges_of_a_relu6_end_at_six():
    _, after = tuned(digits_model("mobilenet"), FineTuning(steps=5, device="cpu"))
    for at, op in enumerate(after.graph.ops):
        if op.kind == "relu6":
            assert after.activations[at].high <= 6.00001


def test_progress_reaches_one():
    fractions = []
    tuned(digits_model("shufflenet"), FineTuning(steps=4, device="cpu"), fractions.append)
    assert fractions == [0.25, 0.5, 0.75, 1.0]


def test_divergence_is_an_error():
    with pytest.raises(ExportError, match="diverged in step") as caught:
        tuned(uneven_model(), FineTuning(steps=40, learning_rate=float("inf"), device="cpu"))
    assert caught.value.remedy
