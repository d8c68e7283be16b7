"""Decoding: which images are good, and when the cache is used instead."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from nas.data import decoding, image_cache, image_reading, load_dataset
from nas.data.decoding import decode
from nas.data.image_cache import SelectedPixels, cache_folder, cache_path
from nas.data.image_formats import IMAGE_FORMATS
from nas.data.sources import Sample, Source, open_source
from nas.errors import DataError
from tests.data.folders import write_noise
from tests.data.image_files import chunk, in_format


@pytest.fixture
def images(tmp_path, empty_cache) -> Path:
    """Return a folder of grey and coloured images of two classes."""
    rng = np.random.default_rng(0)
    for name, shape in (("bee", (12, 9)), ("cow", (10, 10, 3))):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index in range(40):
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


def decoded_images(images: Path, image_size: int = 8, **options) -> int:
    """Load a dataset, and return how many images were decoded and not read from the cache."""
    seen = [0]
    with suppress(DataError):
        load_dataset(
            images, image_size=image_size, progress=lambda done, _: seen.append(done), **options
        )
    return seen[-1]


def test_decoded_images_are_read_from_the_cache(images):
    assert decoded_images(images) == 80
    first = load_dataset(images, image_size=8)
    again = load_dataset(images, image_size=8)
    assert again.digest == first.digest
    assert (again.classes, again.skipped) == (first.classes, first.skipped)
    assert decoded_images(images) == 0
    assert decoded_images(images, image_size=9) == 80, "another size is decoded again"


def test_images_are_decoded_again_after_a_change(images):
    load_dataset(images, image_size=8)
    file = images / "bee" / "3.png"
    os.utime(file, ns=(1, 1))
    assert decoded_images(images) == 80
    Image.new("L", (8, 8)).save(images / "bee" / "new.png")
    assert decoded_images(images) == 81
    file.unlink()
    assert decoded_images(images) == 80
    assert decoded_images(images) == 0


def test_decode_keeps_the_order_of_the_source_and_reports_progress():
    """The order holds although several threads decode."""
    count = 2500
    samples = [Sample("train", str(i), np.full((2, 2), i % 256, np.uint8), i) for i in range(count)]
    seen = []
    source = Source("numbers", iter(samples), count, None)
    images = decode(source, 2, lambda *step: seen.append(step))
    assert images.record.labels == list(range(count))
    assert (images.pixels[:, 0, 0, 0] == np.arange(count) % 256).all()
    assert seen == [(1024, count), (2048, count), (count, count)]
    assert cache_path(source, 2) is None, "a source without files is not cached"


def decode_content(content, size=4):
    """Return the pixels of an image file, or the reason why it cannot be used."""
    good = Sample("train", "good", np.zeros((size, size), np.uint8), 0)
    source = Source("two", [Sample("train", "here", content, 0), good], 2, None)
    decoded = decode(source, size)
    return decoded.record.bad[0] if decoded.record.bad else decoded.pixels[0]


def huge_png(side: int) -> bytes:
    """Return a PNG whose header states a size, with almost no pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
newpath 0 0 moveto 10 10 lineto stroke
showpage
%%EOF
"""


def test_decoding_never_starts_a_program(images, monkeypatch):
    assert Image.open(io.BytesIO(EPS)).format == "EPS", "Pillow would read it"

    def started(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(os, "system", started)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    (images / "bee" / "evil.png").write_bytes(EPS)
    with pytest.raises(DataError, match=r"1 of 81 .* bee/evil\.png \(not an image in one of"):
        load_dataset(images, image_size=8)
    assert "not an image in one of the formats BMP, GIF, JPEG, PNG" in decode_content(EPS)


def test_huge_images_are_bad_and_their_pixels_are_not_read(monkeypatch):
    def load_pixels(*_):
        raise AssertionError("pixels were read")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Just above the limit; where Pillow only warns; where Pillow refuses.
        for side in (8193, 9600, 14000):
            assert "67108864" in decode_content(huge_png(side))


def test_pixel_limit_counts_a_jpeg_at_its_decoded_size(monkeypatch):
    content = in_format(Image.new("RGB", (400, 400), (200, 100, 0)), "JPEG")
    monkeypatch.setitem(image_reading.RULES, "max_pixels", 100 * 100)
    np.testing.assert_allclose(decode_content(content, 50)[0, 0], (200, 100, 0), atol=3)
    assert "200 x 200 pixels, more than 10000" in decode_content(content, 60)


def test_large_images_are_decoded_one_at_a_time(images, monkeypatch):
    first = load_dataset(images, image_size=8).digest
    for file in cache_folder().iterdir():
        file.unlink()
    monkeypatch.setattr(decoding, "_MAX_CONCURRENT_IMAGE_PIXELS", 0)
    active, most = 0, 0
    real = decoding.read_pixels

    def scaled(*arguments):
        nonlocal active, most
        active += 1
        most = max(most, active)
        result = real(*arguments)
        active -= 1
        return result

    monkeypatch.setattr(decoding, "read_pixels", scaled)
    assert load_dataset(images, image_size=8).digest == first
    assert most == 1


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("name", sorted(IMAGE_FORMATS))
def test_damaged_image_gives_a_short_reason_or_a_full_array(name):
    """Truncated or changed content gives an array of the right size, or a short reason."""
    rng = np.random.default_rng(0)
    whole = in_format(Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)), name)
    variants = [whole[: len(whole) * part // 20] for part in range(19)]
    for _ in range(100):
        changed = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 200), 3):
            changed[at] = rng.integers(0, 256)
        variants.append(bytes(changed))
    for content in variants:
        result = decode_content(content)
        if isinstance(result, str):
            assert 0 < len(result) < 600
            assert result.isprintable()
        else:
            assert result.shape in ((4, 4, 1), (4, 4, 3))
    assert isinstance(decode_content(whole[: len(whole) // 2]), str), (
        "half of an image is not an image"
    )


def keep_on_disk(monkeypatch):
    """Keep the images of all datasets on disk."""
    monkeypatch.setattr(decoding, "MAX_BYTES_IN_MEMORY", 0)


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 3)])
def test_images_on_disk_equal_those_in_memory(tmp_path, empty_cache, monkeypatch, shape):
    images = write_noise(tmp_path / "images", shape)
    (images / "cow" / "7.png").write_bytes(b"broken")
    monkeypatch.setattr(image_cache, "_CHUNK_BYTES", 1000)  # Read in several parts.
    in_memory = load_dataset(images, image_size=8, on_bad_image="skip")
    assert isinstance(in_memory.train.pixels, np.ndarray)
    for file in cache_folder().iterdir():
        file.unlink()
    keep_on_disk(monkeypatch)
    first = load_dataset(images, image_size=8, on_bad_image="skip")
    again = load_dataset(images, image_size=8, on_bad_image="skip", progress=pytest.fail)
    for on_disk in (first, again):
        assert isinstance(on_disk.train.pixels, SelectedPixels)
        assert on_disk.train.pixels.shape == in_memory.train.pixels.shape
        assert on_disk.train.pixels.nbytes == in_memory.train.pixels.nbytes
        assert on_disk.digest == in_memory.digest
        assert on_disk.skipped == in_memory.skipped
        np.testing.assert_array_equal(on_disk.mean, in_memory.mean)
        np.testing.assert_array_equal(on_disk.std, in_memory.std)


def test_interrupted_decoding_leaves_no_file(tmp_path, empty_cache, monkeypatch):
    images = write_noise(tmp_path / "images", (9, 9, 3))
    keep_on_disk(monkeypatch)

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_dataset(images, image_size=8, progress=interrupted)
    assert list(cache_folder().iterdir()) == []


# Kinds of files


def kinds_of(decoded):
    return {each.kind: (each.count, each.content) for each in decoded.record.examples}


def write_kinds(folder: Path) -> dict[str, bytes]:
    """Write a folder of two classes; return the smallest file of each kind."""
    grey, colour = Image.new("L", (9, 9), 7), Image.new("RGB", (9, 9), (1, 2, 3))
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8))
    files = {
        "bee/1.png": in_format(noisy, "PNG"),
        "bee/2.png": in_format(grey, "PNG"),
        "bee/3.png": in_format(colour, "PNG"),
        "cow/1.jpg": in_format(colour.resize((90, 90)), "JPEG"),
        "cow/2.png": in_format(noisy, "PNG"),
        "cow/3.png": in_format(colour.convert("RGBA"), "PNG"),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return {
        "PNG L": (3, files["bee/2.png"]),
        "PNG RGB": (1, files["bee/3.png"]),
        "JPEG RGB, decoded at 1/8": (1, files["cow/1.jpg"]),
        "PNG RGBA, alpha": (1, files["cow/3.png"]),
    }


def test_smallest_file_of_each_kind_is_an_example(tmp_path, empty_cache):
    expected = write_kinds(tmp_path / "images")
    for _ in range(2):  # The second time they come from the cache.
        decoded = decode(open_source(tmp_path / "images"), 4)
        assert kinds_of(decoded) == expected
        assert next(iter(kinds_of(decoded))) == "PNG L", "the kind with the most images"
    data = load_dataset_of_examples(tmp_path / "images")
    for example in data.examples:
        pixels = np.broadcast_to(decode_content(example.content), (4, 4, 3))
        np.testing.assert_array_equal(data.inventory.images.pixels[example.position], pixels)
        location = data.inventory.locations[example.position]
        assert example.content == (tmp_path / "images" / location).read_bytes()


def load_dataset_of_examples(folder: Path):
    """Load a dataset whose classes are large enough to be split."""
    for name in ("bee", "cow"):
        for index in range(20):
            content = in_format(Image.effect_noise((9, 9), 50), "PNG")
            (folder / name / f"more{index}.png").write_bytes(content)
    return load_dataset(folder, image_size=4)


def test_large_and_rare_files_are_no_examples(tmp_path, empty_cache, monkeypatch):
    expected = write_kinds(tmp_path / "images")
    monkeypatch.setattr(decoding, "MAX_EXAMPLE_FILES", 3)
    monkeypatch.setattr(decoding, "MAX_EXAMPLE_BYTES", len(expected["PNG RGB"][1]) + 10)
    stored = kinds_of(decode(open_source(tmp_path / "images"), 4))
    assert {kind: count for kind, (count, _) in stored.items()} == {
        kind: count for kind, (count, _) in expected.items()
    }
    assert stored["JPEG RGB, decoded at 1/8"] == (1, b""), "it is larger"
    assert sum(bool(content) for _, content in stored.values()) == 3


# Images that are drawn by their transparency


def icon(colour, hidden=(0, 0, 0), seed=0, half=False) -> bytes:
    """Return an icon: a random shape of a colour on transparent pixels of another."""
    shape = np.random.default_rng(seed).random((9, 9)) < 0.5
    pixels = np.where(shape[..., None], (*colour, 200 if half else 255), (*hidden, 0))
    return in_format(Image.fromarray(pixels.astype(np.uint8)), "PNG")


def write_icons(folder: Path, contents: list[bytes]) -> Path:
    for index, content in enumerate(contents):
        path = folder / ("bee", "cow")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("colour", "background", "words"),
    [
        ((0, 0, 0), "white", "composited on white. Set background"),
        ((250, 255, 255), "white", "white. 20 of them have that colour themselves and become"),
        ((250, 255, 255), "black", "composited on black. Set background"),
        ((10, 10, 10), "#000", "#000. 20 of them have that colour"),
    ],
)
def test_icons_that_differ_in_transparency_only_are_warned_of(
    tmp_path, empty_cache, colour, background, words
):
    icons = [icon(colour, hidden=(0, 99, 0), seed=seed, half=seed % 3 == 0) for seed in range(20)]
    folder = write_icons(tmp_path / "icons", icons)
    for _ in range(2):  # The second time from the cache.
        with pytest.warns(UserWarning, match="20 of 20 images .* by their transparency alone") as w:
            load_dataset(folder, image_size=9, background=background)
        assert any(words in str(each.message) for each in w)


def test_other_images_with_transparency_are_not_warned_of(tmp_path, empty_cache):
    rng = np.random.default_rng(0)
    contents = []
    for seed in range(20):
        pixels = rng.integers(0, 256, (9, 9, 4), np.uint8)
        opaque = np.full((9, 9, 4), 255, np.uint8)
        opaque[..., :3] = seed
        contents += [in_format(Image.fromarray(each), "PNG") for each in (pixels, opaque)]
    contents += [icon((0, 0, 0))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(write_icons(tmp_path / "images", contents), image_size=9)


@pytest.mark.parametrize("background", ["whyte", "#12", "#ffffff80", ""])
def test_background_that_is_no_opaque_colour_is_refused(tmp_path, background):
    with pytest.raises(DataError, match="background is .*expected a colour"):
        load_dataset("digits", background=background)
