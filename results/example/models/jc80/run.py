"""Classify images: python run.py IMAGE... [--model FILE] [--json] [--log FILE]

With --check in place of images, it says whether it answers here as it did at its export. `card.md`
names the packages that it needs, with their versions.

The `run.py` of a model folder is this file with the texts of the modules of `nas` that it imports.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


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


import os
import re
import stat
import struct
from pathlib import Path

HEAD_BYTES = 64
"""How much of a file `foreign_kind` needs."""

_FOREIGN_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself, which `git lfs pull` "
    "fetches",
    b"/annex/objects/": "a pointer of git-annex, not the file itself, which `git annex get` "
    "fetches",
    b"<": "a web page (HTML or XML), which a download from a wrong address leaves",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed with gzip, and has to be unpacked first",
}
"""What files of other kinds begin with, and what they are."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What many programs of Windows write before text in UTF-8."""

_UTF_16 = re.compile(
    rb"\xff\xfe(?:[\t\n\r -~]\0){2}|\xfe\xff(?:\0[\t\n\r -~]){2}"
    rb"|(?:[\t\n\r -~]\0){4}|(?:\0[\t\n\r -~]){4}"
)
"""How text in UTF-16 begins: with a byte order mark or without, in either order of the bytes."""

_UTF_16_KIND = (
    "text in UTF-16, which Windows PowerShell writes with > and Notepad as Unicode, and has to be "
    "saved as UTF-8"
)

_ELF_HEADERS = {1: ("I", 32, 46), 2: ("Q", 40, 58)}
"""Type and position of the offset of an ELF file's sections, and position of their size and number,
for 32 and 64 bits."""


def foreign_kind(head: bytes) -> str:
    """Return what a file is that begins with these bytes: `a pointer of Git LFS, ...`.

    The text is empty for a kind that is none of those that take the place of other files. Any
    content that begins with "<" counts as a web page.
    """
    if _UTF_16.match(head):
        return _UTF_16_KIND
    start = without_mark(head[:HEAD_BYTES]).lstrip()
    return next((what for first, what in _FOREIGN_KINDS.items() if start.startswith(first)), "")


def without_mark(content: bytes) -> bytes:
    """Return the content of a text file without the byte order mark that it may begin with."""
    return content.removeprefix(BYTE_ORDER_MARK)


def file_problem(path: Path) -> str:
    """Return why a file cannot be used, without its path: `it is empty`.

    The text is empty if nothing speaks against the file: it is a regular file with content, of no
    foreign kind, and not a shared library that ends early, which would end a process that loads it.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # Opening a pipe blocks.
            return "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file"
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not head:
        return "it is empty"
    if kind := foreign_kind(head):
        return f"it is {kind}"
    if status.st_size < (smallest := _smallest_size(head)):
        return f"it is cut: {status.st_size} of at least {smallest} bytes"
    return ""


NOTHING_RUNS = "nothing may be run from its disk, which is mounted with the option noexec"
"""Why a program or a library cannot be used where `may_run_from` is false."""


def may_run_from(path: Path) -> bool:
    """Return whether the disk of a file or folder lets programs be run and libraries be loaded."""
    if not hasattr(os, "ST_NOEXEC"):  # The system has no such disks, or does not say.
        return True
    return not os.statvfs(path).f_flag & os.ST_NOEXEC


def _smallest_size(head: bytes) -> int:
    """Return the least size of the shared library that begins with these bytes; 0 for other files.

    The table of its sections is the last part of an ELF file.
    """
    if head[:4] != b"\x7fELF":
        return 0
    if len(head) < HEAD_BYTES or head[4] not in _ELF_HEADERS:
        return HEAD_BYTES
    order = ">" if head[5] == 2 else "<"
    kind, offset_at, sizes_at = _ELF_HEADERS[head[4]]
    (offset,) = struct.unpack_from(order + kind, head, offset_at)
    size, count = struct.unpack_from(order + "HH", head, sizes_at)
    return int(offset + size * count)


import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np


try:
    import pillow_heif
except ImportError:  # HEIC photos of phones cannot be read without it.
    pass
else:
    pillow_heif.register_heif_opener()

LogitsOf = Callable[[np.ndarray], np.ndarray]
"""Returns the logits of an image, from the input of the network."""

NOT_FINITE = "the network's answer has values that are not finite"
"""Why an image has no class: numbers that are none would pass as a sure answer."""

OutputsOf = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Returns the outputs of a file, each with one row, the logits first."""


def use_file(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function makes of a file, or end with one line that names the file."""
    problem = file_problem(path)
    if not problem:
        try:
            return function(*arguments)
        except Exception as error:  # Runtimes raise nearly anything.
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            problem = f"it cannot be read ({type(error).__name__}: {lines[0].strip()[:300]})"
            if path.suffix == ".so" and not may_run_from(path):
                problem = f"{NOTHING_RUNS}: copy the folder to another disk"
    sys.exit(f"{path}: {problem}")


def plain_output() -> None:
    """Write escapes for characters that the terminal does not show, such as those of a name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_quietly(main: Callable[[], int]) -> int:
    """Return the status of a script; 1 if nobody reads its output to the end, such as `head`."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def decoded(file: Path | IO[bytes], preprocessing: dict[str, Any]) -> np.ndarray:
    """Return the pixels of an image file, 1 x height x width x channels (uint8)."""
    how, channels = preprocessing["reading"], preprocessing["channels"]
    for name, value in RULES.items():
        if how.get(name) != value:
            sys.exit(f"preprocessing.json has {name} {how.get(name)!r}; expected {value!r}")
    if (resize := how.get("resize")) not in RESIZES:
        sys.exit(f"preprocessing.json has resize {resize!r}; expected {' or '.join(RESIZES)}")
    size = how["decoded_size"]
    with open_image(file, size, how["formats"]) as image:
        pixels = read_pixels(image, size, how["background"], channels, resize)
    return pixels.reshape(1, size, size, channels)


def as_input(pixels: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    """Return decoded pixels as the input of the network, 1 x channels x height x width."""
    size, mean, std = (preprocessing[name] for name in ("image_size", "mean", "std"))
    return normalise(pixels, size, mean, std)


def network_input(path: Path, preprocessing: dict[str, Any]) -> np.ndarray:
    """Return an image file as the input of the network, 1 x channels x height x width."""
    return as_input(decoded(path, preprocessing), preprocessing)


def open_onnx(path: Path) -> OutputsOf:
    """Load a file for ONNX Runtime, which may have several outputs."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Read when ONNX Runtime is imported.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})


def load_onnx(path: Path) -> LogitsOf:
    """Load a network for ONNX Runtime."""
    outputs_of = open_onnx(path)
    return lambda image: outputs_of(image)[0][0]


def classify(
    names: Sequence[str],
    model: Path,
    logits_of: LogitsOf,
    preprocessing: dict[str, Any],
    as_json: bool,
    log: ImageLog | None = None,
) -> int:
    """Print the classes of image files, or their logits as JSON.

    Args:
        names: paths of the files.
        model: file of the network, for messages.
        logits_of: returns the logits.
        preprocessing: what `preprocessing.json` holds.
        as_json: whether to print the logits.
        log: gets a line for each file, after its answer is printed.

    Returns:
        0, or 1 if a file is no image that can be read, or the network gives it no class.
    """
    plain_output()
    results: list[dict[str, Any]] = []
    for name in names:
        try:
            pixels = decoded(Path(name), preprocessing)
            logits = use_file(model, logits_of, as_input(pixels, preprocessing))
            problem = "" if np.isfinite(logits).all() else NOT_FINITE
        except UnreadableImageError as error:
            problem = str(error)
        if problem:
            results.append({"image": name, "error": problem})
            if log is not None:
                log.note(name, error=problem)
        else:
            confidence = probabilities_of(logits)
            unsure = bool(confidence.max() < (preprocessing.get("min_confidence") or 0))
            results.append({"image": name, "logits": logits.tolist(), "unsure": unsure})
            if log is not None:
                log.note(name, pixels, confidence)
        if not as_json:
            try:
                print_answer(results[-1], preprocessing["classes"], has_name=len(names) > 1)
            finally:
                if log is not None:
                    log.write()
    if as_json:
        try:
            print(json.dumps(results))
        finally:
            if log is not None:
                log.write()
    return int(any("error" in result for result in results))


def print_answer(result: dict[str, Any], classes: Sequence[str], *, has_name: bool) -> None:
    """Print the most probable classes of an image file, or why there are none."""
    if "error" in result:
        print(f"{result['image']}: {result['error']}", file=sys.stderr)
        return
    if has_name:
        print(result["image"])
    if result["unsure"]:
        print("unsure")
        return
    probabilities = probabilities_of(np.array(result["logits"]))
    for position in probabilities.argsort()[::-1][:5]:
        print(f"{probabilities[position]:6.1%}  {classes[position]}")


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classes."""
    values = np.exp(logits.astype(np.float64) - logits.max())
    return values / values.sum()


import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = ("brightness", "contrast", "sharpness")
"""What `image_figures` returns of an image."""


def image_figures(pixels: np.ndarray) -> np.ndarray:
    """Return brightness, contrast and sharpness of decoded images, `N x 3`.

    They are the mean and the standard deviation of the grey values, which are from 0 to 1, and the
    mean absolute difference of neighbours.

    Args:
        pixels: images `N x height x width x channels` (uint8).
    """
    grey = pixels.mean(-1, dtype=np.float32) / 255
    down, right = (np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2))
    return np.stack([grey.mean((1, 2)), grey.std((1, 2)), (down + right) / 2], axis=1)


class ImageLog:
    """The log of a model. Answers never wait for it, and do without one that cannot be written.

    Args:
        path: path of the log.
        digest: digest of the weights, which each line names.
        has_paths: whether the lines have the paths of the images.
    """

    def __init__(self, path: Path, digest: str, has_paths: bool) -> None:
        self._path, self._digest, self._has_paths = path, digest, has_paths
        self._lines: list[dict[str, object]] = []
        self._has_failed = False

    def note(
        self,
        name: str,
        pixels: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        error: str = "",
    ) -> None:
        """Note an image for `write`.

        Args:
            name: path of the image.
            pixels: its decoded pixels, `1 x height x width x channels` (uint8); None if it cannot
                be read.
            probabilities: those of the classes; None if it cannot be read.
            error: why it cannot be read.
        """
        line: dict[str, object] = {"time": round(time.time(), 3), "model": self._digest}
        if self._has_paths:
            line["image"] = name
        if error:
            line["error"] = error
        if pixels is not None and probabilities is not None:
            line["class"] = int(probabilities.argmax())
            line["confidence"] = round(float(probabilities.max()), 6)
            figures = image_figures(pixels)[0]
            line.update(
                (each, round(float(own), 6)) for each, own in zip(FIGURES, figures, strict=True)
            )
        self._lines.append(line)

    def write(self) -> None:
        """Append the lines of the images noted; say once on standard error if that fails."""
        # Whoever reads the answers may have left. Python says at the end what was not printed.
        with suppress(OSError):
            sys.stdout.flush()
        lines, self._lines = self._lines, []
        try:
            for line in lines:
                append_line(self._path, line)
        except OSError as error:
            if not self._has_failed:
                text = f"{self._path}: the log cannot be written ({error.strerror})"
                print(text, file=sys.stderr)
            self._has_failed = True


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a log, behind one that a killed process may have left unfinished."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        else:
            start = b""
        file.write(start + json.dumps(line).encode() + b"\n")


import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np



def load_tflite(path: Path) -> LogitsOf:
    """Load a network for LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits_of(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry["index"], np.ascontiguousarray(image.transpose(0, 2, 3, 1)))
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])[0]

    return logits_of


def load_tvm(path: Path) -> LogitsOf:
    """Load a library that TVM compiled."""
    if os.path.expanduser("~") == "~":  # TVM needs a home folder, which some containers lack.
        os.environ["HOME"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    import tvm

    network = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())

    def logits_of(image: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        return network["main"](tvm.runtime.tensor(values)).numpy()[0]

    return logits_of


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".so": load_tvm}
"""Functions that load a file, by its suffix."""


def load_network(path: Path) -> LogitsOf:
    """Return what gives the logits of a file, or end with one line that names it."""
    load = LOADERS.get(path.suffix)
    if load is None:
        sys.exit(f"{path}: expected a file with the suffix {', '.join(LOADERS)}")
    return use_file(path, load, path)


import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


INT8_SHARE = 0.99
"""Share of the images whose logits must be within the tolerance in int8. Runtimes round halves
differently; in a deep network a few images are far off, as they are from float32."""


def check(
    card: dict[str, Any],
    samples: Path,
    model: Path,
    logits_of: LogitsOf,
    preprocessing: dict[str, Any],
) -> int:
    """Classify the images of a model folder, and compare their logits with those of the export.

    Args:
        card: what `card.json` holds.
        samples: `verification.safetensors` of the folder.
        model: file of the network.
        logits_of: returns its logits.
        preprocessing: what `preprocessing.json` holds.

    Returns:
        0, or 1 if too many images have other logits.
    """
    plain_output()
    known = {each["file"]: each for each in card["files"] if each["tolerance"] is not None}
    if model.name not in known:
        sys.exit(f"{model}: expected a file that the export compared: {', '.join(known)}")
    is_int8 = known[model.name]["precision"] == "int8"
    tensors = use_file(samples, read_tensors, samples)
    kinds = json.loads(tensors["file_kinds"].tobytes())
    stored = [
        (kind, each) for at, (kind, _) in enumerate(kinds) if len(each := tensors[f"file_{at}"])
    ]
    expected = tensors["int8_logits" if is_int8 else "logits"]
    images = [each[None] for each in tensors["pixels"][: len(expected) - len(stored)]]
    require_reading(tensors["pixels"][:1], preprocessing)
    for kind, each in stored:
        try:
            images.append(decoded(io.BytesIO(each.tobytes()), preprocessing))
        except UnreadableImageError as error:
            sys.exit(f"images of the data ({kind}) are not read here: {error}")
    allowed = known[model.name]["tolerance"] * expected.std()
    right = 0
    for pixels, logits in zip(images, expected, strict=True):
        own = use_file(model, logits_of, as_input(pixels, preprocessing))
        right += own.shape == logits.shape and bool((np.abs(own - logits) <= allowed).all())
    text = f"{model.name}: {right} of {len(images)} images have the answers of the export"
    if right < int((INT8_SHARE if is_int8 else 1.0) * len(images)):
        print(f"{text}. Use another format on this machine.", file=sys.stderr)
        return 1
    print(f"{text}.")
    return 0


def require_reading(pixels: np.ndarray, preprocessing: dict[str, Any]) -> None:
    """End with one line if an image file without losses is not read as it was written.

    Args:
        pixels: decoded pixels, `1 x height x width x channels` (uint8).
        preprocessing: what `preprocessing.json` holds.
    """
    file = io.BytesIO()
    Image.fromarray(pixels[0].squeeze(-1) if pixels.shape[-1] == 1 else pixels[0]).save(file, "PNG")
    try:
        is_same = np.array_equal(decoded(file, preprocessing), pixels)
    except UnreadableImageError as error:
        sys.exit(f"images are not read here: {error}")
    if not is_same:
        sys.exit("images are not read here as at the export: a PNG has other pixels")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file whose types are those of `verification`."""
    types = {"F32": "<f4", "I64": "<i8", "U8": "u1"}
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, each in json.loads(content[8:start]).items():
        first, last = (start + offset for offset in each["data_offsets"])
        values = np.frombuffer(content[first:last], types[each["dtype"]])
        tensors[name] = values.reshape(each["shape"])
    return tensors


FOLDER = Path(__file__).resolve().parent

DEFAULT_MODEL = "model.so"


def main() -> int:
    """Print the classes of the images that the command line names."""
    parser = argparse.ArgumentParser(description="Classify images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument("--model", default=str(FOLDER / DEFAULT_MODEL), help="file of the network")
    parser.add_argument("--json", action="store_true", help="print the logits as JSON")
    parser.add_argument("--log", type=Path, help="append a line for each image, for nas drift")
    parser.add_argument("--log-paths", action="store_true", help="with the paths of the images")
    parser.add_argument(
        "--check", action="store_true", help="compare the answers here with those of the export"
    )
    options = parser.parse_args()
    if bool(options.images) == options.check:
        parser.error("expected images, or --check without them")
    model = Path(options.model)
    if options.log_paths and not options.log:
        parser.error("--log-paths needs --log")
    if options.log and model.resolve().parent != FOLDER:
        parser.error("--log needs a file of this folder, whose weights each line names")
    preprocessing = read_json("preprocessing.json")
    log = None
    if options.log:
        digest = read_json("reference.json")["weights_digest"]
        log = ImageLog(options.log, digest, options.log_paths)
    logits_of = load_network(model)
    if options.check:
        samples = FOLDER / "verification.safetensors"
        return check(read_json("card.json"), samples, model, logits_of, preprocessing)
    return classify(options.images, model, logits_of, preprocessing, options.json, log)


def read_json(name: str) -> dict:
    """Return the contents of a JSON file of the folder."""
    path = FOLDER / name
    return use_file(path, lambda: json.loads(path.read_bytes()))


if __name__ == "__main__":
    sys.exit(run_quietly(main))
