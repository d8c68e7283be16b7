"""The experiment that finds out whether mirrored images keep their class."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from nas.data import Images
from nas.supernet import mirroring
from nas.supernet.mirroring import MAX_P_VALUE, judge_mirroring, run_mirroring_experiment
from tests.supernet.drawings import make_data

NAMES = ("left", "right", "ring", "disc")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(mirroring, "STEPS", 40)


def test_mirroring_keeps_shapes_without_left_and_right():
    result = run_mirroring_experiment(make_data(("ring", "disc"), 90), seed=0)
    assert result.accuracy > 0.95
    assert (result.changes_class, result.is_reliable) == (False, True)
    assert result.changed_classes == []


def test_arrows_among_other_classes_are_named():
    calls = []
    result = run_mirroring_experiment(
        make_data(NAMES, 160), seed=0, progress=lambda *call: calls.append(call[:2])
    )
    assert result.images == 160, "each image is classified once"
    assert (result.changes_class, result.is_reliable) == (True, True)
    assert set(result.changed_classes) == {"left", "right"}
    assert calls == [(step + 1, 120) for step in range(120)]


def test_many_images_are_classified_in_part(monkeypatch):
    monkeypatch.setattr(mirroring, "MAX_IMAGES", 90)
    monkeypatch.setattr(mirroring, "ENOUGH_CLASSIFIED", 30)
    assert run_mirroring_experiment(make_data(NAMES, 200), seed=0).images == 30


@pytest.mark.parametrize("groups", [1, 2])
def test_images_of_few_groups_are_classified(groups):
    data = make_data(("ring", "disc"), 60)
    train = replace(data.train, groups=np.arange(60) // 2 % groups)
    result = run_mirroring_experiment(replace(data, train=train), seed=0)
    assert result.images == 60
    assert not result.changes_class


def test_nothing_is_decided_where_nothing_can_be_learned():
    data = make_data(NAMES, 90)
    labels = np.random.default_rng(1).permutation(data.train.labels)
    result = run_mirroring_experiment(
        replace(data, train=Images(data.train.pixels, labels)), seed=0
    )
    assert (result.changes_class, result.is_reliable) == (False, False)


@pytest.mark.parametrize("images", [2, 9])
def test_too_few_images_decide_nothing(images):
    result = run_mirroring_experiment(make_data(("left", "right"), images), seed=0)
    assert (result.images, result.changes_class, result.is_reliable) == (0, False, False)


def test_result_depends_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(mirroring, "ENOUGH_CLASSIFIED", 20)
    data = make_data(NAMES, 60)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = run_mirroring_experiment(data, seed=3)
    assert torch.equal(torch.rand(3), expected), "draws of the caller change"
    assert run_mirroring_experiment(data, seed=3) == one


def judge(plain, mirrored, labels=None, classes=("a", "b")):
    labels = np.arange(len(plain)) % len(classes) if labels is None else labels
    return judge_mirroring(np.array(plain, bool), np.array(mirrored, bool), labels, classes)


@pytest.mark.parametrize(("lost", "gained"), [(9, 0), (10, 0), (30, 9), (30, 10), (40, 60)])
def test_losses_count_if_chance_explains_them_too_seldom(lost, gained):
    """200 images, 100 of each class, with the losses and gains spread over both."""
    plain = [True] * lost + [False] * gained + [True] * (100 - lost)
    plain += [False] * (200 - len(plain))
    mirrored = [False] * lost + [True] * gained + plain[lost + gained :]
    p_value = binomtest(lost, lost + gained, alternative="greater").pvalue
    above_chance = np.mean(plain) - 0.5
    loss = np.mean(plain) - np.mean(mirrored)
    is_expected = p_value <= MAX_P_VALUE and loss >= 0.2 * above_chance
    assert judge(plain, mirrored).changes_class == is_expected


def test_small_share_of_the_accuracy_is_no_loss():
    """Photos of things that are mostly seen from one side lose a little."""
    plain = [True] * 900 + [False] * 100
    mirrored = [False] * 50 + plain[50:]
    assert binomtest(50, 50, alternative="greater").pvalue < MAX_P_VALUE
    assert not judge(plain, mirrored).changes_class
    assert judge(plain, [False] * 100 + plain[100:]).changes_class


def test_one_class_among_many_decides():
    labels = np.arange(2000) % 20
    plain = np.ones(2000, bool)
    mirrored = labels != 7
    result = judge(plain, mirrored, labels, [f"class {n}" for n in range(20)])
    assert (result.changes_class, result.changed_classes) == (True, ["class 7"])
    mirrored |= np.arange(2000) < 1000  # Half of the class is still recognised.
    assert not judge(plain, mirrored, labels, [f"class {n}" for n in range(20)]).changes_class
