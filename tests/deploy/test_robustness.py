import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from nas.data import Images
from nas.deploy import robustness
from nas.deploy.model import TrainedModel
from nas.deploy.robustness import (
    ATTACK_BOUNDS,
    ATTACK_STEPS,
    attacked,
    attacked_images,
    measure_attacks,
    measure_confidence,
    measure_robustness,
)
from nas.deploy.verify import sample_images

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("macs", "images"), [(10**6, 200), (10**7, 166), (3 * 10**7, 55), (10**9, 50)]
)
def test_large_networks_are_attacked_with_fewer_images(macs, images):
    assert attacked_images(macs) == images


@pytest.mark.parametrize("channels", [1, 3])
def test_changes_are_those_that_their_names_state(channels):
    pixels = RNG.integers(60, 200, (4, 16, 16, channels), np.uint8)
    changes = dict(robustness._changes(pixels))
    assert all(c.shape == pixels.shape and c.dtype == np.uint8 for c in changes.values())
    assert (changes["none"] == pixels).all()
    shifted = changes["brightness +0.2 of the range"].astype(int) - pixels
    assert set(shifted.ravel().tolist()) == {51}
    noise = changes["Gaussian noise, deviation 0.05 of the range"].astype(float) - pixels
    assert noise.std() == pytest.approx(0.05 * 255, rel=0.1)
    assert abs(noise.mean()) < 2
    image = Image.fromarray(pixels[0, :, :, 0] if channels == 1 else pixels[0])
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(0.5)))
    assert (changes["Gaussian blur, radius 0.5 pixels"][0].squeeze() == blurred).all()
    content = io.BytesIO()
    image.save(content, "JPEG", quality=20)
    expected = np.asarray(Image.open(content))
    assert (changes["JPEG, quality 20"][0].squeeze() == expected).all()


def test_accuracy_without_a_change_is_that_of_the_model(trained, digits):
    rows = measure_robustness(trained, digits.holdout, digits.score)
    images = torch.from_numpy((digits.holdout.pixels / 255 - digits.mean) / digits.std)
    with torch.no_grad():
        classes = trained.network(images.permute(0, 3, 1, 2).float()).argmax(1).numpy()
    expected = float((classes == digits.holdout.labels).mean())
    assert rows[0].change == "none"
    assert rows[0].accuracy == pytest.approx(expected, abs=1 / len(digits.holdout))
    assert len(rows) == 9


def linear_model(weights: torch.Tensor, side: int) -> TrainedModel:
    """Return a model whose logits are products of weights `classes x pixels` with the pixels."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(side * side, len(weights), bias=False))
    network[1].weight.data = weights
    network.graph = SimpleNamespace(macs=weights.numel())
    return TrainedModel(None, network, SimpleNamespace(image_size=side, mean=(0.3,), std=(0.4,)))


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("bound", ATTACK_BOUNDS)
def test_attack_of_a_linear_network_is_the_strongest_one(scale, bound):
    """Each pixel moves by the whole bound against the class, also where answers are confident."""
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.normal(0, scale, (2, 64)).astype(np.float32))
    model = linear_model(weights, 8)
    pixels = rng.integers(0, 256, (60, 8, 8, 1), np.uint8)
    labels = model.pixel_logits(pixels).argmax(1)
    margins = np.abs(np.diff(model.pixel_logits(pixels)))
    assert (margins.max() > 20) == (scale == 1), "float32 holds no probability so close to 1"
    signs = np.sign(weights.numpy()[1 - labels] - weights.numpy()[labels]).reshape(pixels.shape)
    expected = (pixels + bound * signs).clip(0, 255)
    np.testing.assert_array_equal(attacked(model, pixels, labels, bound), expected)


def test_attacks_are_those_of_foolbox(trained, digits):
    foolbox = pytest.importorskip("foolbox")
    images, how = sample_images(digits.holdout, 200), trained.preprocessing
    rows = measure_attacks(trained, images, digits.score)
    assert rows[0].accuracy == digits.score(
        trained.pixel_logits(images.pixels).argmax(1), images.labels
    )
    mean, std = torch.tensor(how.mean), torch.tensor(how.std)
    other = foolbox.PyTorchModel(
        trained.network,
        bounds=(0, 1),
        device="cpu",
        preprocessing={"mean": mean, "std": std, "axis": -3},
    )
    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / ATTACK_STEPS, steps=ATTACK_STEPS)
    inputs = torch.from_numpy(images.pixels / 255).permute(0, 3, 1, 2).float()
    for bound, row in zip(ATTACK_BOUNDS, rows[1:], strict=True):
        *_, wrong = attack(other, inputs, torch.from_numpy(images.labels), epsilons=bound / 255)
        assert abs((1 - row.accuracy) * len(images.labels) - int(wrong.sum())) <= 3
        assert f"up to {bound} of 255" in row.change
    assert rows[2].accuracy < rows[1].accuracy < rows[0].accuracy


def test_attack_leaves_the_accuracy_of_wrong_answers(trained, digits):
    """An image that the attack moves to its right class by accident stays wrong."""
    images = digits.holdout.take(slice(0, 60))
    wrong = Images(images.pixels, (trained.pixel_logits(images.pixels).argmin(1)))
    rows = measure_attacks(trained, wrong, digits.score)
    assert {row.accuracy for row in rows} == {0}
    for bound in ATTACK_BOUNDS:
        changed = attacked(trained, wrong.pixels, wrong.labels, bound)
        assert np.abs(changed.astype(int) - wrong.pixels).max() <= bound


def test_confidence_of_equal_logits_is_one_over_the_classes(trained, digits, monkeypatch):
    images = Images(digits.holdout.pixels[:8], digits.holdout.labels[:8])
    monkeypatch.setattr(TrainedModel, "pixel_logits", lambda *_: np.zeros((8, 10)))
    rows = measure_confidence(trained, images)
    assert [row.mean for row in rows] == [pytest.approx(0.1)] * 4
    assert [row.above_90_percent for row in rows] == [0] * 4
    assert [row.answered for row in rows] == [None] * 4
    monkeypatch.setattr(TrainedModel, "pixel_logits", lambda *_: np.eye(10)[:8] * 100)
    assert measure_confidence(trained, images)[0].above_90_percent == 1


def test_unknown_images_are_a_row_of_their_own_and_answers_are_counted(trained, digits):
    model = copy.copy(trained)
    model.preprocessing = trained.preprocessing.model_copy(update={"min_confidence": 0.8})
    unknown = RNG.integers(0, 256, (30, 8, 8, 1), np.uint8)
    *_, row = measure_confidence(model, digits.holdout, unknown)
    assert (row.images, row.count) == ("images of no class, from the user", 30)
    inputs = (unknown / 255 - digits.mean) / digits.std
    with torch.no_grad():
        logits = trained.network(torch.from_numpy(inputs).permute(0, 3, 1, 2).float())
    expected = (logits.softmax(1).amax(1) >= 0.8).float().mean().item()
    assert row.answered == pytest.approx(expected, abs=1 / 30)


def test_shuffled_pixels_are_those_of_the_image(trained, digits, monkeypatch):
    inputs = []

    def record(model, pixels):
        inputs.append(np.array(pixels))
        return np.zeros((len(pixels), 10))

    monkeypatch.setattr(TrainedModel, "pixel_logits", record)
    measure_confidence(trained, Images(digits.holdout.pixels[:8], digits.holdout.labels[:8]))
    images, shuffled, _, blank = inputs
    assert not (images == shuffled).all()
    for one, other in zip(images, shuffled, strict=True):
        assert sorted(one.ravel()) == sorted(other.ravel())
    assert all(len(set(each.ravel().tolist())) == 1 for each in blank)
