"""Splits by groups: no group on two sides, and every class in every part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.data.splits import MIN_TRAINING_IMAGES, groups_of, split_images
from nas.errors import DataError

CLASSES = ("ant", "bee", "cow")


def grouped(groups, pairs=()):
    own = groups_of(groups, [f"{at}.png" for at in range(len(groups))])
    return own.joined(np.array(pairs, int).reshape(-1, 2))


def split(groups, labels, splits=None, seed=0, fraction=None, pairs=()):
    source = np.full(len(labels), "train") if splits is None else np.array(splits)
    return split_images(source, np.array(labels), CLASSES, fraction, seed, grouped(groups, pairs))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 9), min_size=60, max_size=60))
def test_no_group_is_in_two_parts_for_any_seed(seed, sizes):
    groups = np.repeat(np.arange(60), sizes)
    labels = groups % 3
    parts = split([f"object {group}" for group in groups], labels, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    sides = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides))
    for part in parts:
        shares = np.bincount(labels[part], minlength=3) / len(part)
        whole = np.bincount(labels, minlength=3) / len(labels)
        assert np.abs(shares - whole).max() < 0.35


def test_parts_have_about_the_usual_sizes():
    groups = np.repeat(np.arange(300), 4)
    parts = split([str(each) for each in groups], groups % 3)
    shares = np.array([len(part) for part in parts]) / len(groups)
    assert shares == pytest.approx([0.64, 0.107, 0.053, 0.2], abs=0.02)


def test_images_of_a_group_in_the_test_split_are_left_out_of_the_others():
    labels = [0, 1, 2] * 40
    splits = ["train"] * 90 + ["test"] * 30
    groups = [f"g{at}" if at % 30 > 2 else f"shared{at % 3}" for at in range(120)]
    train, search, holdout, test = split(groups, labels, splits)
    assert len(test) == 30
    used = [groups[at] for part in (train, search, holdout) for at in part]
    assert not set(used) & {groups[at] for at in test}
    assert len(used) == 90 - 9


@pytest.mark.parametrize("has_validation", [False, True])
@pytest.mark.parametrize("has_test", [False, True])
def test_parts_that_the_source_lacks_are_divided_by_groups(has_validation, has_test):
    """Each split has as few groups of each class as there are parts to cut from it."""
    splits, groups, labels = [], [], []
    counts = {"train": 4 - 2 * has_validation - has_test}
    counts |= {"validation": 2} if has_validation else {}
    counts |= {"test": 1} if has_test else {}
    for name, count in counts.items():
        for label in range(3):
            for group in range(count):
                splits += [name] * 3
                groups += [f"{name} {label} {group}"] * 3
                labels += [label] * 3
    for seed in range(5):
        parts = split(groups, labels, splits, seed)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
        for part, own in zip(parts, ("train", "validation", "validation", "test"), strict=True):
            assert {labels[at] for at in part} == {0, 1, 2}
            assert {splits[at] for at in part} <= {own if own in counts else "train"}
            assert len({groups[at] for at in part}) == 3


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_fraction_of_validation_images_leaves_each_part_its_groups(fraction):
    groups = np.repeat(np.arange(60), 5)
    parts = split([str(each) for each in groups], groups % 3, fraction=fraction)
    for part, fewest in zip(parts, (MIN_TRAINING_IMAGES, 1, 1, 1), strict=True):
        assert np.bincount(groups[part] % 3, minlength=3).min() >= fewest
    validation = len(parts[1]) + len(parts[2])
    expected = np.clip(fraction * 240, 2 * 3 * 5, 240 - 3 * 5)
    assert validation == pytest.approx(expected, abs=15)


@pytest.mark.parametrize(
    ("groups", "pairs", "message", "remedy"),
    [
        (
            ["all"] * 60,
            [],
            "No division by groups gives each of the parts training, search, hold-out, test images "
            "of the class 'ant', whose images are in the groups 'all'. No group may be in two",
            "Let `group` in [data] tell more groups, or add images of others.",
        ),
        (
            [None] * 60,
            [(at, at + 1) for at in range(59)],
            "No division by groups gives each of the parts training, search, hold-out, test images "
            "of the class 'ant', whose images are in the groups '0.png'. No group may be in two",
            "Add other images. Duplicates joined images: `nas data` lists them",
        ),
        (
            [f"object {at % 6}" for at in range(60)],
            [],
            "No division by groups gives each of the parts training, search, hold-out, test images "
            "of the class 'ant', whose images are in the groups 'object 0', 'object 3'.",
            "Let `group` in [data] tell more groups, or add images of others.",
        ),
        (
            [f"{at % 3} {min(at // 3, 3)}" if at % 3 else None for at in range(60)],
            [(at, at + 3) for at in range(0, 54, 3)],
            "No division by groups gives each of the parts training, search, hold-out, test images "
            "of the class 'ant', whose images are in the groups '0.png', '57.png'.",
            "Let `group` in [data] tell more groups, or add images of others. Duplicates joined",
        ),
    ],
    ids=[
        "one",
        "one by duplicates",
        "too few",
        "too few by both",
    ],
)
def test_groups_that_cannot_be_divided_are_named_with_what_joined_the_images(
    groups, pairs, message, remedy
):
    with pytest.raises(DataError) as error:
        split(groups, [0, 1, 2] * 20, pairs=pairs)
    assert error.value.message.startswith(message)
    assert remedy in error.value.remedy
    assert ("Duplicates joined" in error.value.remedy) == bool(pairs)
    assert "seed" not in str(error.value)


def test_classes_that_only_together_cannot_be_divided_are_named():
    """Each of three groups has two of the classes, so one half lacks a class."""
    splits = ["validation"] * 6 + ["train"] * 9 + ["test"] * 3
    groups = ["x", "x", "y", "y", "z", "z"] + [None] * 12
    labels = [0, 1, 1, 2, 2, 0] + [0, 1, 2] * 4
    with pytest.raises(DataError) as error:
        split(groups, labels, splits)
    assert error.value.message == (
        "No division by groups gives each of the parts search, hold-out images of the classes "
        "'ant', 'bee', 'cow', whose images are in the groups 'x', 'y', 'z'. No group may be in two "
        "parts."
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(5, 40), min_size=3, max_size=3),
)
def test_every_part_has_images_of_every_class(seed, counts):
    labels = np.repeat(np.arange(3), counts)
    parts = split([None] * len(labels), labels, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert set(labels[part].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("are_grouped", [False, True])
@pytest.mark.parametrize(
    ("validation", "test", "lacking"),
    [
        ((2, 2, 1), (1, 1, 1), "1 of 3 classes have too few validation images: 'cow' has 1."),
        ((2, 2, 2), (9, 9, 0), "too few test images: 'cow' has 0. Each class needs at least 1:"),
        ((1, 2, 2), (0, 1, 0), "'ant' has 1. Each class needs at least 2: 1 for the search, 1 for"),
        (None, (0, 3, 3), "1 of 3 classes have too few test images: 'ant' has 0."),
        ((0, 3, 0), None, "2 of 3 classes have too few validation images: 'ant' has 0, 'cow' has"),
        ((2, 2, 2), (1, 1, 1), None),
    ],
)
def test_own_split_without_a_class_is_refused(validation, test, lacking, are_grouped):
    splits, labels = ["train"] * 30, [0, 1, 2] * 10
    for name, counts in (("validation", validation), ("test", test)):
        for label, count in enumerate(counts or ()):
            splits += [name] * count
            labels += [label] * count
    groups = [f"{at // 2}" if are_grouped and at < 20 else None for at in range(len(labels))]
    if not lacking:
        assert [len(set(np.array(labels)[part])) for part in split(groups, labels, splits)] == [
            3
        ] * 4
        return
    with pytest.raises(DataError, match=f"{lacking}.* or give a source without a "):
        split(groups, labels, splits)


def test_groups_leave_no_validation_split_without_a_class():
    labels = [0, 1, 2] * 40
    splits = ["train"] * 90 + ["validation"] * 15 + ["test"] * 15
    groups = [f"cow {at % 2}" if at % 3 == 2 else f"g{at}" for at in range(120)]
    groups[:90] = [None] * 90
    with pytest.raises(DataError, match="validation images: 'cow' has 0") as error:
        split(groups, labels, splits)
    assert "5 images are left out, because other images of their groups are in" in str(error.value)
