"""What a network answers on the hold-out images: who is confused, and the pictures."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

from nas.data import ImageDataset, Images, load_dataset
from nas.deploy.answers import draw_sheet, find_answers
from nas.files.documents import to_json
from nas.run.answers import ANSWERS, MAX_MISTAKES, MAX_PICTURE_CHARACTERS, Answers
from tests.deploy.digits_models import digits, digits_model

PHOTOS = Path(__file__).parents[1] / "data" / "photos"


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return digits_model("shufflenet").pixel_logits(digits().holdout.pixels)


@pytest.fixture(scope="module")
def answers(logits) -> Answers:
    return find_answers(logits, digits(), pictures=True)


def decoded(picture: str) -> np.ndarray:
    """Return the pixels of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))


def test_matrix_is_that_of_scikit_learn(answers, logits):
    labels, classes = digits().holdout.labels, logits.argmax(1)
    assert (answers.matrix == confusion_matrix(labels, classes, labels=range(10))).all()
    counts = [pair.images for pair in answers.confused]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == (classes != labels).sum()
    assert answers.is_right.sum() == (classes == labels).sum()
    assert answers.is_right[: answers.counts[0]].sum() == answers.matrix[0, 0]
    assert answers.is_right[-answers.counts[9] :].sum() == answers.matrix[9, 9]


def test_mistakes_are_the_most_confident_with_their_files_and_pictures(answers, logits):
    confidences = torch.from_numpy(logits).softmax(1).max(1).values.numpy()
    wrong = logits.argmax(1) != digits().holdout.labels
    expected = np.sort(confidences[wrong])[::-1][:MAX_MISTAKES]
    assert [each.confidence for each in answers.mistakes] == pytest.approx(expected, abs=1e-4)
    source = load_digits()
    for mistake in answers.mistakes:
        number = int(mistake.file.removeprefix("digit "))
        assert source.target[number] == mistake.label != mistake.predicted
        assert (decoded(mistake.picture) == np.rint(source.images[number] * 255 / 16)).all()


def test_confidences_are_the_largest_probabilities_in_the_order_of_the_classes(answers, logits):
    labels = digits().holdout.labels
    largest = torch.from_numpy(logits).softmax(1).max(1).values.numpy()
    expected = np.concatenate([largest[labels == label] for label in range(10)])
    assert answers.confidence == pytest.approx(expected, abs=1e-6)


def test_answers_are_read_as_they_were_written_and_without_pictures(answers, logits, tmp_path):
    (tmp_path / "answers.json").write_text(to_json(answers))
    assert ANSWERS.read(tmp_path / "answers.json") == answers
    private = find_answers(logits, digits(), pictures=False)
    assert not any(each.picture for each in private.mistakes)
    assert draw_sheet(private) is None
    assert (private.right, private.confused) == (answers.right, answers.confused)


def test_groups_of_images_are_in_the_order_of_the_classes(logits):
    data, rng = digits(), np.random.default_rng(0)
    numbers = rng.choice([3, 70, 500, 9000], len(data.holdout))
    grouped = replace(data, holdout=replace(data.holdout, groups=numbers))
    own = find_answers(logits, grouped, pictures=False).group
    expected = np.concatenate([numbers[data.holdout.labels == label] for label in range(10)])
    assert np.array_equal(np.unique(expected)[own], expected)
    single = replace(data, holdout=replace(data.holdout, groups=np.arange(len(numbers))))
    assert find_answers(logits, single, pictures=False).group is None


def test_photos_are_named_below_their_source():
    data = load_dataset(PHOTOS, image_size=48)
    train, holdout = (
        np.asarray(images.pixels[:])[:, ::8, ::8].reshape(len(images), -1) / 255
        for images in (data.train, data.holdout)
    )
    classifier = LogisticRegression().fit(train, data.train.labels)
    logits = classifier.decision_function(holdout).astype(np.float32)
    # Some answers are made wrong, so that there are mistakes.
    logits[:3] = np.roll(np.eye(3)[data.holdout.labels[:3]], 1, axis=1)
    answers = find_answers(logits, data, pictures=True)
    assert answers.classes == ("building", "petals", "trees")
    assert len(answers.mistakes) >= 3
    for mistake in answers.mistakes:
        original = PHOTOS / mistake.file
        assert original.parent.name == data.classes[mistake.label]
        shown = decoded(mistake.picture).astype(int)
        assert np.abs(shown - np.asarray(Image.open(original))).mean() < 10
    sheet = Image.open(io.BytesIO(draw_sheet(answers)))
    assert sheet.size[0] % len(answers.mistakes) == 0


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (33, 3), (224, 3)])
def test_pictures_of_a_page_have_at_most_300_kb(side, channels):
    """Noise needs the most bytes."""
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (60, side, side, channels), np.uint8), np.arange(60) % 3)
    data = ImageDataset("noise", ("a", "b", "c"), images, images, images, images, None)
    wrong = np.eye(3, dtype=np.float32)[(images.labels + 1) % 3]
    answers = find_answers(wrong, data, pictures=True)
    assert len(answers.mistakes) == MAX_MISTAKES
    assert max(len(each.picture) for each in answers.mistakes) <= MAX_PICTURE_CHARACTERS
    assert {each.file for each in answers.mistakes} == {""}
    assert len(draw_sheet(answers)) <= 300_000


def test_network_without_a_mistake_has_none(logits):
    right = np.eye(10, dtype=np.float32)[digits().holdout.labels]
    answers = find_answers(right, replace(digits(), inventory=None), pictures=True)
    assert not answers.confused
    assert not answers.mistakes
    assert (answers.matrix == np.diag(answers.counts)).all()
