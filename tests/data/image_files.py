"""Image files of every mode that Pillow writes, and PNG files that it only reads."""

import io
import struct
import warnings
import zlib
from functools import cache

import numpy as np
from PIL import Image

from nas.data.image_formats import IMAGE_FORMATS

WIDTH, HEIGHT = 13, 9
FORMATS = (*IMAGE_FORMATS, "MPO")
MODES = (
    "1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA",
    "I", "F", "I;16", "I;16L", "I;16B", "I;16N",
)  # fmt: skip


def in_format(image: Image.Image, name: str, **options) -> bytes:
    """Return the content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def noise(*shape: int, dtype=np.uint8, seed=0) -> np.ndarray:
    """Return random integers of the whole range of a type."""
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def png(values: np.ndarray, colour_type: int, bits: int, chunks=()) -> bytes:
    """Return a PNG of any colour type and depth, with further chunks before the pixels.

    Args:
        values: `height x width` or `height x width x channels`.
        colour_type: 0 for grey, 2 for RGB, 3 for a palette.
        bits: bits of a value.
        chunks: kind and content of each further chunk.
    """

    height, width = values.shape[:2]
    rows = b""
    for row in values.reshape(height, -1):
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(*each) for each in chunks)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def with_orientation(pixels: np.ndarray, orientation: int, name: str, **options) -> bytes:
    """Return an image file that is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return in_format(Image.fromarray(pixels), name, exif=exif, **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


def with_chunks(content: bytes, *chunks: bytes, at_end: bool = False) -> bytes:
    """Return a PNG with further chunks before or behind its pixels."""
    place = len(content) - 12 if at_end else 33
    return content[:place] + b"".join(chunks) + content[place:]


@cache
def pngs_with_metadata() -> dict[str, bytes]:
    """Return PNG files of the same pixels, with chunks that do not matter to these.

    Pillow, or libpng, has a limit for the content of the chunks, or refuses what is in them.
    """
    plain = in_format(Image.fromarray(noise(HEIGHT, WIDTH, 3)), "PNG")
    much = bytes(9 << 20)  # libpng reads 8 MB.
    deflated = zlib.compress(much)
    damaged = chunk(b"tEXt", b"Comment\0damaged")[:-1] + b"?"
    chunks = {
        "a large profile": chunk(b"iCCP", b"ICC Profile\0\0" + deflated),
        "a large text": chunk(b"tEXt", b"Comment\0" + much),
        "a large compressed text": chunk(b"zTXt", b"Comment\0\0" + deflated),
        "a large international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + deflated),
        "much text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20))) * 70,
        "a large chunk of another program": chunk(b"prVt", much),
        "a profile of an unknown method": chunk(b"iCCP", b"ICC Profile\0\7" + deflated),
        "a text of an unknown method": chunk(b"zTXt", b"Comment\0\7text"),
        "a text called transparency": chunk(b"tEXt", b"transparency\0red"),
        "a text called bbox": chunk(b"tEXt", b"bbox\0none"),
        "short chunks": chunk(b"gAMA", b"\0") + chunk(b"cHRM", b"\0") + chunk(b"pHYs", b"\0"),
        "a wrong checksum": damaged,
        "a damaged animation": chunk(b"acTL", bytes(7)) + chunk(b"fcTL", bytes(26)),
    }
    files = {f"PNG with {name}": with_chunks(plain, content) for name, content in chunks.items()}
    for name in ("a large text", "a large compressed text", "a large international text"):
        files[f"PNG with {name} at its end"] = with_chunks(plain, chunks[name], at_end=True)
    return files


@cache
def damaged_exif_files() -> dict[str, tuple[bytes, bytes]]:
    """Return files whose EXIF data are damaged, each with the same one without such data."""
    image = Image.fromarray(noise(HEIGHT, HEIGHT, 3))
    files = {}
    for name in ("JPEG", "PNG", "WEBP", "HEIF"):
        if name in IMAGE_FORMATS:
            exif = Image.Exif()
            exif[0x010F] = "maker"
            exif[0x0112] = 1 if name == "HEIF" else 6  # pillow-heif turns the image itself.
            lossless = {"lossless": True} if name == "WEBP" else {}
            plain = in_format(image, name, **lossless)
            whole = in_format(image, name, exif=exif.tobytes(), **lossless)
            for what, start in (("header", b"MM\0?"), ("start", b"?M\0*"), ("kind", b"????")):
                damaged = whole.replace(b"MM\0*", start)
                if name == "PNG":
                    at = damaged.index(b"eXIf")
                    size = int.from_bytes(damaged[at - 4 : at], "big")
                    content = damaged[at + 4 : at + 4 + size]
                    damaged = with_chunks(plain, chunk(b"eXIf", content))
                files[f"{name} with EXIF of a damaged {what}"] = damaged, plain
    return files


def transparent_pngs() -> dict[str, bytes]:
    """Return PNG files with a transparent value, by colour type and depth."""
    files = {}
    for bits in (1, 2, 4, 8, 16):
        highest = (1 << bits) - 1
        values = np.random.default_rng(bits).integers(0, min(highest, 7) + 1, (HEIGHT, WIDTH))
        values *= highest // min(highest, 7)
        key = struct.pack(">H", values[0, 0])
        files[f"grey of {bits} bits, tRNS"] = png(values, 0, bits, [(b"tRNS", key)])
    for bits in (8, 16):
        values = np.random.default_rng(bits).integers(0, 2, (HEIGHT, WIDTH, 3))
        values = values * ((1 << bits) - 1) // 3
        key = struct.pack(">HHH", *values[0, 0])
        files[f"RGB of {bits} bits, tRNS"] = png(values, 2, bits, [(b"tRNS", key)])
    palette = noise(4, 3)
    values = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH))
    for name, alphas in (("one", b"\xff\0"), ("several", b"\x40\x80\0\xff")):
        chunks = [(b"PLTE", palette.tobytes()), (b"tRNS", alphas)]
        files[f"palette, {name} transparent"] = png(values, 3, 2, chunks)
    return files


def image_of_mode(mode: str) -> Image.Image:
    """Return an image of random pixels, which use all the bits of the mode."""
    if mode == "I":
        return Image.fromarray(noise(HEIGHT, WIDTH, dtype=np.uint16).astype(np.int32))
    if mode.startswith("I;16") or mode in ("La", "LAB", "PA"):  # Nothing is converted to these.
        content = noise(HEIGHT, WIDTH, 3 if mode == "LAB" else 2).tobytes()
        return Image.frombytes(mode, (WIDTH, HEIGHT), content)
    return Image.fromarray(noise(HEIGHT, WIDTH, 4)).convert(mode)


@cache
def image_files() -> dict[str, bytes]:
    """Return the contents of all files by a description of each."""
    files = {}
    for mode in MODES:
        image = image_of_mode(mode)
        for name in FORMATS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    files[f"{name} of mode {mode}"] = in_format(image, name)
                except (OSError, ValueError, KeyError, SystemError):
                    continue  # The format has no such mode.
    rgb = noise(HEIGHT, WIDTH, 3)
    for orientation in range(1, 9):
        for name in ("JPEG", "PNG", "TIFF", "WEBP"):
            content = with_orientation(rgb, orientation, name)
            files[f"{name} of orientation {orientation}"] = content
    files |= transparent_pngs()
    files |= pngs_with_metadata()
    files |= {name: content for name, (content, _) in damaged_exif_files().items()}
    frames = [Image.fromarray(noise(HEIGHT, WIDTH, 4, seed=seed)) for seed in range(3)]
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        content = in_format(frames[0], name, save_all=True, append_images=frames[1:])
        files[f"animated {name}"] = content
    flat = [frame.convert("RGB") for frame in frames]
    files["MPO of three"] = in_format(flat[0], "MPO", save_all=True, append_images=flat[1:])
    files["GIF with transparency"] = in_format(
        Image.fromarray(noise(HEIGHT, WIDTH) % 4, "P"), "GIF", transparency=2
    )
    files["RGB of 16 bits"] = png(noise(HEIGHT, WIDTH, 3, dtype=np.uint16), 2, 16)
    files["TIFF of signed 16 bits"] = in_format(
        Image.fromarray(noise(HEIGHT, WIDTH, dtype=np.uint16)), "TIFF", tiffinfo={339: 2}
    )
    for side in (200, 600):
        smooth = np.add.outer(np.arange(side), np.arange(side + 90)) // 3 % 256
        photo = Image.fromarray(smooth.astype(np.uint8))
        for mode in ("L", "RGB", "CMYK"):
            files[f"photo of {side} pixels, {mode}"] = in_format(photo.convert(mode), "JPEG")
    files["no image"] = b"no image"
    files["half an image"] = files["PNG of mode RGB"][:150]
    return files
