"""`nas data`: what is printed of a folder of images, and which folders are a wrong request."""

import json

import numpy as np
import pytest
from PIL import Image

CLASSES = ("ant", "bee")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with train and test splits of two classes, eight and two noisy images each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 2)):
        for name in CLASSES:
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"clip{index // 2}_{index}.png")
    return tmp_path / "photos"


def test_images_are_counted_by_class_and_part(photos, invoke):
    done = invoke("data", photos, "--json")
    record = json.loads(done.stdout)
    assert record["counts"]["test"] == {"ant": 2, "bee": 2}
    assert record["problems"] == []
    assert "nothing is wrong with these images" in invoke("data", photos).stdout


def test_class_without_test_images_is_a_wrong_request(photos, invoke):
    for file in (photos / "test" / "bee").iterdir():
        file.unlink()
    done = invoke("data", photos)
    assert done.returncode == 2
    assert "1 of 2 classes have too few test images: 'bee' has 0." in done.stderr
    assert "nothing is wrong" not in done.stdout


@pytest.mark.parametrize("group", ["clip[0-9]+_()", "(clip[0-9])"])
def test_groups_that_cannot_be_divided_are_a_wrong_request(photos, invoke, group):
    done = invoke("data", photos / "train", "--group", group)
    assert done.returncode == (2 if "()" in group else 0)
    assert ("No division by groups gives each" in done.stderr) == ("()" in group)
