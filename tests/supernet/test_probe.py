"""Linear probes, against scikit-learn's logistic regression."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from nas.data import Images, load_dataset
from nas.space import load_space
from nas.supernet.evaluation import predict_network
from nas.supernet.probe import (
    STRENGTHS,
    features_graph,
    fit_probe,
    image_features,
    probed_state,
)
from nas.torch_network import Network, run_graph, to_torch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data():
    whole = load_dataset("digits", seed=0)
    chosen = np.random.default_rng(0).permutation(len(whole.train))[:120]
    return replace(whole, train=whole.train.take(chosen))


@pytest.fixture(scope="module", params=["mobilenet_tiny", "squeezenet_tiny"])
def network(request, data) -> Network:
    """A network with random weights; the classifier of one of them is a convolution."""
    space = load_space(request.param, image_size=8, channels=1, classes=10)
    return to_torch(space.sample(seed=0), seed=0).eval()


def test_features_are_what_the_classifier_reads(network, data):
    images = data.search.take(slice(0, 5))
    pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.from_numpy(each)[:, None, None] for each in (data.mean, data.std))
    body = features_graph(network.graph)
    with torch.no_grad():
        outputs = run_graph(body, (pixels - mean) / std, network)
    features = image_features(network.graph, network.tensors(), data, images)
    torch.testing.assert_close(features, outputs.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_features_that_hardly_vary_get_no_large_weights():
    """Weights of eight bits share a scale, which one large weight would decide."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(90, 40)) + rng.normal(size=(3, 40))[labels]
    features[:, 5] *= 1e-3
    data = SimpleNamespace(classes="abc", metric="accuracy")
    probe = fit_probe(torch.from_numpy(features).float(), Images(features, labels), data)
    assert probe.weight[:, 5].abs().max() < probe.weight.abs().median()


@pytest.mark.parametrize(("count", "size"), [(160, 12), (90, 100)])
def test_probe_is_the_logistic_regression_with_the_best_strength(count, size):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    features = rng.normal(size=(count, size)) + rng.normal(size=(3, size))[labels] / 3
    data = SimpleNamespace(classes="abc", metric="accuracy")
    probe = fit_probe(torch.from_numpy(features).float(), Images(features, labels), data)
    scaled = (features - features.mean(0)) / features.std(0)

    def regression(strength):
        return LogisticRegression(C=1 / (strength * count), max_iter=5000)

    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    errors = [
        -cross_val_score(regression(each), scaled, labels, cv=folds, scoring="neg_log_loss").mean()
        for each in STRENGTHS
    ]
    # Other folds may prefer a neighbour.
    near = STRENGTHS[max(0, np.argmin(errors) - 1) : np.argmin(errors) + 2]
    own = features @ probe.weight.numpy().T + probe.bias.numpy()
    own -= own.mean(1, keepdims=True)
    differences = []
    for strength in near:
        theirs = regression(strength).fit(scaled, labels).decision_function(scaled)
        theirs -= theirs.mean(1, keepdims=True)
        differences.append(abs(own - theirs).max() / abs(theirs).max())
    assert min(differences) < 0.03
    accuracy = cross_val_score(regression(near[0]), scaled, labels, cv=folds).mean()
    assert (probe.predicted == labels).mean() == pytest.approx(accuracy, abs=0.1)


def test_network_with_a_probe_classifies_as_the_probe_does(network, data):
    state = probed_state(network.graph, network.tensors(), data)
    probed = Network(network.graph, torch.Generator()).eval()
    probed.load_state_dict(state)
    features = image_features(network.graph, state, data, data.train)
    probe = fit_probe(features, data.train, data)
    own = probe.classify(image_features(network.graph, state, data, data.search))
    answers = predict_network(probed, data, data.search)
    assert (own == answers).mean() > 0.99
    accuracy = data.score(answers, data.search.labels)
    assert accuracy == pytest.approx((probe.predicted == data.train.labels).mean(), abs=0.15)
