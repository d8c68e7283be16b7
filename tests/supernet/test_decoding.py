"""What is decoded once is read back, as long as the files are the same."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.errors import DataError
from nas.supernet import decoding, load
from nas.supernet.decoding import decode
from nas.supernet.kept import MOST_KEPT, cache_folder, path_of
from nas.supernet.sources import Sample, Source


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """A folder of grey and coloured images of two classes, with a cache that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, shape in (("bee", (12, 9)), ("cow", (10, 10, 3))):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index in range(40):
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The places of the images that are decoded."""
    places: list[str] = []
    real = decoding._pixels

    def pixels(sample, size):
        places.append(sample.place)
        return real(sample, size)

    monkeypatch.setattr(decoding, "_pixels", pixels)
    return places


def same(a, b):
    return a.digest == b.digest and a.classes == b.classes and a.skipped == b.skipped


def test_the_second_time_nothing_is_decoded(images, counted):
    first = load(images, image_size=8)
    assert len(counted) == 80
    assert same(load(images, image_size=8), first)
    assert len(counted) == 80
    load(images, image_size=9)
    assert len(counted) == 160, "another size is decoded anew"


@pytest.mark.parametrize("change", ["content", "time", "more", "less"])
def test_files_that_changed_are_decoded_again(images, counted, change):
    load(images, image_size=8)
    file = images / "bee" / "3.png"
    if change == "content":
        Image.new("L", (30, 30)).save(file)
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "more":
        Image.new("L", (8, 8)).save(images / "bee" / "new.png")
    else:
        file.unlink()
    load(images, image_size=8)
    assert len(counted) == 160 + (change == "more") - (change == "less")


def test_bad_images_are_remembered_as_bad(images, counted):
    (images / "bee" / "3.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 80 images cannot be used: .*3\.png"):
            load(images, image_size=8)
    found = load(images, image_size=8, on_bad_image="skip")
    assert len(found.skipped) == 1
    assert len(counted) == 80


@pytest.mark.parametrize("damage", ["torn", "pixels", "nothing"])
def test_a_damaged_cache_costs_time_only(images, counted, damage):
    first = load(images, image_size=8)
    (file,) = cache_folder().iterdir()
    content = file.read_bytes()
    if damage == "torn":
        file.write_bytes(content[:-7])
    elif damage == "pixels":
        file.write_bytes(content[:-1000] + bytes(900) + content[-100:])
    else:
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="are damaged"):
        assert same(load(images, image_size=8), first)
    assert len(counted) == 160
    assert same(load(images, image_size=8), first)
    assert len(counted) == 160


def test_a_cache_that_cannot_be_written_costs_time_only(images, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert load(images, image_size=8).counts["train"] > 0


def test_a_full_disk_leaves_nothing_half_written(images):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.warns(UserWarning, match="cannot be kept .*File too large"):
            load(images, image_size=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache_folder().iterdir()) == []


def test_what_was_used_longest_ago_goes_first(images):
    for size in range(8, 8 + MOST_KEPT):
        load(images, image_size=size)
    files = sorted(cache_folder().iterdir(), key=lambda each: each.stat().st_mtime_ns)
    assert len(files) == MOST_KEPT
    for index, each in enumerate(files):
        os.utime(each, ns=(index, index))
    load(images, image_size=30)
    left = set(cache_folder().iterdir())
    assert len(left) == MOST_KEPT
    assert files[0] not in left
    assert set(files[1:]) < left


def test_order_and_progress_are_those_of_the_source():
    """Also where images are decoded in several tasks at once."""
    count = 2500
    samples = [Sample("train", str(i), np.full((2, 2), i % 256, np.uint8), i) for i in range(count)]
    seen = []
    source = Source("numbers", iter(samples), count, None)
    found = decode(source, 2, lambda *step: seen.append(step))
    assert found.labels == list(range(count))
    assert (found.pixels[:, 0, 0, 0] == np.arange(count) % 256).all()
    assert seen == [(1024, count), (2048, count), (count, count)]
    assert path_of(source, 2) is None, "without files there is nothing to compare"


def test_a_source_without_a_usable_image():
    empty = Source("nothing", [Sample("train", "here", None, 0)], 1, None)
    with pytest.raises(DataError, match=r"no image that can be used. The first: here \(no image\)"):
        decode(empty, 8)
