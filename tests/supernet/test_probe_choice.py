"""The choice between a training and a linear probe, with images that neither of them learned."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nas.data import ImageDataset, Images
from nas.supernet import probe_choice
from nas.supernet.probe_choice import is_probe_better
from nas.supernet.recipe import Recipe

NONE = Images(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int64))


@pytest.fixture
def data() -> ImageDataset:
    """Return 40 training images that are numbered by their pixels, and no others."""
    pixels = np.repeat(np.arange(40, dtype=np.uint8), 4).reshape(40, 2, 2, 1)
    groups = np.arange(40) // 4
    train = Images(pixels, np.arange(40) // 2 % 2, groups)
    parts = dict.fromkeys(("search", "holdout", "test"), NONE)
    return ImageDataset("numbers", ("a", "b"), train, **parts, flip_preserves_class=None)


@pytest.mark.parametrize(
    ("probe_errors", "training_errors", "expected"),
    [({3}, {3, 9}, True), ({3, 9}, {3}, False), ({3}, {9}, False)],
)
def test_more_right_answers_choose_and_each_is_of_a_network_that_did_not_learn_the_image(
    data, monkeypatch, probe_errors, training_errors, expected
):
    learned = {"probe": [], "training": []}

    def learn(name, own):
        learned[name].append(own)
        return SimpleNamespace(name=name, seen=set(own.train.pixels[:, 0, 0, 0].tolist()))

    def answer(network, own, images):
        numbers = images.pixels[:, 0, 0, 0]
        groups = {number // 4 for number in network.seen}
        assert groups.isdisjoint((numbers // 4).tolist())
        errors = probe_errors if network.name == "probe" else training_errors
        assert own.mean == pytest.approx(own.train.pixels.mean() / 255)
        return images.labels ^ np.isin(numbers, list(errors))

    weights = object()
    for name, what in (
        ("probed_network", lambda network, published, own, **_: learn("probe", own)),
        ("published_state", lambda network, published, own, **_: {"published": own}),
        (
            "train_standalone",
            lambda graph, own, settings, *, start, **_: learn("training", start["published"]),
        ),
        ("predict_network", answer),
    ):
        monkeypatch.setattr(probe_choice, name, what)
    chosen = is_probe_better(
        SimpleNamespace(graph=None),
        weights,
        data,
        Recipe(),
        seed=0,
        device=torch.device("cpu"),
    )
    assert chosen == expected
    for each in learned.values():
        assert [len(own.train) for own in each] == [20, 20]
    counts = [np.bincount(own.train.labels) for own in learned["training"]]
    assert np.array_equal(counts, [[10, 10], [10, 10]])


def test_balanced_metric_counts_classes_alike(data, monkeypatch):
    """The probe errs on one of 36 images of a class, the training on one of 4 of the other."""
    labels = (np.arange(40) >= 36).astype(np.int64)
    data = replace(data, train=Images(data.train.pixels, labels), metric="balanced_accuracy")
    for name in ("probed_network", "published_state"):
        monkeypatch.setattr(probe_choice, name, lambda *_, name=name, **__: name)
    monkeypatch.setattr(probe_choice, "train_standalone", lambda *_, **__: "training")

    def answer(network, own, images):
        wrong = 39 if network == "training" else 0
        return images.labels ^ (images.pixels[:, 0, 0, 0] == wrong)

    monkeypatch.setattr(probe_choice, "predict_network", answer)
    arguments = (SimpleNamespace(graph=None), None, data, Recipe())
    assert is_probe_better(*arguments, seed=0, device=torch.device("cpu"))
