"""The one way from an image file to the pixels that a network gets.

Training reads its images with this module, and the `run.py` of an exported model holds a copy of
its text, so that both read an image alike. It therefore imports NumPy and Pillow only. `RULES` says
in words and numbers what it does.
"""

from __future__ import annotations

import io
import math
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

OLDEST = {"Python": (3, 10), "Pillow": (10, 1)}
"""Oldest versions with all that is used here. With older ones, files would seem to be damaged."""

_VERSIONS = {
    "Python": sys.version_info[:2],
    "Pillow": tuple(map(int, PIL.__version__.split(".")[:2])),
}

for _name, _oldest in OLDEST.items():
    if _VERSIONS[_name] < _oldest:
        _here, _least = (".".join(map(str, each)) for each in (_VERSIONS[_name], _oldest))
        sys.exit(f"{_name} {_here} is here; expected {_least} or later. Install a newer {_name}.")

RULES: dict[str, str | int | bool] = {
    "frame": "first",
    "max_pixels": 1 << 26,
    "jpeg_draft": 2,
    "exif_orientation": True,
    "icc_profile": "ignored",
    "bit_depth": "upper 8 bits",
    "transparency": "composited on background",
    "grey": "ITU-R 601-2",
    "crop": "centre",
    "interpolation": "bilinear",
    "antialias": True,
}
"""How an image is read, apart from its size, the background and which of `RESIZES` it is.

`max_pixels`: larger images are refused, because decoding one takes more than about 0.5 GB. For a
JPEG, which can be decoded at a fraction of its size, the decoded pixels count. `jpeg_draft`: a JPEG
is decoded at the smallest of 1/8, 1/4 and 1/2 of its size at which both sides have at least
`jpeg_draft` times the size asked for. `nas.run.model_card.ImageReading` describes the others.
"""

RESIZES = ("cover", "contain")
"""How an image fits into the square: its shorter side fills it, and what is beyond is cropped; or
its longer side does, and the border has the colour of the background."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned, by its EXIF orientation."""

_PNG_START = b"\x89PNG\r\n\x1a\n"

_MAX_METADATA_BYTES = 1 << 24
"""Most bytes of a chunk with EXIF or XMP data that are read, before and after decompression."""


class UnreadableImageError(Exception):
    """An image cannot be used; the message is the reason."""


class UnknownFormatError(UnreadableImageError):
    """A file is not an image in one of the formats that were tried."""


@contextmanager
def open_image(
    file: Path | IO[bytes], size: int, formats: Sequence[str]
) -> Iterator[ImageFile.ImageFile]:
    """Yield an opened image file, whose pixels have not been read.

    Everything that goes wrong inside of the block becomes an UnreadableImageError, too: Pillow
    finds most damages only when it reads the pixels.

    Args:
        file: path or content of the file.
        size: height and width to which `read_pixels` will resize it.
        formats: formats to try, by Pillow's names; those that this Pillow lacks are left out.

    Raises:
        UnknownFormatError: the file is not an image in one of the formats.
        UnreadableImageError: the file is damaged, or has more than `max_pixels` pixels.
    """
    most = int(RULES["max_pixels"])
    try:
        if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UnreadableImageError("not a regular file")  # Opening a pipe blocks.
        Image.init()  # Fills the list of formats.
        formats = [name for name in formats if name in Image.OPEN]
        with _without_metadata(file) as (content, info), Image.open(content, "r", formats) as image:
            image.info.update(info)
            side = int(RULES["jpeg_draft"]) * size
            image.draft(None, (side, side))
            if math.prod(image.size) > most:
                raise UnreadableImageError(
                    f"{image.width} x {image.height} pixels, more than {most}"
                )
            _expand_transparent_value(image)
            yield image
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnknownFormatError(
            f"not an image in one of the formats {', '.join(formats)}"
        ) from error
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"more than {most} pixels") from None
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow raises nearly anything for a damaged file.
        lines = str(error).splitlines() or [""]
        raise UnreadableImageError(f"{type(error).__name__}: {lines[0]}") from error


def read_pixels(
    image: Image.Image,
    size: int,
    background: str,
    channels: int | None = None,
    resize: str = "cover",
) -> np.ndarray:
    """Return the pixels of an image, scaled to a square.

    Args:
        image: image from `open_image`, or made of an array.
        size: height and width of the square.
        background: colour behind transparent pixels, as `PIL.ImageColor` reads it.
        channels: 1 for grey pixels, 3 for RGB; by default those of the image.
        resize: one of `RESIZES`.

    Returns:
        Pixels (uint8), `size x size` if they are grey and `size x size x 3` if they are RGB.

    Raises:
        UnreadableImageError: the range of the pixels is not known.
    """
    image.load()
    turn = _TURNS.get(orientation(image))
    image = _composite(with_8_bits(image), background)
    if turn is not None:
        image = image.transpose(turn)
    if channels == 1:
        image = image.convert("L")
    if resize == "contain" and image.width != image.height:
        image = _with_border(image, size, background, channels)
    elif image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if channels == 3 and pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels


def _with_border(
    image: Image.Image, size: int, background: str, channels: int | None
) -> Image.Image:
    """Return an oblong image of mode L or RGB as a square with borders of one colour.

    It is what `PIL.ImageOps.pad` makes of it, except that no side becomes 0.
    """
    red, green, blue = ImageColor.getrgb(background)[:3]
    if channels != 1 and not red == green == blue:
        image = image.convert("RGB")
    longest = max(image.size)
    width, height = (max(1, round(side / longest * size)) for side in image.size)
    colour = ImageColor.getcolor(background, image.mode)
    canvas = Image.new(image.mode, (size, size), colour)
    place = round((size - width) * 0.5), round((size - height) * 0.5)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), place)
    return canvas


def orientation(image: Image.Image) -> int:
    """Return how a loaded image is to be turned, 1 to 8, as its EXIF data say.

    It is 1, that of an upright image, if the data say nothing or are damaged.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises nearly anything for damaged data, which do not matter.
        return 1
    return value if value in _TURNS else 1


def with_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of mode L or RGB, or of LA or RGBA if it has transparency.

    Raises:
        UnreadableImageError: the pixels are integers of 32 bits or with a sign, or floating-point
            numbers, so that their range is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _upper_8_bits(image)
    if image.mode == "F" or image.mode.startswith("I"):
        raise UnreadableImageError(
            "pixels of 32 bits a channel or with a sign; expected 8 or 16 bits without a sign"
        )
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if is_grey else "RGBA")
    return image.convert("L" if is_grey else "RGB")


def normalise(
    pixels: np.ndarray, size: int, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Return pixels as the input of a network.

    Args:
        pixels: images `N x height x width x channels` (uint8).
        size: height and width of the input. Images of another size are resized with bilinear
            interpolation and antialiasing after they are normalised, as torch does it in training.
        mean: mean by channel, of pixels in [0, 1].
        std: standard deviation by channel, of pixels in [0, 1].

    Returns:
        Values `N x channels x size x size` (float32).
    """
    mean_values, std_values = np.array(mean, np.float32), np.array(std, np.float32)
    values: np.ndarray = (pixels.astype(np.float32) / 255 - mean_values) / std_values
    values = values.transpose(0, 3, 1, 2)
    height, width = values.shape[2:]
    if (height, width) != (size, size):
        values = _interpolation(height, size) @ values @ _interpolation(width, size).T
    return np.ascontiguousarray(values)


@contextmanager
def _without_metadata(
    file: Path | IO[bytes],
) -> Iterator[tuple[Path | IO[bytes], dict[str, str | bytes]]]:
    """Yield what Pillow is to read of a file, and the metadata that it then lacks.

    Pillow refuses a PNG with much text or with a damaged colour profile, and takes some texts for
    statements about the pixels. So it gets a PNG without these.
    """
    with open(file, "rb") if isinstance(file, Path) else nullcontext(file) as stream:
        stream.seek(0)
        yield _split_png(stream) if stream.read(len(_PNG_START)) == _PNG_START else (file, {})


def _split_png(file: IO[bytes]) -> tuple[IO[bytes], dict[str, str | bytes]]:
    """Return a PNG without the chunks on which no pixel depends, and the metadata in these.

    The metadata are those that may say how the image is to be turned, as Pillow names them.
    """
    chunks, metadata = [_PNG_START], dict[str, str | bytes]()
    size, position = file.seek(0, os.SEEK_END), len(_PNG_START)
    while position < size:
        file.seek(position)
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        end = position + length + 12
        if kind == b"IEND" or not kind.isalpha() or end > size:
            end = size  # Whatever is there, even a damaged or truncated chunk.
        if end == size or kind[:1].isupper() or kind == b"tRNS":
            chunks.append(header + file.read(end - position - len(header)))
        elif kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            metadata |= _png_metadata(kind, file.read(min(length, _MAX_METADATA_BYTES)))
        position = end
    return io.BytesIO(b"".join(chunks)), metadata


def _png_metadata(kind: bytes, content: bytes) -> dict[str, str | bytes]:
    """Return the metadata in a chunk that may say how the image is to be turned."""
    if kind == b"eXIf":
        return {"exif": b"Exif\0\0" + content}
    name, _, text = content.partition(b"\0")
    if name not in (b"Raw profile type exif", b"XML:com.adobe.xmp"):
        return {}
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]  # Before it is the method of compression.
    elif kind == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]  # Before it are the language and a translated name.
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, _MAX_METADATA_BYTES)
        except zlib.error:
            return {}
    return {name.decode(): text.decode("latin-1")}


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits with the upper 8 of them."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _composite(image: Image.Image, background: str) -> Image.Image:
    """Return an image of mode L, RGB, LA or RGBA over a background, in mode L or RGB.

    A value becomes `(value * alpha + background * (255 - alpha)) / 255`, rounded.
    """
    if image.mode in ("L", "RGB"):
        return image
    red, green, blue = ImageColor.getrgb(background)[:3]
    if image.mode == "LA" and red == green == blue:
        canvas = Image.new("L", image.size, red)
    else:
        canvas = Image.new("RGB", image.size, (red, green, blue))
        image = image.convert("RGBA")
    canvas.paste(image, mask=image)
    return canvas


def _expand_transparent_value(image: ImageFile.ImageFile) -> None:
    """Give the transparent value of a PNG the 8 bits to which Pillow converts its pixels."""
    value: Any = image.info.get("transparency")
    if image.format != "PNG" or value is None or not image.tile:
        return
    raw_mode = image.tile[0][3]
    if raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(each >> 8 for each in value)
    for bits in (2, 4):
        highest = (1 << bits) - 1
        if raw_mode == f"L;{bits}" and value <= highest:
            image.info["transparency"] = value * (255 // highest)


def _interpolation(size: int, new_size: int) -> np.ndarray:
    """Return the weights `new_size x size` (float32) that resize one side of an image.

    They are triangles around the centres of the new pixels, and as wide as antialiasing needs.
    """
    scale = size / new_size
    centres = (np.arange(new_size)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centres) / max(scale, 1)
    weights = np.clip(1 - distances, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
