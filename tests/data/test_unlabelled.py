"""Images of no class: what is read, and which folders are refused."""

import numpy as np
import pytest
from PIL import Image

from nas.data import load_dataset
from nas.data.unlabelled import open_unlabelled
from nas.errors import DataError
from tests.data.image_files import in_format, noise


@pytest.fixture
def folder(tmp_path):
    """Return a folder of five images, one of them in a sub-folder, and a file of another kind."""
    (tmp_path / "others" / "more").mkdir(parents=True)
    for index in range(4):
        content = in_format(Image.fromarray(noise(9, 12, 3, seed=index)), "PNG")
        (tmp_path / "others" / f"{index}.png").write_bytes(content)
    (tmp_path / "others" / "more" / "grey.png").write_bytes(
        in_format(Image.fromarray(noise(8, 8)), "PNG")
    )
    (tmp_path / "others" / "notes.txt").write_text("no image")
    return tmp_path / "others"


def test_images_are_read_as_the_network_reads_them(folder, digits):
    data = load_dataset("digits", validation_fraction=0.5, unknown=folder)
    assert data.digest == digits.digest
    assert data.unknown.shape == (5, 8, 8, 1)
    grey = noise(8, 8)
    assert any((image[..., 0] == grey).all() for image in data.unknown)
    colours = np.asarray(Image.fromarray(noise(9, 12, 3, seed=0)).convert("L"), float)
    assert abs(data.unknown[0].mean() - colours.mean()) < 15


def test_image_that_cannot_be_read_is_left_out(folder):
    (folder / "4.png").write_bytes(b"no image")
    assert load_dataset("digits", unknown=str(folder)).unknown.shape[0] == 5
    assert load_dataset("digits").unknown is None


def test_grey_images_become_rgb_for_networks_of_colours(folder, tmp_path):
    for name in ("bee", "cow"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            content = in_format(Image.fromarray(noise(8, 8, 3, seed=index)), "PNG")
            (tmp_path / "photos" / name / f"{index}.png").write_bytes(content)
    data = load_dataset(tmp_path / "photos", image_size=8, unknown=folder / "more")
    assert data.unknown.shape == (1, 8, 8, 3)
    assert (data.unknown[0] == noise(8, 8)[:, :, None]).all()


def test_folder_without_images_is_refused_with_the_key(folder, tmp_path):
    for name, reason in (("nowhere", "does not exist"), ("others/0.png", "is not a folder")):
        with pytest.raises(DataError, match=rf"{reason}\. Give unknown in \[data\]"):
            load_dataset("digits", unknown=tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no image"):
        load_dataset("digits", unknown=tmp_path / "empty")
    (tmp_path / "empty" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="has no image that can be used"):
        load_dataset("digits", unknown=tmp_path / "empty")


def test_folder_among_the_classes_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="whose folders are classes. Move it out"):
        open_unlabelled(folder, tmp_path)
