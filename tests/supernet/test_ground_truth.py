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
from nas.supernet.recipe import Recipe
from tests.supernet.scrambled_supernet import scrambled, space_on

ONE_EPOCH = Recipe(epochs=1, device="cpu")


def test_networks_trained_standalone_are_not_trained_again(few_digits, tmp_path, monkeypatch):
    space = space_on(few_digits, "squeezenet_tiny")
    supernet = scrambled(space)
    drawn = [space.sample(seed=seed) for seed in range(3)]

    def compare(drawn, **options):
        settings = {"seed": 0, **options}
        return compare_with_standalone(supernet, drawn, few_digits, tmp_path, ONE_EPOCH, **settings)

    seen = []
    judged = compare(drawn[:2], repeated=1, progress=lambda *each: seen.append(each))
    first = judged["holdout"]
    done, total, text = seen[-1]
    assert done == total
    assert text.startswith("network 3 of 3: loss ")
    log = tmp_path / STANDALONE_FILE
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["digest"], row["seed"]) for row in rows] == [
        (drawn[0].digest, 0), (drawn[1].digest, 0), (drawn[0].digest, 1),
    ]  # fmt: skip
    accuracies = [row["holdout_accuracy"] for row in rows]
    assert [each.standalone_accuracy for each in first] == accuracies[:2]
    assert [each.repeated_accuracy for each in first] == [accuracies[2], None]
    on_search = [row["search_accuracy"] for row in rows]
    assert on_search != accuracies
    assert [each.standalone_accuracy for each in judged["search"]] == on_search[:2]
    assert [each.repeated_accuracy for each in judged["search"]] == [on_search[2], None]
    scores = evaluate(supernet, drawn[:2], few_digits)
    assert [each.supernet_accuracy for each in judged["search"]] == scores
    for each, architecture, score in zip(first, drawn, scores, strict=False):
        assert (each.macs, each.supernet_accuracy) == (architecture.macs, score)
        assert each.architecture.space == "squeezenet_tiny"
    trained = []
    real = standalone.train_standalone
    monkeypatch.setattr(
        ground_truth,
        "train_standalone",
        lambda graph, *a, **k: trained.append(graph.digest) or real(graph, *a, **k),
    )
    # A process that is killed while it writes leaves half a line.
    with log.open("a") as file:
        file.write('{"schema": 1, "spa')
    with pytest.warns(UserWarning, match="half-written"):
        again = compare(drawn)["holdout"]
    assert [each.standalone_accuracy for each in again[:2]] == accuracies[:2]
    assert trained == [again[2].digest]
    compare(drawn[1:2], seed=1)
    assert len(trained) == 2, "another seed is another training"
    log.write_text('{"schema": 99}\n')
    with pytest.raises(CheckpointError, match="schema 99"):
        compare(drawn)


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
