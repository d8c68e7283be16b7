"""Reading of image files, compared with computations of the same pixels in NumPy and torch."""

import ast
import io
import struct
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageOps
from torch.nn import functional

from nas.data import image_reading
from nas.data.image_formats import IMAGE_FORMATS
from nas.data.image_reading import UnreadableImageError, normalise, open_image, read_pixels
from tests.data.image_files import (
    HEIGHT,
    WIDTH,
    chunk,
    damaged_exif_files,
    image_files,
    in_format,
    noise,
    png,
    pngs_with_metadata,
    transparent_pngs,
    with_chunks,
    with_orientation,
)

SIDE = 9


def read(content: bytes, size: int = SIDE, background: str = "white", channels: int | None = None):
    with open_image(io.BytesIO(content), size, tuple(IMAGE_FORMATS)) as image:
        return read_pixels(image, size, background, channels)


def composited(values, alphas, background=(255, 255, 255)):
    """Return values `h x w x channels` over a background, given alphas `h x w`."""
    alphas = alphas[:, :, None].astype(float)
    return np.rint((values * alphas + np.array(background) * (255 - alphas)) / 255)


def test_text_can_be_shipped_alone():
    """Only NumPy and Pillow are imported, because `run.py` holds a copy of the text."""
    tree = ast.parse(Path(image_reading.__file__).read_text())
    modules = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    own = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert own == {"numpy", "PIL"}


# Transparency


@pytest.mark.parametrize("background", ["white", "black", "#3060c0"])
@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_composited_on_the_background(name, background):
    pixels = noise(SIDE, SIDE, 4)
    lossless = {"lossless": True, "exact": True} if name == "WEBP" else {}
    result = read(in_format(Image.fromarray(pixels), name, **lossless), background=background)
    colour = ImageColor.getrgb(background)
    np.testing.assert_array_equal(result, composited(pixels[..., :3], pixels[..., 3], colour))


@pytest.mark.parametrize(("background", "is_grey"), [("#404040", True), ("red", False)])
def test_grey_images_stay_grey_on_a_grey_background(background, is_grey):
    pixels = noise(SIDE, SIDE, 2)
    result = read(in_format(Image.fromarray(pixels, "LA"), "PNG"), background=background)
    colour = ImageColor.getrgb(background)
    values = np.repeat(pixels[..., :1], 3, axis=2)
    expected = composited(values, pixels[..., 1], colour)
    np.testing.assert_array_equal(result, expected[..., 0] if is_grey else expected)


def test_transparent_value_of_a_16_bit_png_is_compared_with_all_bits():
    values = np.array([[0x1234, 0x12FF], [0xFFFF, 0]])
    result = read(png(values, 0, 16, [(b"tRNS", struct.pack(">H", 0x1234))]), 2, "#808080")
    assert result.tolist() == [[0x80, 0x12], [0xFF, 0]]


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_colour_of_an_rgb_png(bits):
    values = np.random.default_rng(0).integers(0, 2, (SIDE, SIDE, 3)) * ((1 << bits) - 1) // 3
    key = values[0, 0]
    content = png(values, 2, bits, [(b"tRNS", struct.pack(">HHH", *key))])
    expected = np.where((values == key).all(2, keepdims=True), 255, values >> (bits - 8))
    np.testing.assert_array_equal(read(content), expected)


@pytest.mark.parametrize("alphas", [b"\xff\0", b"\0", b"\x40\x80\0\xff", b"\x10"])
def test_transparency_of_a_palette(alphas):
    palette, values = noise(4, 3), np.random.default_rng(0).integers(0, 4, (SIDE, SIDE))
    content = png(values, 3, 2, [(b"PLTE", palette.tobytes()), (b"tRNS", alphas)])
    alpha_of = np.array(list(alphas) + [255] * (4 - len(alphas)))
    expected = composited(palette[values], alpha_of[values], (0, 0, 0))
    np.testing.assert_array_equal(read(content, background="black"), expected)


# Metadata


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("name", pngs_with_metadata())
def test_metadata_of_a_png_do_not_matter_to_its_pixels(tmp_path, name):
    content = pngs_with_metadata()[name]
    (tmp_path / "image").write_bytes(content)
    with open_image(tmp_path / "image", HEIGHT, ["PNG"]) as image:
        assert image.info.keys() <= {"exif"}
        np.testing.assert_array_equal(np.asarray(image), noise(HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(read(content, HEIGHT), noise(HEIGHT, WIDTH, 3)[:, 2:-2])


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("name", damaged_exif_files())
def test_damaged_exif_turns_nothing(name):
    """AVIF is missing: libavif refuses an image with damaged EXIF data."""
    content, upright = damaged_exif_files()[name]
    np.testing.assert_array_equal(read(content), read(upright))


EXIF = with_orientation(noise(SIDE, SIDE, 3), 6, "WEBP").partition(b"EXIF")[2][4:]
RAW_PROFILE = f"\nexif\n{len(EXIF):8}\n{EXIF.hex()}".encode()
XMP = b'<x tiff:Orientation="6"/>' + bytes(2 << 20)


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        chunk(b"eXIf", EXIF.removeprefix(b"Exif\0\0")),
        chunk(b"tEXt", b"Raw profile type exif\0" + RAW_PROFILE),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
        chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE + b"0" * (2 << 20))
        ),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0name\0" + zlib.compress(XMP)),
    ],
    ids=["eXIf", "text", "compressed", "large", "XMP", "large XMP"],
)
def test_png_is_turned_as_its_metadata_say(content, at_end):
    pixels = noise(SIDE, SIDE, 3)
    turned = with_chunks(in_format(Image.fromarray(pixels), "PNG"), content, at_end=at_end)
    np.testing.assert_array_equal(read(turned), TURNS[6](pixels))


def test_text_that_becomes_large_takes_little_memory():
    bomb = zlib.compress(bytes(100 << 20), 1)
    chunks = [
        chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        chunk(b"zTXt", b"Comment\0\0" + bomb),
    ]
    pixels = noise(SIDE, SIDE, 3)
    content = with_chunks(in_format(Image.fromarray(pixels), "PNG"), *chunks)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(read(content), pixels)
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


# Depth and colour


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_of_16_bits_the_upper_8_count(mode):
    values = noise(SIDE, SIDE, dtype=np.uint16)
    kind = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (SIDE, SIDE), values.astype(kind).tobytes())
    for name in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read(in_format(image, name)), values >> 8)
    content = b"P5 9 9 65535 " + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(read(content), values >> 8)
    rgb = noise(SIDE, SIDE, 3, dtype=np.uint16)
    np.testing.assert_array_equal(read(png(rgb, 2, 16)), rgb >> 8)


@pytest.mark.parametrize(
    "name",
    ["TIFF of mode I", "TIFF of mode F", "PPM of mode F", "TIFF of signed 16 bits"],
)
def test_pixels_of_unknown_range_are_refused(name):
    with pytest.raises(UnreadableImageError, match="expected 8 or 16 bits without a sign"):
        read(image_files()[name])


def test_number_of_channels_can_be_chosen():
    pixels = noise(SIDE, SIDE, 3)
    colour = in_format(Image.fromarray(pixels), "PNG")
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read(colour, channels=1), luma, atol=0.51)
    grey = in_format(Image.fromarray(pixels[..., 0]), "PNG")
    np.testing.assert_array_equal(read(grey, channels=3), np.repeat(pixels[..., :1], 3, axis=2))


def test_cmyk_is_the_product_of_inks_and_paper():
    inks = noise(SIDE, SIDE, 4)
    content = in_format(Image.frombytes("CMYK", (SIDE, SIDE), inks.tobytes()), "TIFF")
    paper = 255 - inks.astype(float)
    expected = paper[..., :3] * paper[..., 3:] / 255
    np.testing.assert_allclose(read(content), expected, atol=1)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_counts(name):
    frames = [Image.fromarray(noise(SIDE, SIDE, seed=seed)) for seed in range(3)]
    lossless = {"lossless": True} if name == "WEBP" else {}
    moving = in_format(frames[0], name, save_all=True, append_images=frames[1:], **lossless)
    expected = read(in_format(frames[0], name, **lossless))
    np.testing.assert_array_equal(read(moving), expected)


def test_formats_that_pillow_lacks_are_left_out():
    content = in_format(Image.fromarray(noise(SIDE, SIDE)), "BMP")
    formats = ("FROM_THE_FUTURE", "PNG", "BMP")
    with open_image(io.BytesIO(content), SIDE, formats) as image:
        assert image.format == "BMP"
    with (
        pytest.raises(UnreadableImageError, match="in one of the formats PNG, BMP$"),
        open_image(io.BytesIO(b"nothing"), SIDE, formats),
    ):
        pass


# Geometry


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP"])
def test_image_is_turned_as_exif_says(name, orientation):
    pixels = noise(SIDE, SIDE, 3)
    lossless = {"lossless": True} if name == "WEBP" else {}
    content = with_orientation(pixels, orientation, name, **lossless)
    np.testing.assert_array_equal(read(content), TURNS[orientation](pixels))


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (8, 30), (5, 5), (48, 16)])
def test_shorter_side_is_resized_and_the_centre_cropped(width, height):
    """Torch resizes floating-point numbers, and Pillow rounds after each direction."""
    pixels = noise(height, width, 3)
    scale = 16 / min(width, height)
    new_height, new_width = round(height * scale), round(width * scale)
    assert (new_height % 2, new_width % 2) == (0, 0), "the margins are whole pixels"
    whole = functional.interpolate(
        torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None],
        (new_height, new_width),
        mode="bilinear",
        antialias=True,
    )[0].permute(1, 2, 0)
    top, left = (new_height - 16) // 2, (new_width - 16) // 2
    result = read(in_format(Image.fromarray(pixels), "PNG"), 16)
    np.testing.assert_allclose(result, whole[top : top + 16, left : left + 16], atol=1.01)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (8, 30), (480, 24), (7, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_image_is_fitted_in_between_borders(width, height, channels):
    image = Image.fromarray(noise(height, width, 3)).convert("L" if channels == 1 else "RGB")
    result = read_pixels(image, 16, "#3060c0", channels, "contain")
    expected = ImageOps.pad(image, (16, 16), Image.Resampling.BILINEAR, "#3060c0")
    np.testing.assert_array_equal(result, np.asarray(expected))
    longest = max(width, height)
    inside = np.array([round(16 * height / longest), round(16 * width / longest)])
    behind = [(0x30 * 299 + 0x60 * 587 + 0xC0 * 114) / 1000] if channels == 1 else [48, 96, 192]
    is_border = np.abs(result.reshape(16, 16, -1) - np.array(behind)).max(2) < 1
    assert (~is_border).any(1).sum() == inside[0]
    assert (~is_border).any(0).sum() == inside[1]


def test_no_image_is_too_long_to_be_fitted_in():
    image = Image.new("L", (2000, 3), 200)
    result = read_pixels(image, 16, "black", None, "contain")
    assert (result == 200).sum() == 16
    coloured = read_pixels(image, 16, "red", None, "contain")
    assert coloured.shape == (16, 16, 3)
    assert (coloured == [255, 0, 0]).all(2).sum() == 15 * 16


@pytest.mark.parametrize(
    ("width", "height", "size", "scale"),
    [(640, 480, 30, 8), (640, 480, 31, 4), (640, 480, 60, 4), (640, 480, 121, 1), (90, 700, 20, 2)],
)
def test_large_jpeg_is_decoded_at_a_fraction_of_its_size(width, height, size, scale):
    content = in_format(Image.new("RGB", (width, height), (200, 100, 0)), "JPEG")
    with open_image(io.BytesIO(content), size, tuple(IMAGE_FORMATS)) as image:
        assert image.size == (-(-width // scale), -(-height // scale))


# The input of a network


@pytest.mark.parametrize(("size", "new_size"), [(8, 6), (32, 24), (32, 40), (7, 3), (64, 64)])
def test_input_is_resized_as_torch_resizes_it_in_training(size, new_size):
    pixels, mean, std = noise(3, size, size, 3), [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    result = normalise(pixels, new_size, mean, std)
    values = (torch.from_numpy(pixels) / 255 - torch.tensor(mean)) / torch.tensor(std)
    expected = functional.interpolate(
        values.permute(0, 3, 1, 2), (new_size, new_size), mode="bilinear", antialias=True
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-5)


def outcome(content: bytes) -> np.ndarray | str:
    try:
        return read(content, 8)
    except UnreadableImageError as error:
        return str(error)


def test_every_file_is_read_or_refused_in_one_sentence():
    assert min(WIDTH, HEIGHT) > 8, "all files are resized"
    for name, content in {**image_files(), **transparent_pngs()}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = outcome(content)
        if isinstance(result, str):
            assert len(result.splitlines()) == 1, name
        else:
            assert result.shape in ((8, 8), (8, 8, 3)), name
