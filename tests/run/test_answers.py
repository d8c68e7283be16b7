"""The record of a network's answers: its checks, and the comparison of two networks."""

import base64
import json

import numpy as np
import pytest

from nas.errors import CheckpointError
from nas.run.answers import ANSWERS, Answers


def answers_of(right: list[bool], counts: tuple[int, ...], **changes: object) -> Answers:
    """Return answers without mistakes; `right` is in the order of the classes."""
    packed = np.packbits(np.array(right, bool)).tobytes()
    fields = {
        "schema": 3,
        "classes": tuple(f"class {label}" for label in range(len(counts))),
        "counts": counts,
        "right": base64.b64encode(packed).decode(),
        "confidences": base64.b64encode(np.full(len(right), 0.9, "<f4").tobytes()).decode(),
        "confused": (),
        "mistakes": (),
        "has_pictures": False,
    }
    return Answers.model_validate_json(json.dumps({**fields, **changes}))


def test_better_is_said_of_a_difference_that_chance_does_not_make():
    """Of 6 images that only one network gets right, all: p = 2 / 64. Of 5: p = 2 / 32."""
    worse = answers_of([False] * 6 + [True] * 94, (50, 50))
    better = answers_of([True] * 100, (50, 50))
    nearly = answers_of([True] * 5 + [False] + [True] * 94, (50, 50))
    assert better.difference(worse, is_balanced=False) == 1
    assert worse.difference(better, is_balanced=False) == -1
    assert nearly.difference(worse, is_balanced=False) == 0
    assert better.difference(better, is_balanced=False) == 0


def test_of_unequal_classes_the_balanced_accuracy_may_say_the_opposite():
    common = answers_of([True] * 100 + [False] * 20, (100, 20))
    rare = answers_of([False] * 45 + [True] * 75, (100, 20))
    assert common.difference(rare, is_balanced=False) == 1
    assert rare.difference(common, is_balanced=True) == 1


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"schema":3', '"schema":4', "has schema 4; this version reads schema 3"),
        ('"counts":[4,4]', '"counts":[4,4,4]', "counts needs one number for each class"),
        ('"counts":[4,4]', '"counts":[4,40]', "right needs one bit for each image"),
        ('"right":"', '"right":"=', "padding"),
        ('"confidences":"', '"confidences":"ZmZm', "four bytes for each image"),
        ('"confidences":"ZmZmP2', '"confidences":"ZmZmQ2', "not between 0 and 1"),
        ('"confused":[]', '"confused":[{"label":2,"predicted":0,"images":1}]', "beyond the cl"),
        (
            '"mistakes":[]',
            '"mistakes":[{"label":0,"predicted":1,"confidence":1.0,"picture":"http://a/b"}]',
            "picture is 'http://a/b'",
        ),
    ],
)
def test_damaged_answers_are_named(tmp_path, before, after, words):
    text = answers_of([True] * 8, (4, 4)).model_dump_json(by_alias=True)
    assert before in text
    path = tmp_path / "answers.json"
    path.write_text(text.replace(before, after))
    with pytest.raises(CheckpointError, match=rf"answers\.json .*{words}"):
        ANSWERS.read(path)
