"""Images that stay on disk train as those in memory do."""

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data import decoding, image_cache, load_dataset
from nas.data.batches import TrainingBatches
from nas.data.image_cache import PixelsOnDisk, cache_folder
from nas.data.image_loader import PrefetchLoader, ResidentLoader, make_loader
from nas.errors import DataError

CPU = torch.device("cpu")


def folder_of(path, shape):
    rng = np.random.default_rng(0)
    for name in ("bee", "cow"):
        (path / name).mkdir(parents=True)
        for index in range(30):
            pixels = rng.integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels).save(path / name / f"{index}.png")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def large(monkeypatch):
    """From now on all images are too many for the memory."""
    monkeypatch.setattr(decoding, "MAX_BYTES_IN_MEMORY", 0)


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 3)])
def test_images_on_disk_are_those_in_memory(cache, monkeypatch, shape):
    images = folder_of(cache / "images", shape)
    (images / "cow" / "7.png").write_bytes(b"broken")
    monkeypatch.setattr(image_cache, "_CHUNK_BYTES", 1000)  # Read in several parts.
    in_memory = load_dataset(images, image_size=8, on_bad_image="skip")
    assert isinstance(in_memory.train.pixels, np.ndarray)
    for file in cache_folder().iterdir():
        file.unlink()
    large(monkeypatch)
    first = load_dataset(images, image_size=8, on_bad_image="skip")
    monkeypatch.setattr(decoding, "_decode_image", None)  # Nothing is decoded any more.
    again = load_dataset(images, image_size=8, on_bad_image="skip")
    for found in (first, again):
        assert isinstance(found.train.pixels, PixelsOnDisk)
        assert found.train.pixels.shape == in_memory.train.pixels.shape
        assert found.train.pixels.nbytes == in_memory.train.pixels.nbytes
        assert found.digest == in_memory.digest
        assert found.skipped == in_memory.skipped
        np.testing.assert_array_equal(found.mean, in_memory.mean)
        np.testing.assert_array_equal(found.std, in_memory.std)


def test_streamed_batches_are_the_resident_ones(cache, monkeypatch):
    images = folder_of(cache / "images", (9, 9, 3))
    in_memory = load_dataset(images, image_size=8)
    for file in cache_folder().iterdir():
        file.unlink()
    large(monkeypatch)
    on_disk = load_dataset(images, image_size=8)
    settings = {"batch_size": 8, "seed": 3, "shift": 1, "flip": True, "colour": 0.3, "device": CPU}
    resident, streamed = (TrainingBatches(data, **settings) for data in (in_memory, on_disk))
    assert isinstance(make_loader(on_disk.train, CPU, resident._batch_indices), PrefetchLoader)
    assert isinstance(make_loader(in_memory.train, CPU, resident._batch_indices), ResidentLoader)
    # In order across two epochs, and then back, as a resumed training would ask.
    for step in [*range(2 * resident.steps_per_epoch + 1), 2, 3, 0]:
        for ours, theirs in zip(streamed.batch(step), resident.batch(step), strict=True):
            assert torch.equal(ours, theirs), step


def test_damaged_images_on_disk_are_decoded_again(cache, monkeypatch):
    images = folder_of(cache / "images", (9, 9, 3))
    large(monkeypatch)
    digest = load_dataset(images, image_size=8).digest
    (file,) = cache_folder().iterdir()
    file.write_bytes(bytes(100) + file.read_bytes()[100:])
    with pytest.warns(UserWarning, match="are damaged"):
        assert load_dataset(images, image_size=8).digest == digest
    assert list(cache_folder().iterdir()) == [file]


def test_a_disk_without_room_says_how_much_is_needed(cache, monkeypatch):
    images = folder_of(cache / "images", (9, 9, 3))
    large(monkeypatch)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"need 0\.0 GiB in .*No space left"):
        load_dataset(images, image_size=8)
    assert list(cache_folder().iterdir()) == []


def test_an_interrupted_decoding_leaves_nothing(cache, monkeypatch):
    images = folder_of(cache / "images", (9, 9, 3))
    large(monkeypatch)

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_dataset(images, image_size=8, progress=interrupted)
    assert list(cache_folder().iterdir()) == []
