"""Cache of decoded images on disk. It also holds the images that do not fit in memory.

A cached dataset is one file: the pixels, a record in JSON, the length of the record (8 bytes,
little-endian), and a SHA-256 digest of everything before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from nas import files
from nas.data.image_formats import IMAGE_FORMATS
from nas.data.sources import Source, Split, printable_line
from nas.machine.home import lasting_home

VERSION = 7
"""Version of the decoding and of the file format. Files of another version are never read."""

MAX_CACHED_DATASETS = 8
"""Files in the cache. When there are more, the least recently used one is removed."""

_CHUNK_BYTES = 1 << 26
"""Bytes that are read or copied at a time (64 MiB) where the whole array need not be in memory."""

_SUFFIX = ".images"

_DUPLICATES_SUFFIX = ".duplicates"
"""End of the names of the files beside cached images that have their duplicates."""

_LENGTH_BYTES = 8
_DIGEST_BYTES = 32


class SelectedPixels:
    """A selection of the images of some arrays, in memory or on disk, each read when it is indexed.

    Args:
        arrays: Arrays of images, `m x height x width x 1` or `3` (uint8).
        positions: Positions of the selected images, `n`, counted over all arrays; all by default.
        channels: Channels of the selection, to which the images are converted.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        positions: np.ndarray | None = None,
        channels: int | None = None,
    ) -> None:
        self.arrays = tuple(arrays)
        self._ends = np.cumsum([len(each) for each in arrays])
        self.positions = np.arange(self._ends[-1]) if positions is None else positions
        self._channels = channels or arrays[0].shape[3]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the selection, `n x height x width x channels`."""
        return (len(self.positions), *self.arrays[0].shape[1:3], self._channels)

    @property
    def nbytes(self) -> int:
        """The bytes that the selection would take in memory."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        chosen = self.positions[index]
        pixels = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        array_of = np.searchsorted(self._ends, chosen, side="right")
        for at in np.unique(array_of).tolist():
            own, stored = array_of == at, self.arrays[at]
            first = self._ends[at] - len(stored)
            pixels[own] = with_channels(stored[chosen[own] - first], self._channels)
        return pixels


Pixels = np.ndarray | SelectedPixels
"""Images `n x height x width x channels` (uint8), in memory or on disk."""


def select(pixels: np.ndarray, positions: np.ndarray) -> Pixels:
    """Return some images of an array; images on disk stay there."""
    return SelectedPixels([pixels], positions) if is_on_disk(pixels) else pixels[positions]


def joined_pixels(parts: Sequence[Pixels]) -> Pixels:
    """Return the images of several parts, one after the other, with the channels of the first.

    They are a copy in memory, unless some of them are on disk, where they stay.
    """
    channels = parts[0].shape[3]
    if not any(map(is_on_disk, parts)):
        return np.concatenate([with_channels(each[:], channels) for each in parts])
    return view_of(parts)


def view_of(parts: Sequence[Pixels]) -> SelectedPixels:
    """Return the images of several parts as `joined_pixels` does, none of them copied."""
    arrays: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    first = 0
    for each in parts:
        own = each if isinstance(each, SelectedPixels) else SelectedPixels([each])
        positions.append(first + own.positions)
        arrays += own.arrays
        first = sum(map(len, arrays))
    return SelectedPixels(arrays, np.concatenate(positions), parts[0].shape[3])


def is_on_disk(pixels: Pixels) -> bool:
    """Return whether some of the images are on disk."""
    arrays = pixels.arrays if isinstance(pixels, SelectedPixels) else (pixels,)
    return any(isinstance(each, np.memmap) for each in arrays)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return images with 1 channel or 3, `n x height x width x channels` (uint8)."""
    if channels == 1 and pixels.shape[3] == 3:
        grey = [np.asarray(Image.fromarray(image).convert("L")) for image in pixels]
        return np.stack(grey)[..., None]
    return np.broadcast_to(pixels, (*pixels.shape[:3], channels))


class ExampleFile(BaseModel):
    """An image file of a source that stands for all of its kind.

    Attributes:
        kind: What matters to reading the file, such as "PNG RGBA, alpha".
        count: Number of images of this kind that can be used.
        position: Position of the image among those that can be used.
        content: Content of the file; empty if it is too large to be stored.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )

    kind: str
    count: int
    position: int
    content: bytes


class ImageRecord(BaseModel):
    """What is known of the images of a source, in its order.

    Attributes:
        grey: Whether all images that can be used are grey.
        labels: Label of each image that can be used, as the source stores it.
        splits: Split of each of these images.
        locations: Where each of them is, see `nas.data.sources.Sample`.
        groups: Group of each of them, see `nas.data.sources.Sample`.
        sizes: Width and height of each of them before it was scaled.
        bad: Location and reason of each image that cannot be used.
        bad_labels: Label of each of these images; None if it has none.
        label_values: All labels of the source, also those without an image that can be used.
        files: State of each file that is not among `Source.files`, by path as a JSON string. These
            files are known only after the rows that name them have been read.
        examples: The smallest file of each kind, with which exported models are verified.
        silhouettes: Number of images that are drawn by their transparency alone: their visible
            pixels have one colour.
        invisible: Number of these that have the colour of the background.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    grey: bool = True
    labels: list[int | str] = []
    splits: list[Split] = []
    locations: list[str] = []
    groups: list[str | None] = []
    sizes: list[tuple[int, int]] = []
    bad: list[str] = []
    bad_labels: list[int | str | None] = []
    label_values: list[int | str] = []
    files: dict[str, str] = {}
    examples: list[ExampleFile] = []
    silhouettes: int = 0
    invisible: int = 0


class DecodedImages(NamedTuple):
    """The images of a source that can be used, and what is known of all.

    Attributes:
        pixels: Images `n x size x size x channels` (uint8), with one channel if all images are
            grey. A large array stays on disk, as a `numpy.memmap`.
        record: What is known of the images.
    """

    pixels: np.ndarray
    record: ImageRecord


def cache_folder() -> Path | None:
    """Return the folder of the cache, or None if there is no home folder.

    The folder is `nas/images` in `XDG_CACHE_HOME`, if that is an absolute path, as the XDG Base
    Directory Specification demands, otherwise in `~/.cache`.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "nas" / "images"
    home = lasting_home()
    return home and home / ".cache" / "nas" / "images"


def cache_path(
    source: Source, size: int, background: str = "#ffffff", resize: str = "cover"
) -> Path | None:
    """Return the path of a source's cached images, which depends on the state of all its files.

    Args:
        source: Opened source.
        size: Side of the decoded images, in pixels.
        background: Colour behind transparent pixels.
        resize: One of `nas.data.image_reading.RESIZES`.

    Returns:
        The path, whether or not the file exists; None for a source without files, and without a
        cache folder.
    """
    if source.root is None:
        return None
    folder = cache_folder()
    if folder is None:
        warnings.warn(
            "There is no home folder, so decoded images are not cached. Set XDG_CACHE_HOME to a "
            "folder for the cache.",
            stacklevel=2,
        )
        return None
    # A class or split may be a link to another folder, so the path as listed counts as well.
    root = str(source.root)
    states = [(str(path).removeprefix(root), file_state(path)) for path in source.files]
    formats = sorted(IMAGE_FORMATS)
    content = json.dumps(
        [
            VERSION,
            size,
            background,
            resize,
            formats,
            source.labelling,
            os.path.realpath(root),
            states,
        ]
    )
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    return folder / f"{key}{_SUFFIX}"


def duplicates_path(images: Path, *content: object) -> Path:
    """Return the path of the file with the duplicates among cached images.

    Args:
        images: Path of the cached images, which depends on the files of their source.
        content: What else the images depend on, such as `ImageRecord.files`.
    """
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return images.with_name(f"{images.stem}-{key}{_DUPLICATES_SUFFIX}")


def file_state(path: Path) -> str:
    """Return a text that changes when a file is changed, created or removed."""
    try:
        status = path.stat()
        return ascii((os.path.realpath(path), status.st_size, status.st_mtime_ns))
    except (OSError, ValueError):
        return "not there"


def read(path: Path, size: int, *, on_disk: bool, touch: bool = True) -> DecodedImages | None:
    """Read cached images; return None if there are none, or they are outdated or damaged.

    Args:
        path: Path of the file.
        size: Side of the images, in pixels.
        on_disk: Whether the pixels stay on disk.
        touch: Whether to mark the file as used now, so that others are removed before it.
    """
    try:
        decoded = _read(path, size, on_disk=on_disk)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        warnings.warn(
            f"The cached images {printable_line(path)} are damaged ({reason}); they are decoded "
            "again.",
            stacklevel=2,
        )
        return None
    if touch:
        with suppress(OSError):  # The cache may belong to another user.
            os.utime(path)
    return decoded


def _read(path: Path, size: int, *, on_disk: bool) -> DecodedImages | None:
    """Read and validate a file of the cache; return None if an image has changed since.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged.
    """
    with path.open("rb") as file:
        record_end = os.fstat(file.fileno()).st_size - _LENGTH_BYTES - _DIGEST_BYTES
        if record_end < 0:
            raise ValueError("the file is too short")
        digest = hashlib.sha256()
        remaining = record_end + _LENGTH_BYTES
        while remaining and (chunk := file.read(min(remaining, _CHUNK_BYTES))):
            digest.update(chunk)
            remaining -= len(chunk)
        if digest.digest() != file.read(_DIGEST_BYTES):
            raise ValueError("its digest is not that of its content")
        file.seek(record_end)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        file.seek(record_end - length)
        record = ImageRecord.model_validate_json(file.read(length))
    pixel_bytes = record_end - length
    count = len(record.labels)
    channels = pixel_bytes // max(1, count * size * size)
    shape = (count, size, size, channels)
    if math.prod(shape) != pixel_bytes or channels not in ((1, 3) if record.grey else (3,)):
        raise ValueError(f"it has {pixel_bytes} bytes of pixels for {count} labels")
    if any(file_state(Path(str(json.loads(key)))) != state for key, state in record.files.items()):
        return None
    if on_disk:
        pixels: np.ndarray = np.memmap(path, np.uint8, "r", shape=shape)
    else:
        pixels = np.fromfile(path, np.uint8, pixel_bytes).reshape(shape)
    return DecodedImages(pixels[..., :1] if record.grey else pixels, record)


class CacheWriter:
    """Writes a file of the cache: the pixels, part by part, and then the record; see `writer`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def add(self, pixels: np.ndarray) -> None:
        """Write the pixels of one image or of several."""
        self._write(np.ascontiguousarray(pixels).data)

    def finish(self, record: ImageRecord) -> None:
        """Write the record, its length and the digest."""
        text = record.model_dump_json().encode()
        self._write(text)
        self._write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        self._write(self._digest.digest())

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)


@contextmanager
def writer(path: Path, reserved_bytes: int = 0) -> Iterator[CacheWriter]:
    """Yield a writer of a file that appears only when the block ends without an error.

    Args:
        path: Path of the file.
        reserved_bytes: Disk space to reserve before the first pixel is written.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    unfinished = files.unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.remove_unfinished(path.parent)
        with unfinished.open("wb") as file:
            if reserved_bytes and hasattr(os, "posix_fallocate"):
                # Reports a disk that is too small now, not after hours of decoding.
                os.posix_fallocate(file.fileno(), 0, reserved_bytes)
            yield CacheWriter(file)
            file.truncate()
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink()
    _evict_least_recently_used(path.parent)


def write(path: Path, pixels: np.ndarray, record: ImageRecord) -> None:
    """Write images to the cache; if that fails, warn and go on."""
    try:
        with writer(path) as file:
            for chunk in iter_chunks(pixels):
                file.add(chunk)
            file.finish(record)
    except OSError as error:
        warnings.warn(
            f"The decoded images cannot be cached in {printable_line(path.parent)}: "
            f"{error.strerror}.",
            stacklevel=2,
        )


def _evict_least_recently_used(folder: Path) -> None:
    with suppress(OSError):  # Another process may remove the same files.
        cached = folder.glob("[0-9a-f]" * 32 + _SUFFIX)
        by_last_use = sorted(cached, key=lambda path: path.stat().st_mtime)
        for path in by_last_use[:-MAX_CACHED_DATASETS]:
            path.unlink(missing_ok=True)
            for file in folder.glob(f"{path.stem}*{_DUPLICATES_SUFFIX}"):
                file.unlink(missing_ok=True)


def iter_chunks(pixels: Pixels) -> Iterator[np.ndarray]:
    """Yield the images of an array in order, about 64 MiB at a time."""
    rows = max(1, _CHUNK_BYTES // max(1, int(np.prod(pixels.shape[1:]))))
    for start in range(0, len(pixels), rows):
        yield pixels[start : start + rows]
