import dataclasses
import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nas.data import Images, load_dataset
from nas.data.dataset import joined
from nas.errors import DataError, RequestError
from tests.data.folders import CLASSES, add_classes, class_label, plain, write_parquet
from tests.data.image_files import in_format


def values_of(images):
    """Return the red of each image, which identifies it."""
    return images.pixels[:, 0, 0, 0].tolist()


def test_random_splits_are_stratified_and_have_the_requested_sizes(digits):
    counts = digits.counts
    assert sum(counts.values()) == 1797
    assert counts["test"] == pytest.approx(1797 / 5, abs=5)
    assert counts["search"] + counts["holdout"] == pytest.approx(counts["train"], abs=10)
    assert counts["search"] == pytest.approx(2 * counts["holdout"], abs=10)
    for part in (digits.train, digits.search, digits.holdout, digits.test):
        shares = np.bincount(part.labels, minlength=10) / len(part)
        np.testing.assert_allclose(shares, np.bincount(load_digits().target) / 1797, atol=0.01)


def test_random_splits_depend_on_the_seed_alone(digits):
    again = load_dataset("digits", validation_fraction=0.5)
    other = load_dataset("digits", validation_fraction=0.5, seed=1)
    assert again.digest == digits.digest != other.digest
    assert np.array_equal(again.search.pixels, digits.search.pixels)
    changed = digits.train.pixels.copy()
    changed[0, 0, 0, 0] ^= 1
    train = dataclasses.replace(digits.train, pixels=changed)
    assert dataclasses.replace(digits, train=train).digest != digits.digest


def test_part_refuses_the_test_images(digits):
    assert digits.part("search") is digits.search
    both = digits.part("search", "holdout")
    first = len(digits.search)
    assert (both.pixels[:first] == digits.search.pixels[:]).all()
    assert (both.labels[first:] == digits.holdout.labels).all()
    assert len(both.pixels) == len(both) == first + len(digits.holdout)
    with pytest.raises(RequestError, match="'test' cannot be used"):
        digits.part("search", "test")


def test_mean_and_std_equal_those_of_the_training_pixels(tmp_path):
    data = load_dataset(add_classes(tmp_path), image_size=4)
    pixels = data.train.pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.std, np.maximum(pixels.std(0), 1 / 255), rtol=1e-5)


def test_a_refit_learns_all_but_the_test_images_as_they_were_normalised(digits):
    """Groups stay those of the source; the shares of the classes are those of the new images."""
    groups = np.arange(210) // 3
    parts = {
        name: dataclasses.replace(getattr(digits, name).take(slice(0, size)), groups=own)
        for name, size, own in zip(
            ("train", "search", "holdout"), (100, 60, 50), np.split(groups, (100, 160)), strict=True
        )
    }
    data = dataclasses.replace(digits, **parts, metric="balanced_accuracy")
    refit = data.for_refit()
    expected = np.concatenate([each.labels for each in parts.values()])
    assert (refit.train.labels == expected).all()
    assert (refit.train.pixels == np.concatenate([each.pixels for each in parts.values()])).all()
    assert (refit.train.groups == groups).all()
    assert (len(refit.search), len(refit.holdout)) == (0, 0)
    assert refit.test is data.test
    assert (refit.mean == data.mean).all()
    assert (refit.std == data.std).all()
    shares = np.bincount(expected, minlength=10) / 210
    np.testing.assert_allclose(np.exp(refit.log_priors), shares, rtol=1e-6)


@pytest.mark.parametrize("layout", ["names", "folders"])
def test_parquet_file_and_folder_names_give_the_splits(tmp_path, layout):
    paths = {
        "names": ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        "folders": ("train/0.parquet", "test/0.parquet"),
    }[layout]
    for path, count in zip(paths, (8, 2), strict=True):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        values = [50 * c + i for i in range(count) for c in range(3)]
        write_parquet(tmp_path / path, values, [0, 1, 2] * count, class_label(CLASSES))
    data = load_dataset(tmp_path, image_size=8)
    assert data.counts == {"train": 15, "search": 5, "holdout": 4, "test": 6}
    assert sorted(values_of(data.test)) == [0, 1, 50, 51, 100, 101]
    assert (data.classes, data.channels, data.image_size) == (CLASSES, 3, 8)


def test_class_without_usable_images_is_an_error(tmp_path):
    add_classes(tmp_path)
    for file in (tmp_path / "bee").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="1 of 3 classes .* 'bee' has 0"):
        load_dataset(tmp_path, on_bad_image="skip")


@pytest.mark.parametrize("name", [b"be\ne", b"be\xffe", b"be\x1b[31me"])
def test_class_name_with_control_characters_is_an_error(tmp_path, name):
    add_classes(tmp_path)
    os.rename(tmp_path / "bee", os.path.join(os.fsencode(tmp_path), name))
    with pytest.raises(DataError, match="class name 'be.*has control characters or is not valid"):
        load_dataset(tmp_path)


def test_parquet_file_without_split_beside_others_is_an_error(tmp_path):
    for name in ("train-0", "more"):
        write_parquet(tmp_path / f"{name}.parquet", range(9), [0, 1, 2] * 3)
    with pytest.raises(DataError, match=r"more\.parquet has no split in its name"):
        load_dataset(tmp_path)


def test_classes_with_too_few_images_are_named_with_what_is_needed(tmp_path):
    add_classes(tmp_path)
    for i in range(1, 6):
        (tmp_path / "bee" / f"{i}.png").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert caught.value.message == (
        "1 of 3 classes have too few training images: 'bee' has 1. Each class needs at least 5: "
        "2 to train, 1 for the search, 1 for the hold-out, 1 to test."
    )
    assert "300 images" in caught.value.remedy
    shutil.rmtree(tmp_path / "ant")
    shutil.rmtree(tmp_path / "bee")
    with pytest.raises(DataError, match="1 class; two are needed"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("splits", "needed"),
    [("train", 5), ("train test", 4), ("train val", 3), ("train val test", 2)],
)
def test_a_class_needs_images_for_the_splits_that_the_source_lacks(tmp_path, splits, needed):
    for name in splits.split():
        add_classes(tmp_path / name, per_class=needed)
    data = load_dataset(tmp_path, image_size=4)
    assert min(np.bincount(data.train.labels)) >= 2
    assert min(data.counts.values()) >= 1
    (tmp_path / "train" / "cow" / "0.png").unlink()
    with pytest.raises(DataError, match=f"'cow' has {needed - 1}. .* at least {needed}:"):
        load_dataset(tmp_path, image_size=4)


def grey_images(path, per_class, classes=5):
    """Write a parquet file of tiny images, of which no two are equal."""
    labels = np.repeat(np.arange(classes), per_class)
    pixels = [np.uint8([[at % 256, at // 256], [0, 0]]) for at in range(len(labels))]
    images = [in_format(Image.fromarray(each), "PNG") for each in pixels]
    metadata = class_label([f"c{number}" for number in range(classes)])
    return write_parquet(path, images, labels.tolist(), metadata)


@pytest.mark.parametrize(
    ("per_class", "counts"),
    [
        (5, (10, 5, 5, 5)),  # two of each class to train
        (20, (45, 18, 17, 20)),
        (60, (140, 50, 50, 60)),
        (90, (210, 100, 50, 90)),
        (150, (450, 100, 50, 150)),
        (400, (1280, 213, 107, 400)),  # a fifth is more than accuracies need
    ],
)
def test_small_sets_have_as_many_validation_images_as_accuracies_need(tmp_path, per_class, counts):
    data = load_dataset(grey_images(tmp_path / "a.parquet", per_class), image_size=2)
    assert tuple(data.counts.values()) == counts
    images = np.concatenate([part.pixels for part in (data.train, data.search, data.holdout)])
    assert len(np.unique(images[:, 0, :, 0], axis=0)) == sum(counts[:3]), "no image is in two parts"
    for part in (data.train, data.search, data.holdout, data.test):
        own = np.bincount(part.labels, minlength=5)
        assert own.max() - own.min() <= 1, "stratified"


def test_fraction_that_is_given_stays_as_it_is(tmp_path):
    path = grey_images(tmp_path / "a.parquet", 60)
    data = load_dataset(path, image_size=2, validation_fraction=0.25)
    assert data.counts == {"train": 180, "search": 30, "holdout": 30, "test": 60}


def test_worth_of_an_image_is_stated_with_what_helps_if_it_is_much(tmp_path):
    enough = load_dataset(grey_images(tmp_path / "a.parquet", 60), image_size=2)
    assert enough.worth_of_an_image == (
        "one hold-out image is 2.0 points of accuracy, one search image 2.0, one test image 1.7"
    )
    few = load_dataset(grey_images(tmp_path / "a.parquet", 20), image_size=2).worth_of_an_image
    assert few.startswith("one hold-out image is 5.9 points")
    assert "300 images in all" in few
    assert "cross-validate" in few


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation_fraction": 1.0},
        {"image_size": 0},
        {"on_bad_image": "ignore"},
        {"class_folders": "all"},
        {"on_duplicate": "remove"},
        {"metric": "f1"},
    ],
)
def test_invalid_argument_is_named_in_the_error(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        load_dataset("digits", **wrong)


def test_summary_says_what_was_understood(tmp_path):
    for split, count in (("training_set", 6), ("test_set", 2)):
        add_classes(tmp_path / split, per_class=count)
    data = load_dataset(tmp_path, image_size=8)
    counts = data.counts
    assert data.summary == (
        f"24 images of 3 classes: ant 8, bee 8, cow 8; train {counts['train']}, "
        f"search {counts['search']}, hold-out {counts['holdout']}, test 6 "
        "(splits by folder: training_set is train, test_set is test)"
    )


def test_names_that_differ_in_case_or_blanks_are_reported_in_a_warning(tmp_path):
    add_classes(tmp_path)
    for name in ("Bee", "bee "):
        shutil.copytree(tmp_path / "bee", tmp_path / name)
    with pytest.warns(UserWarning, match=r"only in case or blanks: 'Bee' and 'bee' and 'bee '\."):
        data = load_dataset(tmp_path, image_size=8)
    assert data.classes == ("Bee", "ant", "bee", "bee ", "cow")
    assert "bee 6, 'bee ' 6, cow 6" in data.summary


def test_string_labels_are_compared_in_nfc(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    labels = [composed, decomposed, "cafz"] * 6
    images = [plain(10 * index) for index in range(18)]
    path = write_parquet(tmp_path / "mine.parquet", images, labels)
    assert load_dataset(path, image_size=8).class_counts == {"cafz": 6, composed: 12}


def test_class_names_of_parquet_files_are_compared_in_nfc(tmp_path):
    for split, form in (("training_set", "NFC"), ("test_set", "NFD")):
        names = [unicodedata.normalize(form, name) for name in ("café", "tea")]
        write_parquet(tmp_path / f"{split}.parquet", range(12), [0, 1] * 6, class_label(names))
    data = load_dataset(tmp_path, image_size=8)
    assert data.classes == (unicodedata.normalize("NFC", "café"), "tea")
    assert data.counts["test"] == 12
    assert data.summary.endswith("test 12 (splits by file name)")


def test_unusable_rows_are_counted_by_class_name(tmp_path):
    values = [50 * c + i for i in range(8) for c in range(3)]
    labels: list = [0, 1, 2] * 8
    values[4] = values[7] = b"broken"
    labels[9] = None
    path = write_parquet(tmp_path / "train.parquet", values, labels, class_label(CLASSES))
    with pytest.raises(
        DataError,
        match=r"3 of 24 images of .* cannot be used: bee 2, no label 1\. They are .*row 4 .*row 7 "
        r'.*row 9 .* set on_bad_image = "skip"',
    ):
        load_dataset(path)
    skipped = load_dataset(path, on_bad_image="skip")
    assert skipped.skipped_by_class == {"bee": 2, "no label": 1}
    assert all(f"row {row} " in each for row, each in zip((4, 7, 9), skipped.skipped, strict=True))
    assert sum(skipped.counts.values()) == 21
    again = load_dataset(path, on_bad_image="skip")
    assert again.summary == skipped.summary, "the cache keeps the counts"


@pytest.mark.parametrize("has_groups", [True, False])
def test_folds_have_their_share_of_each_class_and_whole_groups(has_groups):
    labels = np.repeat([0, 1, 2], [60, 90, 30])
    groups = np.arange(180) // 3 if has_groups else None
    images = Images(np.zeros((180, 2, 2, 1), np.uint8), labels, groups)
    folds = images.folds(3, np.random.default_rng(0))
    counts = np.array([np.bincount(labels[folds == fold]) for fold in range(3)])
    assert np.abs(counts - np.array([20, 30, 10])).max() <= (3 if has_groups else 0)
    if has_groups:
        assert all(len(set(folds[groups == group])) == 1 for group in range(60))


@pytest.mark.parametrize(("groups", "is_divided"), [(1, True), (2, False), (3, False), (4, False)])
def test_folds_of_few_groups_are_not_empty(groups, is_divided):
    labels, numbers = np.arange(48) % 2, np.arange(48) // 2 % groups
    images = Images(np.zeros((48, 2, 2, 1), np.uint8), labels, numbers)
    for seed in range(5):
        folds = images.folds(5, np.random.default_rng(seed))
        sizes = np.bincount(folds)
        assert len(sizes) >= 2
        assert sizes.all()
        by_group = {(group, fold) for group, fold in zip(numbers, folds, strict=True)}
        assert (len(by_group) > groups) == is_divided


def test_joined_parts_have_the_groups_of_their_source_and_others_have_none():
    pixels, labels = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int64)
    first = Images(pixels, labels, np.array([4, 4, 7]))
    last = Images(pixels, labels, np.array([2, 7, 2]))
    both = joined([first, Images(pixels, labels), last]).take(slice(1, 9)).groups
    assert both[[0, 1, 5, 6, 7]].tolist() == [4, 7, 2, 7, 2]
    assert len({*both[2:5].tolist(), 2, 4, 7}) == 6
    assert not joined([Images(pixels, labels)] * 2).has_groups


def test_images_of_a_part_have_the_groups_that_its_source_tells(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(48):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"pet{number // 3}-{number}.png")
    data = load_dataset(tmp_path, group=r"(pet\d+)-")
    numbers = []
    for part in (data.train, data.search, data.holdout, data.test):
        assert part.has_groups
        # Three images of a cat and three of a dog have one name.
        assert set(np.unique(part.groups, return_counts=True)[1].tolist()) == {6}
        numbers += set(part.groups.tolist())
    assert len(numbers) == len(set(numbers)) == 16
