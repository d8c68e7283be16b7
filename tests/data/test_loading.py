"""Samples of a dataset that are decoded again in another size."""

import numpy as np
import pytest
from PIL import Image

from nas.data import load_dataset
from nas.data.loading import SAMPLED_PARTS, decode_sample

SIDE = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return an image folder and one of further images, whose colours all differ; one is broken."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("photos", "more"):
        for label in ("cat", "dog"):
            (root / name / label).mkdir(parents=True)
            for at in range(60 if name == "photos" else 8):
                colour = rng.integers(0, 256, 3, np.uint8)
                pixels = np.broadcast_to(colour, (SIDE, 2 * SIDE, 3))
                Image.fromarray(pixels).save(root / name / label / f"{at}.png")
    (root / "photos" / "cat" / "7.png").write_bytes(b"no image")
    return root / "photos", root / "more"


@pytest.mark.parametrize("most", [5, 1000])
@pytest.mark.parametrize("has_more", [False, True])
def test_sample_has_the_images_of_its_parts_in_another_size(folders, most, has_more):
    photos, more = folders
    extra = [more] if has_more else []
    data = load_dataset(photos, image_size=4, on_bad_image="skip", extra=extra, write_cache=False)
    larger = decode_sample(data, photos, 8, most, extra=extra)
    for part in SAMPLED_PARTS:
        images, sample = getattr(data, part), getattr(larger, part)
        assert sample.pixels.shape == (min(most, len(images)), 8, 8, 3)
        colours = images.pixels[:, 0, 0].tolist()
        positions = [colours.index(image[0, 0].tolist()) for image in sample.pixels]
        assert positions == sorted(set(positions))
        assert (sample.labels == images.labels[positions]).all()
        assert (sample.groups == images.groups[positions]).all()
    assert larger.test is data.test


def test_sample_of_grey_images_is_grey():
    data = load_dataset("digits", image_size=8)
    larger = decode_sample(data, "digits", 24, 10)
    assert larger.channels == 1
    assert larger.train.pixels.shape == (10, 24, 24, 1)
