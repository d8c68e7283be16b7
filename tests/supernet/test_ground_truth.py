"""Architectures drawn from a space, and standalone training, on the digits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nas.errors import CheckpointError, RequestError
from nas.supernet import ground_truth, standalone
from nas.supernet.evaluation import evaluate
from nas.supernet.ground_truth import (
    STANDALONE_FILE,
    compare_with_standalone,
    draw_matched,
)
from nas.supernet.settings import TrainingSettings
from tests.supernet.scrambled_supernet import scrambled, space_on

ONE_EPOCH = TrainingSettings(epochs=1, device="cpu")


def test_networks_trained_standalone_are_not_trained_again(digits, tmp_path, monkeypatch):
    space = space_on(digits, "squeezenet_tiny")
    supernet = scrambled(space)
    drawn = [space.sample(seed=seed) for seed in range(3)]
    seen = []
    first = compare_with_standalone(
        supernet,
        drawn[:2],
        digits,
        tmp_path,
        ONE_EPOCH,
        seed=0,
        progress=lambda *each: seen.append(each),
    )
    done, total, text = seen[-1]
    assert done == total
    assert text == "network 2 of 2"
    rows = [json.loads(line) for line in (tmp_path / STANDALONE_FILE).read_text().splitlines()]
    assert [row["digest"] for row in rows] == [each.digest for each in first]
    assert [row["holdout_accuracy"] for row in rows] == [each.standalone_accuracy for each in first]
    for each, architecture in zip(first, drawn, strict=False):
        assert each.macs == architecture.macs
        assert each.supernet_accuracy == evaluate(supernet, [architecture], digits)[0]
        assert each.architecture.space == "squeezenet_tiny"

    trained = []
    real = standalone.train_standalone
    monkeypatch.setattr(
        ground_truth,
        "train_standalone",
        lambda graph, *a, **k: trained.append(graph) or real(graph, *a, **k),
    )
    # A process that is killed while it writes leaves half a line.
    with (tmp_path / STANDALONE_FILE).open("a") as file:
        file.write('{"schema": 1, "spa')
    with pytest.warns(UserWarning, match="half-written"):
        again = compare_with_standalone(supernet, drawn, digits, tmp_path, ONE_EPOCH, seed=0)
    assert again[:2] == first
    assert [graph.digest for graph in trained] == [again[2].digest]
    compare_with_standalone(supernet, drawn[:1], digits, tmp_path, ONE_EPOCH, seed=1)
    assert len(trained) == 2, "another seed is another training"

    (tmp_path / STANDALONE_FILE).write_text('{"schema": 99}\n')
    with pytest.raises(CheckpointError, match="schema 99"):
        compare_with_standalone(supernet, drawn, digits, tmp_path, ONE_EPOCH, seed=0)


@pytest.mark.slow
def test_matched_draw_has_networks_of_equal_cost_in_each_budget(digits):
    space = space_on(digits, "mobilenet")
    drawn = draw_matched(space, 20, lambda each: float(each.macs), seed=0)
    assert len({each.digest for each in drawn}) == 20
    means = []
    for budget in range(5):
        macs = np.array([each.macs for each in drawn[budget::5]])
        assert macs.max() / macs.min() <= 1.05 / 0.95
        means.append(macs.mean())
    steps = np.diff(np.log(means))
    assert steps == pytest.approx(np.full(4, steps.mean()), rel=0.25), "evenly in the logarithm"
    assert draw_matched(space, 7, lambda each: float(each.macs), seed=0) == drawn[:7]


def test_matched_draw_leaves_out_networks_without_a_cost(digits):
    space = space_on(digits, "mobilenet_tiny")
    limit = float(np.median([space.sample(seed=seed).macs for seed in range(50)]))
    drawn = draw_matched(
        space, 10, lambda each: None if each.macs > limit else float(each.macs), seed=0
    )
    assert len(drawn) == 10
    assert all(each.macs <= limit for each in drawn)
    with pytest.raises(RequestError, match="at least 1 network"):
        draw_matched(space, 0, lambda each: 1.0, seed=0)
    with pytest.raises(RequestError, match="The cost of no architecture of mobilenet_tiny"):
        draw_matched(space, 5, lambda each: None, seed=0)


def test_networks_are_trained_again_with_another_seed(digits, tmp_path):
    space = space_on(digits, "squeezenet_tiny")
    supernet = scrambled(space)
    drawn = [space.sample(seed=seed) for seed in range(3)]
    ranked = compare_with_standalone(
        supernet, drawn, digits, tmp_path, ONE_EPOCH, seed=0, repeated=2
    )
    rows = [json.loads(line) for line in (tmp_path / STANDALONE_FILE).read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 0, 0, 1, 1]
    assert [each.repeated_accuracy for each in ranked] == [
        rows[3]["holdout_accuracy"], rows[4]["holdout_accuracy"], None,
    ]  # fmt: skip
