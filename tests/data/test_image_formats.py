"""Formats that cannot be decoded: the reason names the format, whatever the file is called."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nas.data import image_formats, load_dataset
from nas.data.decoding import decode
from nas.data.sources import open_source
from nas.errors import DataError
from tests.data.image_files import in_format, noise

HEIC = bytes.fromhex("0000001c66747970") + b"heic" + bytes(4) + b"mif1heic" + bytes(200)
AVIF = bytes.fromhex("0000002066747970") + b"avif" + bytes(4) + b"avifmif1miaf" + bytes(90)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(noise(60, 80, 3, seed=seed))


@pytest.fixture
def photos(tmp_path, empty_cache):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            picture(index).save(tmp_path / "photos" / name / f"{index}.jpg")
    return tmp_path / "photos"


@pytest.fixture
def without_readers(monkeypatch):
    """Let Pillow have no reader of AVIF and HEIC."""
    lacking = ("HEIF", "AVIF")
    formats = {k: v for k, v in image_formats.IMAGE_FORMATS.items() if k not in lacking}
    monkeypatch.setattr(image_formats, "IMAGE_FORMATS", formats)
    monkeypatch.setattr("nas.data.decoding.IMAGE_FORMATS", formats)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.heif", "IMG_1.jpg"])
def test_heic_photos_are_unreadable_images_counted_by_class(photos, without_readers, name):
    for index in range(3):
        (photos / "dog" / f"{index}{name}").write_bytes(HEIC)
    with pytest.raises(DataError) as caught:
        load_dataset(photos)
    message = str(caught.value)
    assert f"3 of 15 images of {photos} cannot be used: dog 3." in message
    assert f" dog/0{name} (HEIC, which needs pillow-heif)" in message
    assert "pip install 'hardware-nas[heic]'" in message
    data = load_dataset(photos, on_bad_image="skip")
    assert data.skipped_by_class == {"dog": 3}
    assert "12 images of 2 classes: cat 6, dog 6;" in data.summary
    assert data.summary.endswith("; left out, unreadable: dog 3")


def test_source_of_heic_photos_alone_names_the_remedy(photos, without_readers):
    for file in photos.glob("*/*.jpg"):
        file.write_bytes(HEIC)
    with pytest.raises(DataError, match=r"no image that can be used.*HEIC.*pip install"):
        load_dataset(photos, on_bad_image="skip")


@pytest.mark.parametrize(
    ("content", "extensions", "reason"),
    [
        (b"\xff\x0a" + bytes(90), "jxl svg jpg", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), "jxl jpg", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(90), "jp2 jpg", "JPEG 2000"),
        (bytes.fromhex("0000001866747970") + b"crx " + bytes(90), "jpg", "camera's raw file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg jpg", "in one of the formats BMP"),
        (AVIF, "avif jpg", "AVIF, which this installation of Pillow cannot open"),
        # Pillow would read the preview in a raw file.
        (in_format(picture(0), "TIFF"), "dng CR2 nef", "camera's raw file; convert it"),
        *((in_format(Image.new("RGB", (16, 16)), name), "png", "not an image in one of")
          for name in ("TGA", "PCX", "ICO", "PDF")),
    ],
)  # fmt: skip
def test_other_known_images_are_unreadable(photos, without_readers, content, extensions, reason):
    for extension in extensions.split():
        path = photos / "cat" / f"other.{extension}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"1 of 13 .*cat 1\. .*/{path.name} \(.*{reason}"):
            load_dataset(photos)
        path.unlink()


def test_jpeg_with_a_second_picture_is_its_first_picture(photos, tmp_path):
    both = in_format(picture(7), "MPO", save_all=True, append_images=[picture(8)])
    (photos / "cat" / "0.jpg").write_bytes(both)
    assert Image.open(photos / "cat" / "0.jpg").format == "MPO", "Pillow sees both"
    alone = tmp_path / "alone" / "cat"
    alone.mkdir(parents=True)
    picture(7).save(alone / "0.jpg")
    pixels = [decode(open_source(root), 8).pixels[0] for root in (photos, alone.parent)]
    np.testing.assert_array_equal(*pixels)


def test_images_with_the_extension_of_another_format_are_read(photos):
    for kind in ("PNG", "WEBP", "BMP"):
        for end in ("jpg", "webp"):
            picture(7).save(photos / "cat" / f"{kind}.{end}", kind)
    assert load_dataset(photos).class_counts == {"cat": 12, "dog": 6}


@pytest.fixture
def reloaded():
    """Return a function that imports the module anew; it is restored afterwards."""
    yield lambda: importlib.reload(image_formats).IMAGE_FORMATS
    importlib.reload(image_formats)


def test_reader_of_heic_is_registered_if_it_is_installed(monkeypatch, reloaded):
    calls = []
    reader = SimpleNamespace(register_heif_opener=lambda: calls.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    assert ".heic" in reloaded()["HEIF"]
    assert calls == [1]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "HEIF" not in reloaded()
    monkeypatch.undo()


def test_heic_photo_is_read_like_the_image_that_it_was_made_of(photos):
    pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 64), (200, 100, 0))
    for name in ("photo.heic", "photo.jpg"):
        image.save(photos / "dog" / name, "HEIF")
    decoded = decode(open_source(photos), 8)
    assert decoded.record.bad == []
    of_photos = ["photo." in location for location in decoded.record.locations]
    assert sum(of_photos) == 2
    np.testing.assert_allclose(decoded.pixels[of_photos], [[[[200, 100, 0]] * 8] * 8] * 2, atol=4)
