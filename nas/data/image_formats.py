"""Image formats: which are decoded here, and why a file of another one is not."""

from __future__ import annotations

from pathlib import Path

from PIL import features

from nas.files.foreign import foreign_kind

try:
    import pillow_heif
except ImportError:
    pillow_heif = None


def _formats() -> dict[str, tuple[str, ...]]:
    formats: dict[str, tuple[str, ...]] = {
        "BMP": (".bmp", ".dib"),
        "GIF": (".gif",),
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
        "PNG": (".png", ".apng"),
        "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
        "TIFF": (".tif", ".tiff"),
        "WEBP": (".webp",),
    }
    if "avif" in features.modules and features.check("avif"):
        formats["AVIF"] = (".avif",)
    if pillow_heif is not None:
        pillow_heif.register_heif_opener()
        formats["HEIF"] = (".heic", ".heif", ".hif")
    return formats


IMAGE_FORMATS = _formats()
"""Formats that are decoded, by Pillow's names, with the extensions of their files.

AVIF is decoded if Pillow was built with it, HEIF (the photos of phones) if pillow-heif is
installed. All other formats are refused, because Pillow starts a program to read some of them, such
as EPS.
"""

IMAGE_EXTENSIONS = tuple(extension for group in IMAGE_FORMATS.values() for extension in group)

# fmt: off
_RAW_EXTENSIONS = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
})
"""Extensions of cameras' raw files. Many are TIFF files in which Pillow sees a small preview."""

_OTHER_EXTENSIONS = frozenset({
    ".avif", ".avifs", ".dcm", ".eps", ".exr", ".heic", ".heics", ".heif", ".heifs", ".hif", ".j2k",
    ".jp2", ".jpf", ".jpx", ".jxl", ".jxr", ".pcx", ".psd", ".qoi", ".svg", ".tga", ".xcf",
})
# fmt: on

KNOWN_EXTENSIONS = _RAW_EXTENSIONS | _OTHER_EXTENSIONS | frozenset(IMAGE_EXTENSIONS)
"""Extensions of files that are images, whether or not they can be decoded here."""

HEIC_WITHOUT_READER = "HEIC, which needs pillow-heif"
"""The reason for a HEIC file where pillow-heif is not installed."""

INSTALL_HEIC = "pip install 'hardware-nas[heic]'"
"""The command that installs pillow-heif."""

RAW = "a camera's raw file; convert it to JPEG"
"""The reason for a raw file."""

_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"),
    "raw": (b"crx ",),
}
"""Brands of files in the ISO base media format (ISO/IEC 14496-12), by what they hold."""

_SIGNATURES = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"8BPS": "Photoshop",
}

_HEAD_BYTES = 64


def is_raw(image: Path | bytes) -> bool:
    """Return whether an image is a camera's raw file by its name."""
    return isinstance(image, Path) and image.suffix.lower() in _RAW_EXTENSIONS


def unreadable_reason(image: Path | bytes) -> str:
    """Return why Pillow does not identify an image, by its content rather than its extension."""
    if isinstance(image, Path):
        try:
            with image.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError as error:
            return error.strerror or str(error)
    else:
        head = image[:_HEAD_BYTES]
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        for kind, names in _BRANDS.items():
            if any(name in brands for name in names):
                return _container_reason(kind)
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return f"{name}, which is not decoded; convert it to JPEG"
    is_svg = head.startswith(b"<svg") or (isinstance(image, Path) and image.suffix == ".svg")
    if not is_svg and (kind := foreign_kind(head)):
        return kind
    return f"not an image in one of the formats {', '.join(IMAGE_FORMATS)}"


def _container_reason(kind: str) -> str:
    if kind == "raw":
        return RAW
    if kind == "HEIC" and "HEIF" not in IMAGE_FORMATS:
        return HEIC_WITHOUT_READER
    if kind == "AVIF" and "AVIF" not in IMAGE_FORMATS:
        return "AVIF, which this installation of Pillow cannot open; Pillow 11.3 and later can"
    return f"damaged {kind}"
