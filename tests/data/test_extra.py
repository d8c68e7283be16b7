"""Further images for training: `[data] extra`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.data import load_dataset
from nas.errors import DataError


def write(folder: Path, images: dict[str, np.ndarray]) -> Path:
    """Save images as PNG files, in a folder for each class."""
    for name, pixels in images.items():
        (folder / name).mkdir(parents=True)
        for at, image in enumerate(pixels):
            Image.fromarray(image.squeeze()).save(folder / name / f"{at}.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (60, 8, 8, 3), np.uint8) for name in ("cat", "dog")}
    return write(tmp_path_factory.mktemp("source"), images)


@pytest.fixture
def further(tmp_path) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (7, 8, 8, 3), np.uint8)


def test_further_images_are_for_training_alone(source, tmp_path, further):
    before = load_dataset(source, image_size=8)
    # Grey images become RGB, as the others are.
    grey = further[:2, :, :, :1]
    extra = [write(tmp_path / "a", {"dog": further}), write(tmp_path / "b", {"cat": grey})]
    data = load_dataset(source, image_size=8, extra=extra)
    count = len(before.train)
    assert (data.train.pixels[:count] == before.train.pixels).all()
    assert (data.train.labels[count:] == [1] * 7 + [0] * 2).all()
    assert (np.sort(data.train.pixels[count : count + 7], axis=0) == np.sort(further, axis=0)).all()
    assert (data.train.pixels[count + 7 :] == np.broadcast_to(grey, (2, 8, 8, 3))).all()
    for part in ("search", "holdout", "test"):
        assert data.digest_of(part) == before.digest_of(part)
    assert data.digest != before.digest


def test_images_that_judge_are_left_out(source, tmp_path, further):
    before = load_dataset(source, image_size=8)
    known = {"dog": np.concatenate([further, before.test.pixels[:1], before.holdout.pixels[:1]])}
    with pytest.warns(UserWarning, match="2 of 9 further images .* are left out"):
        data = load_dataset(source, image_size=8, extra=[write(tmp_path / "extra", known)])
    assert len(data.train) == len(before.train) + 7


def test_other_classes_and_folders_are_refused(source, tmp_path, further):
    with pytest.raises(DataError, match="have the class bird, which .* does not have"):
        load_dataset(source, image_size=8, extra=[write(tmp_path / "extra", {"bird": further})])
    with pytest.raises(DataError, match="missing"):
        load_dataset(source, image_size=8, extra=[tmp_path / "missing"])
    (tmp_path / "broken" / "dog").mkdir(parents=True)
    (tmp_path / "broken" / "dog" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="has no image that can be used"):
        load_dataset(source, image_size=8, extra=[tmp_path / "broken"])
