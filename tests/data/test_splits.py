"""Splits by groups: no group on two sides, and every class in every part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.data.splits import joined_groups, number_groups, split_images
from nas.errors import DataError

CLASSES = ("ant", "bee", "cow")


def split(groups, labels, splits=None, seed=0):
    source = np.full(len(labels), "train") if splits is None else np.array(splits)
    return split_images(source, np.array(labels), CLASSES, None, seed, number_groups(groups))


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


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["all"] * 60, "All images are in one group"),
        ([f"object {at % 6}" for at in range(60)], "class 'ant' are in 2 groups; 4 are needed"),
    ],
)
def test_groups_that_cannot_be_split_are_refused(groups, message):
    with pytest.raises(DataError, match=message):
        split(groups, [0, 1, 2] * 20)


def test_images_without_a_group_are_groups_of_their_own():
    assert number_groups([None, "a", None, "a"]).tolist() == [0, 1, 2, 1]


def test_pairs_join_groups():
    groups = number_groups([None, "a", None, "a", None])
    joined = joined_groups(groups, np.array([[0, 3], [2, 4]]))
    assert joined[0] == joined[1] == joined[3] != joined[2] == joined[4]


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


def test_validation_split_without_a_class_is_refused():
    labels = [0, 1, 2] * 40 + [0, 0, 1, 1, 2]
    splits = ["train"] * 90 + ["test"] * 30 + ["validation"] * 5
    message = "No hold-out image would be of class 'cow'. Each class needs 2 validation images"
    with pytest.raises(DataError, match=message):
        split([None] * 125, labels, splits)


def test_groups_leave_no_test_split_without_a_class():
    labels = [0, 1, 2] * 40
    splits = ["train"] * 90 + ["test"] * 30
    labels[90:] = [0, 1] * 15
    with pytest.raises(DataError, match="No test image would be of class 'cow'"):
        split([f"g{at}" if at > 1 else "shared" for at in range(120)], labels, splits)
