import os

import pytest
from PIL import Image

from nas.data.image_formats import IMAGE_EXTENSIONS
from nas.data.sources import printable_line
from nas.data.sources.base import split_of_name


def test_image_extensions_are_known_to_pillow_and_safe():
    registered = {name.lower() for name in Image.registered_extensions()}
    assert set(IMAGE_EXTENSIONS) <= registered | {".apng"}
    assert not {".eps", ".ps", ".pdf", ".mpeg", ".h5"} & set(IMAGE_EXTENSIONS)


def test_printable_line_escapes_line_feeds_and_control_characters():
    assert printable_line(os.fsdecode(b"a\nb\xff\x1b[0m")) == r"a\nb\udcff\x1b[0m"
    assert printable_line("två 蜂") == "två 蜂"


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAIN training training_set training-data trainset TrainingSet "
                  "train_images train2017 train-00000-of-00002 seg_train cifar10-train"),
        ("validation", "val valid Validate validation validation_set valset dev val2017"),
        ("test", "test Testing test_set testset TestData test1 evaluation seg_test"),
        (None, "testudo trainer trains valley value device contest train_test trainval untrained "
               "latest cats protest étest"),
    ],
)  # fmt: skip
def test_splits_are_recognised_by_whole_words(split, names):
    for name in names.split():
        assert split_of_name(name) == split, name
