"""Classify images: python run.py IMAGE... [--model FILE] [--json]"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

RULES: dict[str, str | int | bool] = {
    "frame": "first",
    "max_pixels": 1 << 26,
    "jpeg_draft": 2,
    "exif_orientation": True,
    "icc_profile": "ignored",
    "bit_depth": "upper 8 bits",
    "transparency": "composited on background",
    "grey": "ITU-R 601-2",
    "resize": "cover",
    "crop": "centre",
    "interpolation": "bilinear",
    "antialias": True,
}
"""How an image is read, apart from its size and the background behind transparent pixels.

`max_pixels`: larger images are refused, because decoding one takes more than about 0.5 GB. For a
JPEG, which can be decoded at a fraction of its size, the decoded pixels count. `jpeg_draft`: a JPEG
is decoded at the smallest of 1/8, 1/4 and 1/2 of its size at which both sides have at least
`jpeg_draft` times the size asked for. `nas.run.model_card.ImageReading` describes the others.
"""


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
        with Image.open(file, formats=formats) as image:
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
    image: Image.Image, size: int, background: str, channels: int | None = None
) -> np.ndarray:
    """Return the pixels of an image, scaled and cropped to a square.

    Args:
        image: image from `open_image`, or made of an array.
        size: height and width of the square.
        background: colour behind transparent pixels, as `PIL.ImageColor` reads it.
        channels: 1 for grey pixels, 3 for RGB; by default those of the image.

    Returns:
        Pixels (uint8), `size x size` if they are grey and `size x size x 3` if they are RGB.

    Raises:
        UnreadableImageError: the range of the pixels is not known.
    """
    ImageOps.exif_transpose(image, in_place=True)
    image = _composite(with_8_bits(image), background)
    if channels == 1:
        image = image.convert("L")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if channels == 3 and pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels


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

# Above: reading of images, as in training. Below: the network.

import argparse
import json
import sys

try:
    import pillow_heif
except ImportError:  # HEIC photos of phones cannot be read without it.
    pass
else:
    pillow_heif.register_heif_opener()

FOLDER = Path(__file__).resolve().parent
PREPROCESSING = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))


def network_input(path):
    """Return an image file as the input of the network, 1 x channels x height x width."""
    how, channels = PREPROCESSING["reading"], PREPROCESSING["channels"]
    for name, value in RULES.items():
        if how.get(name) != value:
            sys.exit(f"preprocessing.json has {name} {how.get(name)!r}; expected {value!r}")
    size = how["decoded_size"]
    with open_image(Path(path), size, how["formats"]) as image:
        pixels = read_pixels(image, size, how["background"], channels)
    pixels = pixels.reshape(1, size, size, channels)
    return normalise(
        pixels, PREPROCESSING["image_size"], PREPROCESSING["mean"], PREPROCESSING["std"]
    )


def load_onnx(path):
    """Return a function from the input of the network to its logits."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Read when ONNX Runtime is imported.
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = PREPROCESSING["output_name"], PREPROCESSING["input_name"]
    return lambda images: session.run([names[0]], {names[1]: images})[0][0]


def load_tflite(path):
    """Return a function from the input of the network to its logits."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits_of(images):
        values = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        if entry["dtype"] == np.int8:
            scale, zero = entry["quantization"]
            values = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], values)
        interpreter.invoke()
        logits = interpreter.get_tensor(result["index"])[0].astype(np.float32)
        if result["dtype"] == np.int8:
            scale, zero = result["quantization"]
            logits = (logits - zero) * scale
        return logits

    return logits_of


def load_tvm(path):
    """Return a function from the input of the network to its logits."""
    import tvm

    network = tvm.relax.VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())

    def logits_of(images):
        values = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        return network["main"](tvm.runtime.tensor(values)).numpy()[0]

    return logits_of


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".so": load_tvm}


def main():
    parser = argparse.ArgumentParser(description="Classify images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", default=str(FOLDER / "model.so"), help="file of the network")
    parser.add_argument("--json", action="store_true", help="print the logits as JSON")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # Not every terminal shows every name.
    load = LOADERS.get(Path(options.model).suffix)
    if load is None:
        sys.exit(f"{options.model}: expected a file with the suffix {', '.join(LOADERS)}")
    logits_of, results = load(options.model), []
    for path in options.images:
        try:
            logits = logits_of(network_input(path))
        except UnreadableImageError as error:
            results.append({"image": path, "error": str(error)})
            if not options.json:
                print(f"{path}: {error}", file=sys.stderr)
            continue
        confidence = np.exp(logits.astype(np.float64) - logits.max())
        confidence /= confidence.sum()
        unsure = bool(confidence.max() < (PREPROCESSING.get("min_confidence") or 0))
        results.append({"image": path, "logits": logits.tolist(), "unsure": unsure})
        if not options.json:
            if len(options.images) > 1:
                print(path)
            if unsure:
                print("unsure")
                continue
            for position in confidence.argsort()[::-1][:5]:
                print(f"{confidence[position]:6.1%}  {PREPROCESSING['classes'][position]}")
    if options.json:
        print(json.dumps(results))
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
