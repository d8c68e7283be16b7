"""The cache of decoded images: a damaged file costs time and never gives wrong images or labels."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from nas import files
from nas.data import decoding, image_cache, load_dataset
from nas.data.decoding import decode
from nas.data.image_cache import SelectedPixels, cache_folder
from nas.data.sources import open_source
from nas.data.unlabelled import open_unlabelled
from nas.errors import DataError
from tests.data.folders import add_classes, write_parquet

SIZE = 4
COUNT = 12


@pytest.fixture
def photos(tmp_path, empty_cache) -> Path:
    """Return a folder of two classes with six coloured images each, and one bad image."""
    add_classes(tmp_path / "photos", classes=("ant", "bee"))
    (tmp_path / "photos" / "bee" / "bad.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture(params=["memory", "disk"])
def location(request, monkeypatch) -> str:
    """Where the decoded pixels are: in memory or on disk."""
    if request.param == "disk":
        monkeypatch.setattr(decoding, "MAX_BYTES_IN_MEMORY", 0)
    return request.param


def digest_of(photos: Path) -> tuple:
    data = load_dataset(photos, image_size=SIZE, on_bad_image="skip")
    return data.digest, data.classes, data.skipped


def cached_file() -> Path:
    (file,) = cache_folder().iterdir()
    return file


def file_content(pixels: bytes, record: bytes, length: int | None = None) -> bytes:
    """Return the content of a file of the cache, with a correct digest."""
    content = pixels + record + (len(record) if length is None else length).to_bytes(8, "little")
    return content + hashlib.sha256(content).digest()


def split_content(content: bytes) -> tuple[bytes, dict]:
    """Return the pixels and the record of a file of the cache."""
    length = int.from_bytes(content[-40:-32], "little")
    return content[: -40 - length], json.loads(content[-40 - length : -40])


def test_file_has_the_documented_format(photos, location):
    digest_of(photos)
    content = cached_file().read_bytes()
    pixels, record = split_content(content)
    images = np.frombuffer(pixels, np.uint8).reshape(COUNT, SIZE, SIZE, 3)
    assert images[:, 0, 0, 0].tolist() == [*range(6), *range(50, 56)]
    assert record["labels"] == [0] * 6 + [1] * 6
    assert record["splits"] == ["train"] * COUNT
    assert content == file_content(pixels, content[len(pixels) : -40])


def test_damaged_file_is_replaced(photos, location):
    expected = digest_of(photos)
    file = cached_file()
    whole = file.read_bytes()
    contents = [
        *(b"", b"x" * 39, b"x" * 1000, file_content(b"", b""), file_content(b"", b"{}")),
        *(file_content(b"", b"\xff\xfe"), file_content(b"pixels", b"{}", length=2**63)),
    ]
    for position in (0, len(whole) // 2, -40, -1):
        changed = bytearray(whole)
        changed[position] ^= 1
        contents.append(bytes(changed))
    for content in contents:
        file.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{file.name} are damaged"):
            assert digest_of(photos) == expected
        assert file.read_bytes() == whole


def test_cache_depends_on_the_formats_that_can_be_decoded(photos, monkeypatch):
    """A photo that could not be decoded can be when a reader of its format was installed."""
    before = image_cache.cache_path(open_source(photos), SIZE)
    monkeypatch.setattr(image_cache, "IMAGE_FORMATS", {"PNG": (".png",)})
    assert image_cache.cache_path(open_source(photos), SIZE) != before


def test_cache_detects_an_image_that_moved_to_another_class(photos, tmp_path):
    """The linked files and their order stay the same, but one of them changes its class."""
    for folder in ("ant", "bee"):
        (tmp_path / "links" / folder).mkdir(parents=True)
        for file in (photos / folder).glob("[0-9].png"):
            (tmp_path / "links" / folder / file.name).symlink_to(file)
    before = decoding.decode(open_source(tmp_path / "links"), SIZE)
    (tmp_path / "links" / "ant" / "5.png").rename(tmp_path / "links" / "bee" / "-5.png")
    after = decoding.decode(open_source(tmp_path / "links"), SIZE)
    assert before.record.labels == [0] * 6 + [1] * 6
    assert after.record.labels == [0] * 5 + [1] * 7
    assert (before.pixels == after.pixels).all()


def test_cache_detects_a_link_that_points_to_another_image(photos, tmp_path):
    for value in (1, 2):
        Image.new("RGB", (SIZE, SIZE), (value, 0, 0)).save(tmp_path / f"{value}.png")
        os.utime(tmp_path / f"{value}.png", ns=(1, 1))
    link = photos / "bee" / "0.png"
    digests = set()
    for value in (1, 2):
        link.unlink()
        link.symlink_to(tmp_path / f"{value}.png")
        digests.add(digest_of(photos))
    assert len(digests) == 2


@pytest.mark.parametrize("value", [None, "", "relative/cache"])
def test_cache_folder_ignores_empty_and_relative_xdg_cache_home(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == tmp_path / "home" / ".cache" / "nas" / "images"


@pytest.fixture
def no_home_folder(photos, monkeypatch):
    """A user without an account and without HOME, as in many containers."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])


def test_images_are_not_cached_without_a_home_folder(
    photos, no_home_folder, location, tmp_path, monkeypatch
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with pytest.warns(UserWarning, match="no home folder.*XDG_CACHE_HOME"):
        data = load_dataset(photos, image_size=SIZE, on_bad_image="skip")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert isinstance(data.train.pixels, SelectedPixels) == (location == "disk")
    reds = [int(value) for part in (data.train, data.test) for value in part.pixels[:][:, 0, 0, 0]]
    assert set(reds) < {*range(6), *range(50, 56)}
    assert len(data.digest) == 16


def test_file_in_place_of_the_cache_folder_is_reported(photos, location, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    if location == "disk":
        with pytest.raises(DataError, match=r"GiB in .*/file/nas/images: Not a directory"):
            digest_of(photos)
    else:
        with pytest.warns(UserWarning, match=r"cannot be cached in .*: Not a directory"):
            digest_of(photos)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("can_reserve", [True, False])
def test_full_disk_error_states_the_required_space(photos, monkeypatch, can_reserve):
    """Some file systems cannot reserve space, so that the error comes while images are written."""

    def reserve(*_):
        if can_reserve:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoding, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    os.makedirs(cache_folder())
    real = Path.open

    def full(path, mode="r", *rest, **options):
        return real(Path("/dev/full") if mode == "wb" else path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=r"need 0\.0 GiB in .*: No space left on device"):
        digest_of(photos)
    assert list(cache_folder().iterdir()) == []


def test_eviction_removes_only_files_of_the_cache(photos):
    folder = cache_folder()
    folder.mkdir(parents=True)
    cached = [
        folder / f"{index:032x}.images" for index in range(image_cache.MAX_CACHED_DATASETS + 2)
    ]
    for index, file in enumerate([folder / "photos.json", folder / "mine.images", *cached]):
        file.touch()
        os.utime(file, ns=(index, index))
    digest_of(photos)
    left = {file.name for file in folder.iterdir()}
    assert len(left) == image_cache.MAX_CACHED_DATASETS + 2
    assert {"photos.json", "mine.images"} < left
    assert left.isdisjoint(file.name for file in cached[:3])


def test_file_that_a_killed_process_left_is_removed(photos, monkeypatch):
    cache_folder().mkdir(parents=True)
    with monkeypatch.context() as patch:
        killed = {**files.this_process(), "started": 0.0}
        patch.setattr(files, "this_process", lambda: killed)
        left = files.unfinished(cache_folder() / "photos.images")
    left.touch()
    digest_of(photos)
    assert cached_file().suffix == ".images"
    assert not left.exists()


@pytest.mark.parametrize("kind", ["folder", "parquet", "unknown"])
def test_places_say_nothing_about_the_machine(photos, tmp_path, monkeypatch, kind):
    """A cache that an absolute path filled is read for a relative one, and the other way round."""
    monkeypatch.chdir(photos.parent)
    source = photos
    if kind == "parquet":
        labels = [name for name in ("ant", "bee") for _ in range(8)]
        files = [photos / name / f"{at % 6}.png" for at, name in enumerate(labels)]
        paths = [{"path": str(file)} for file in files]
        source = write_parquet(photos.parent / "photos.parquet", pa.array(paths), labels)

    def places(path: Path) -> list[str]:
        if kind == "unknown":
            decoded = decode(open_unlabelled(path, "digits"), SIZE)
        else:
            decoded = decode(open_source(path), SIZE)
        return [*decoded.record.locations, *decoded.record.bad]

    first = places(source)
    assert first
    assert not any(str(tmp_path) in each for each in first)
    assert places(Path(source.name)) == first
