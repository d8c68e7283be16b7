"""Networks drawn, trained alone, and kept; on the digits."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nas.errors import CheckpointError, RequestError, TrainingError
from nas.supernet import TrainingSettings, evaluate, ground_truth, standalone
from nas.supernet.evaluation import evaluate_by_class, evaluate_network
from nas.supernet.ground_truth import FILE, compare, draw, van_der_corput
from nas.supernet.standalone import train_alone
from tests.supernet.scrambled_supernet import scrambled, space_on

ONE = TrainingSettings(epochs=1, device="cpu")


def test_van_der_corputs_sequence_by_hand():
    assert [van_der_corput(i) for i in range(8)] == [
        0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8,
    ]  # fmt: skip


def test_spread_networks_lie_over_the_whole_range(digits):
    space = space_on(digits, "mobilenet_tiny")
    found = draw(space, 16, seed=0)
    sizes = np.log([each.macs for each in found])
    assert len({each.digest for each in found}) == 16
    low, high = (np.log(each.macs) for each in (space.smallest, space.largest))
    counts, _ = np.histogram(sizes, bins=4, range=(sizes.min(), sizes.max()))
    assert counts.tolist() == pytest.approx([4, 4, 4, 4], abs=1)
    assert sizes.max() - sizes.min() > 0.7 * (high - low)
    assert draw(space, 5, seed=0) == found[:5], "a smaller draw is the start of a larger one"
    assert draw(space, 5, seed=1) != found[:5]


def test_uniform_networks_are_those_of_the_space(digits):
    space = space_on(digits, "squeezenet_tiny")
    found = draw(space, 6, seed=3, how="uniform")
    rng = np.random.default_rng(3)
    assert found[0] == space.sample(rng)
    assert len({each.digest for each in found}) == 6
    with pytest.raises(RequestError):
        draw(space, 0, seed=0)


def test_a_small_space_has_no_more_networks_than_it_has(digits):
    space = space_on(digits, "squeezenet_tiny")
    few = itertools.cycle(itertools.islice(space.enumerate(), 7))
    found = draw(
        SimpleNamespace(lower=space.lower, sample=lambda rng: next(few)), 9, seed=0, how="uniform"
    )
    assert len(found) == 7


def test_a_network_alone_learns_and_is_a_function_of_its_seed(digits):
    space = space_on(digits, "squeezenet_tiny")
    graph = space.largest.graph
    settings = replace(ONE, epochs=12, learning_rate=0.3)
    steps = []
    network = train_alone(
        graph, digits, settings, seed=1, progress=lambda done, of: steps.append((done, of))
    )
    assert evaluate_network(network, digits, "holdout") > 0.8
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    first, again, other = (
        train_alone(graph, digits, ONE, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(TrainingError, match=r"diverged .* Lower learning_rate"):
        train_alone(graph, digits, replace(ONE, learning_rate=1e30, warmup=0), seed=0)


def test_an_accuracy_is_the_share_of_right_answers(digits):
    space = space_on(digits, "squeezenet_tiny")
    network = train_alone(space.smallest.graph, digits, ONE, seed=0)
    images = digits.search
    mean, std = (torch.from_numpy(each) for each in (digits.mean, digits.std))
    x = ((torch.from_numpy(images.pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        right = network(x).argmax(1).numpy() == images.labels
    assert evaluate_network(network, digits, "search") == pytest.approx(right.mean())


def test_classes_make_up_the_whole(digits):
    space = space_on(digits, "mobilenet_tiny")
    supernet = scrambled(space)
    whole = evaluate(supernet, [space.largest], digits)[0]
    same, classes = evaluate_by_class(supernet, space.largest, digits)
    assert same == whole
    counts = np.bincount(digits.search.labels, minlength=10)
    assert list(classes) == list(digits.classes)
    total = sum(classes[name] * n for name, n in zip(digits.classes, counts, strict=True))
    assert total / counts.sum() == pytest.approx(whole)
    few = replace(digits, classes=(*digits.classes, "ten"))
    supernet = scrambled(space_on(few, "mobilenet_tiny"))
    assert evaluate_by_class(supernet, supernet.space.largest, few)[1]["ten"] is None


def test_what_was_trained_alone_is_kept(digits, tmp_path, monkeypatch):
    space = space_on(digits, "squeezenet_tiny")
    supernet = scrambled(space)
    drawn = draw(space, 3, seed=0)
    seen = []
    first = compare(
        supernet, drawn[:2], digits, tmp_path, ONE, seed=0, progress=lambda *each: seen.append(each)
    )
    done, total, text = seen[-1]
    assert done == total
    assert text == "network 2 of 2"
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [row["digest"] for row in rows] == [each.digest for each in first]
    assert [row["holdout_accuracy"] for row in rows] == [each.alone_accuracy for each in first]
    for each, architecture in zip(first, drawn, strict=False):
        graph = architecture.graph
        assert (each.macs, each.params, each.depth) == (graph.macs, graph.params, graph.depth)
        assert each.supernet_accuracy == evaluate(supernet, [architecture], digits)[0]
        assert each.space == "squeezenet_tiny"

    trained = []
    real = standalone.train_alone
    monkeypatch.setattr(
        ground_truth,
        "train_alone",
        lambda graph, *a, **k: trained.append(graph) or real(graph, *a, **k),
    )
    # A process that was killed while it wrote leaves half a line.
    with (tmp_path / FILE).open("a") as file:
        file.write('{"schema": 1, "spa')
    with pytest.warns(UserWarning, match="half-written"):
        again = compare(supernet, drawn, digits, tmp_path, ONE, seed=0)
    assert again[:2] == first
    assert [graph.digest for graph in trained] == [again[2].digest]
    compare(supernet, drawn[:1], digits, tmp_path, ONE, seed=1)
    assert len(trained) == 2, "another seed is another truth"

    (tmp_path / FILE).write_text('{"schema": 99}\n')
    with pytest.raises(CheckpointError, match="schema 99"):
        compare(supernet, drawn, digits, tmp_path, ONE, seed=0)
