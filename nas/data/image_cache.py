"""The cache of decoded images on disk, which also holds images that are too many for the memory.

A cached source is one file: the pixels, then a record in JSON, the record's length, and a SHA-256
over all that comes before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import BaseModel, ConfigDict

from nas.data.sources import Source, Split, shown

VERSION = 2
"""Version of the decoding and of the file. What another version wrote is decoded again."""

MOST_KEPT = 8
"""Decoded sources in the cache; the one that was used longest ago goes first."""

_CHUNK = 1 << 26
"""Bytes that are read at a time where a whole array need not be in memory."""

_SUFFIX = ".images"
_FORMER_SUFFIXES = (".safetensors", ".json", ".pixels")
"""Suffixes of the files that version 1 wrote. They are removed like the others."""

_LENGTH_BYTES = 8
_DIGEST_BYTES = 32


class Picked:
    """Some of the images of an array on disk, in an order: read when they are asked for.

    Args:
        stored: the array.
        positions: `n`, in it.
    """

    def __init__(self, stored: np.ndarray, positions: np.ndarray) -> None:
        self._stored, self._positions = stored, positions

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (len(self._positions), *self._stored.shape[1:])

    @property
    def nbytes(self) -> int:
        """If they were all in memory."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self._stored[self._positions[at]])


Pixels = np.ndarray | Picked
"""Images `n x height x width x channels` (uint8), in memory or on disk."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The usable images of a source, in its order.

    Args:
        pixels: `n x size x size x channels`, uint8; one channel where every image is grey. On disk,
            a `numpy.memmap`, where there are many.
        labels: as stored.
        splits: "train", "validation" or "test" of each.
        bad: place and reason of every image that cannot be used.
        label_values: every label of the source, also those of which no image can be used.
    """

    pixels: np.ndarray
    labels: list[int | str]
    splits: np.ndarray
    bad: tuple[str, ...]
    label_values: tuple[int | str, ...]


class Record(BaseModel):
    """What a file of the cache says about its pixels.

    Attributes:
        grey: whether the first channel of the pixels is all there is to know.
        labels, splits: of each image.
        bad, label_values: as in `Decoded`.
        files: state, by path as a JSON string, of files that decoding read and that are not among
            the source's own: they are only known once the rows have been read.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    grey: bool
    labels: list[int | str]
    splits: list[Split]
    bad: list[str]
    label_values: list[int | str]
    files: dict[str, str]

    def with_pixels(self, pixels: np.ndarray) -> Decoded:
        """Return the decoded images; of `pixels`, one channel is left where all are grey."""
        return Decoded(
            pixels[..., :1] if self.grey else pixels,
            self.labels,
            np.array(self.splits),
            tuple(self.bad),
            tuple(self.label_values),
        )


class CacheWriteError(Exception):
    """The cache has no room, or cannot be written; the text is the reason."""


def cache_folder() -> Path | None:
    """Return the folder of the cache, `nas/images` in the user's cache folder; None without one.

    `XDG_CACHE_HOME` counts if it is an absolute path, as the XDG Base Directory Specification says.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "nas" / "images"
    try:
        return Path.home() / ".cache" / "nas" / "images"
    except RuntimeError:  # No HOME, and a user without an account, as in many containers.
        return None


def path_of(source: Source, size: int) -> Path | None:
    """Return where a source's images are cached; None for one without files, or without a cache.

    The path depends on each of the source's files: its path, its size and when it was changed.
    """
    if source.root is None:
        return None
    folder = cache_folder()
    if folder is None:
        warnings.warn(
            "There is no home folder, so decoded images are not kept for the next time. Set "
            "XDG_CACHE_HOME to a folder where they may be kept.",
            stacklevel=2,
        )
        return None
    # Folder names below the root tell classes and splits, whatever the files are linked to.
    root = str(source.root)
    states = [(str(path).removeprefix(root), state_of(path)) for path in source.files]
    words = json.dumps([VERSION, size, os.path.realpath(root), states])
    key = hashlib.sha256(words.encode()).hexdigest()[:32]
    return folder / f"{key}{_SUFFIX}"


def state_of(path: Path) -> str:
    """Return a text that changes when a file changes, comes or goes."""
    try:
        status = path.stat()
        return ascii((os.path.realpath(path), status.st_size, status.st_mtime_ns))
    except (OSError, ValueError):
        return "not there"


def read(path: Path, size: int, *, on_disk: bool, mark: bool = True) -> Decoded | None:
    """Read a cached source; None where there is none, it is out of date, or it is damaged.

    Args:
        path: of the file.
        size: of the images, pixels a side.
        on_disk: whether the pixels stay there.
        mark: whether the file is marked as used now, so that others are forgotten before it.
    """
    try:
        result = _read(path, size, on_disk=on_disk)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        warnings.warn(
            f"The cached images {shown(path)} are damaged ({reason}); they are decoded again.",
            stacklevel=2,
        )
        return None
    if mark:
        with suppress(OSError):  # The cache of somebody else can be read too.
            os.utime(path)
    return result


def _read(path: Path, size: int, *, on_disk: bool) -> Decoded | None:
    """Read and validate a file of the cache; None if an image has changed since.

    Raises ValueError if it is damaged.
    """
    with path.open("rb") as file:
        record_end = os.fstat(file.fileno()).st_size - _LENGTH_BYTES - _DIGEST_BYTES
        if record_end < 0:
            raise ValueError("the file is too short")
        digest = hashlib.sha256()
        left = record_end + _LENGTH_BYTES
        while left and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        if digest.digest() != file.read(_DIGEST_BYTES):
            raise ValueError("its digest is not that of its content")
        file.seek(record_end)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > record_end:
            raise ValueError("its record is longer than the file")
        file.seek(record_end - length)
        record = Record.model_validate_json(file.read(length))
    stored = record_end - length
    count = len(record.labels)
    channels = stored // max(1, count * size * size)
    shape = (count, size, size, channels)
    if math.prod(shape) != stored or channels not in ((1, 3) if record.grey else (3,)):
        raise ValueError(f"it has {stored} bytes of pixels for {count} labels")
    if len(record.splits) != len(record.labels):
        raise ValueError(f"it has {len(record.splits)} splits for {len(record.labels)} labels")
    if not set(record.labels) <= set(record.label_values):
        raise ValueError("it has labels that its list of labels lacks")
    if any(state_of(Path(str(json.loads(name)))) != state for name, state in record.files.items()):
        return None
    if on_disk:
        pixels: np.ndarray = np.memmap(path, np.uint8, "r", shape=shape)
    else:
        pixels = np.fromfile(path, np.uint8, stored).reshape(shape)
    return record.with_pixels(pixels)


class CacheWriter:
    """Writes the file of a source: its pixels piece by piece, then the record; see `writer`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def add(self, pixels: np.ndarray) -> None:
        """Write the pixels of one image or of several. Raises CacheWriteError."""
        self._write(np.ascontiguousarray(pixels).data)

    def finish(self, record: Record) -> None:
        """Write what comes after the last pixels. Raises CacheWriteError."""
        text = record.model_dump_json().encode()
        self._write(text)
        self._write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        self._write(self._digest.digest())

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise CacheWriteError(error.strerror) from error


@contextmanager
def writer(path: Path, reserved_bytes: int = 0) -> Iterator[CacheWriter]:
    """Write a file of the cache, which is there at the end of the block, or not at all.

    Args:
        path: of the file.
        reserved_bytes: room that is taken before the first pixel is written.

    Raises CacheWriteError where there is no room, or the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = unfinished.open("wb")
        try:
            if reserved_bytes and hasattr(os, "posix_fallocate"):
                with _writing():
                    # A disk that is too small says so now, not when it is full.
                    os.posix_fallocate(file.fileno(), 0, reserved_bytes)
            yield CacheWriter(file)
            with _writing():
                file.truncate()
                file.close()
                os.replace(unfinished, path)
        finally:
            with suppress(OSError):
                file.close()
    finally:
        with suppress(OSError):
            unfinished.unlink()
    _forget_oldest(path.parent)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheWriteError(error.strerror) from error


def write(path: Path, pixels: np.ndarray, record: Record) -> None:
    """Keep images for the next time; where that fails, a warning says so."""
    try:
        with writer(path) as file:
            for part in in_parts(pixels):
                file.add(part)
            file.finish(record)
    except CacheWriteError as error:
        warnings.warn(
            f"The decoded images cannot be kept in {shown(path.parent)} for the next time: "
            f"{error}.",
            stacklevel=2,
        )


def _forget_oldest(folder: Path) -> None:
    with suppress(OSError):  # Another process may forget them at the same time.
        cached = [
            path
            for suffix in (_SUFFIX, *_FORMER_SUFFIXES)
            for path in folder.glob("[0-9a-f]" * 32 + suffix)
        ]
        for old in sorted(cached, key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
            old.unlink(missing_ok=True)


def in_parts(pixels: Pixels) -> Iterator[np.ndarray]:
    """Yield an array's rows, some at a time."""
    rows = max(1, _CHUNK // max(1, int(np.prod(pixels.shape[1:]))))
    for start in range(0, len(pixels), rows):
        yield pixels[start : start + rows]
