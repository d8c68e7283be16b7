from dataclasses import replace

import numpy as np
import pytest
import torch

from nas.data import load_dataset
from nas.data.batches import sequential_batches
from nas.errors import DataError, RequestError
from nas.supernet import evaluation
from nas.supernet.evaluation import (
    CALIBRATION_BATCH_SIZE,
    accuracy_by_class,
    choose_calibration_images,
    evaluate,
    evaluate_in_rounds,
    evaluate_network,
    largest_plausible_accuracy,
    predict,
    round_ends,
    sampling_variance,
)
from nas.torch_network import Network, to_torch
from tests.supernet.scrambled_supernet import TINY, scrambled, space_on

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", TINY)
def test_evaluate_returns_the_accuracy_of_the_extracted_network(digits, name):
    space = space_on(digits, name)
    supernet = scrambled(space)
    rng = np.random.default_rng(0)
    for architecture in (space.largest, space.sample(rng)):
        graph = architecture.graph
        # The order matters: each batch is normalised by its own statistics.
        calibration = choose_calibration_images(digits.train)
        batches = [
            x for x, _ in sequential_batches(calibration, digits, CALIBRATION_BATCH_SIZE, CPU)
        ]
        network = Network(graph, torch.Generator()).eval()
        network.load_state_dict(supernet.extract(graph, supernet.calibrate(graph, batches)))
        (batch,) = sequential_batches(digits.search, digits, 1000, CPU)
        accuracy = (network(batch[0]).argmax(1) == batch[1]).float().mean().item()
        (score,) = evaluate(supernet, [architecture], digits)
        assert score == pytest.approx(accuracy)


def test_evaluate_does_not_depend_on_the_other_architectures(digits):
    space = space_on(digits, "mobilenet_tiny")
    supernet = scrambled(space)
    rng = np.random.default_rng(0)
    architectures = [space.sample(rng) for _ in range(5)]
    together = evaluate(supernet, architectures, digits, "holdout")
    one_by_one = [evaluate(supernet, [a], digits, "holdout")[0] for a in reversed(architectures)]
    assert together == one_by_one[::-1]
    assert all(0 <= score <= 1 for score in together)


def test_evaluate_refuses_the_test_split(digits):
    space = space_on(digits, "mobilenet_tiny")
    with pytest.raises(RequestError, match="'test' cannot be used here. Parts: train"):
        evaluate(scrambled(space), [space.smallest], digits, "test")


def test_evaluate_refuses_data_of_another_size():
    data = load_dataset("digits", image_size=12)
    space = space_on(data, "mobilenet_tiny").adapt(image_size=8, channels=1, classes=10)
    with pytest.raises(DataError, match="the data has .*12"):
        evaluate(scrambled(space), [space.smallest], data)


def test_evaluate_network_returns_the_share_of_correct_answers(digits):
    space = space_on(digits, "squeezenet_tiny")
    network = to_torch(space.smallest.graph, seed=0).eval()
    images = digits.search
    mean, std = (torch.from_numpy(each) for each in (digits.mean, digits.std))
    x = ((torch.from_numpy(images.pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        right = network(x).argmax(1).numpy() == images.labels
    assert evaluate_network(network, digits, "search") == pytest.approx(right.mean())


def test_class_accuracies_average_to_the_accuracy(digits):
    space = space_on(digits, "mobilenet_tiny")
    supernet = scrambled(space)
    whole = evaluate(supernet, [space.largest], digits)[0]
    (answers,) = predict(supernet, [space.largest], digits, digits.search)
    same, classes = accuracy_by_class(digits, answers, digits.search.labels)
    assert same == whole
    counts = np.bincount(digits.search.labels, minlength=10)
    assert list(classes) == list(digits.classes)
    total = sum(classes[name] * n for name, n in zip(digits.classes, counts, strict=True))
    assert total / counts.sum() == pytest.approx(whole)
    few = replace(digits, classes=(*digits.classes, "ten"))
    assert accuracy_by_class(few, answers, digits.search.labels)[1]["ten"] is None


def test_rounds_end_with_the_accuracy_on_all_images(digits, monkeypatch):
    monkeypatch.setattr(evaluation, "MIN_ROUND_IMAGES", 8)
    supernet = scrambled(space_on(digits, "mobilenet_tiny"))
    architecture = supernet.space.largest
    bounds = []

    def is_hopeless(accuracy: float) -> bool:
        bounds.append(accuracy)
        return False

    score = evaluate_in_rounds(supernet, architecture, digits, is_hopeless, [])
    assert score == (evaluate(supernet, [architecture], digits)[0], len(digits.search))
    assert len(bounds) == len(round_ends(len(digits.search))) == 4
    assert bounds[-1] == pytest.approx(score.accuracy)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_known_rounds_are_not_evaluated_again(digits, monkeypatch, metric):
    monkeypatch.setattr(evaluation, "MIN_ROUND_IMAGES", 8)
    data = replace(digits, metric=metric)
    supernet = scrambled(space_on(digits, "mobilenet_tiny"))
    known: list[evaluation.RoundsScore] = []

    def score(rounds: int, known=None) -> evaluation.RoundsScore:
        seen: list[float] = []
        return evaluate_in_rounds(
            supernet,
            supernet.space.largest,
            data,
            lambda accuracy: len(seen) + 1 == rounds or seen.append(accuracy),
            [] if known is None else known,
        )

    alone = [score(rounds) for rounds in (1, 2, 4)]
    images = len(data.search)
    assert alone[0].images == (round_ends(images)[0] if metric == "accuracy" else images)
    assert [score(2, known), score(1, known), score(4, known)] == [alone[1], alone[0], alone[2]]
    monkeypatch.setattr(evaluation, "_folded_subnet", lambda *_: pytest.fail("evaluated again"))
    assert score(2, known) == alone[1]
    assert score(4, known) == alone[2]


def test_few_images_are_one_round():
    assert round_ends(1000) == [1000]
    assert round_ends(5000) == [625, 1250, 2500, 5000]


@pytest.mark.parametrize(("images", "accuracy"), [(625, 0.1), (625, 0.7), (2500, 0.98), (10, 0.5)])
def test_largest_plausible_accuracy_is_seldom_exceeded(images, accuracy):
    total = 5000
    correct = round(accuracy * total)
    samples = np.random.default_rng(0).hypergeometric(correct, total - correct, images, 20000)
    bounds = np.array([largest_plausible_accuracy(int(each), images, total) for each in samples])
    assert (bounds < accuracy).mean() < 0.004  # 0.0013 if the counts were normally distributed
    assert (bounds < accuracy + 6.5 * (accuracy * (1 - accuracy) / images) ** 0.5).mean() > 0.9
    assert (bounds <= 1).all()


@pytest.mark.parametrize(("images", "accuracy"), [(250, 0.1), (1000, 0.7), (250, 0.95), (10, 0.5)])
def test_sampling_variance_is_that_of_samples_without_replacement(images, accuracy):
    total = 2000
    correct = round(accuracy * total)
    samples = np.random.default_rng(0).hypergeometric(correct, total - correct, images, 20000)
    variances = [sampling_variance(int(each), images, total) for each in samples]
    assert np.mean(variances) == pytest.approx((samples / images).var(), rel=0.1)
    for each in (0, images):
        assert 0 < sampling_variance(each, images, total) < 1 / images**2
