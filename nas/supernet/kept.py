"""Decoded images on disk: kept for the next time, or because memory is too small for them."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nas import files
from nas.errors import DataError
from nas.supernet.sources import Source

VERSION = 1
"""Of what decoding gives; what another version kept is decoded again."""

MOST_KEPT = 8
"""Decoded sources in the cache; the one that was used longest ago goes first."""

_CHUNK = 1 << 26
"""Bytes that are read at a time where a whole array need not be in memory."""


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
    """

    pixels: np.ndarray
    labels: list[int | str]
    splits: np.ndarray
    bad: tuple[str, ...]


def cache_folder() -> Path:
    """Where decoded images are kept: `nas/images` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nas" / "images"


def path_of(source: Source, size: int) -> Path | None:
    """Where a source's images are kept; None for one without files."""
    if not source.files:
        return None
    stated = [(str(path.resolve()), path.stat()) for path in source.files]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stated]
    words = json.dumps([VERSION, size, files])
    return cache_folder() / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.safetensors"


def read(path: Path) -> Decoded | None:
    """What was kept at a path; None where there is nothing, or not what was written."""
    try:
        if path.with_suffix(".json").is_file():
            return _read_from_disk(path)
        with safe_open(str(path), framework="numpy") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})["record"])
            pixels, splits = file.get_tensor("pixels"), file.get_tensor("splits")
        found = _checked(pixels, record, splits)
        os.utime(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        warnings.warn(f"{path} is damaged ({error}); the images are decoded again.", stacklevel=4)
        return None
    return found


def _read_from_disk(path: Path) -> Decoded:
    record: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    pixels = np.memmap(path.with_suffix(".pixels"), np.uint8, "r", shape=tuple(record["shape"]))
    found = _checked(pixels[..., : record["channels"]], record, np.array(record["split_of"]))
    os.utime(path.with_suffix(".json"))
    return found


def _checked(pixels: np.ndarray, record: dict[str, Any], splits: np.ndarray) -> Decoded:
    if record["digest"] != digest(pixels):
        raise ValueError("its pixels are not those that were written")
    names = np.array(record["splits"])
    return Decoded(pixels, record["labels"], names[splits], tuple(record["bad"]))


def write(path: Path, found: Decoded) -> None:
    """Keeps images for the next time; where that fails, a warning says so."""
    names, splits = np.unique(found.splits, return_inverse=True)
    record = {
        "labels": found.labels,
        "splits": names.tolist(),
        "bad": list(found.bad),
        "digest": digest(found.pixels),
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"pixels": found.pixels, "splits": splits.astype(np.uint8)}
        save_file(tensors, unfinished, {"record": json.dumps(record)})
        os.replace(unfinished, path)
        _forget_oldest(path.parent)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"The decoded images cannot be kept for the next time: {error}.", stacklevel=4
        )
    finally:
        with suppress(OSError):
            unfinished.unlink()


class Drawer:
    """Images that are written to disk one by one.

    Args:
        path: of the source's images; theirs has another suffix.
        unfinished: where they are until all are there.
        count, size: how many there are at most, and their pixels a side.
    """

    def __init__(self, path: Path, unfinished: Path, count: int, size: int) -> None:
        self._path, self._unfinished = path, unfinished
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.truncate(count * size * size * 3)
            if hasattr(os, "posix_fallocate"):
                # A disk that is too small says so now, not when it is full.
                os.posix_fallocate(file.fileno(), 0, count * size * size * 3)
        shape = (count, size, size, 3)
        self._pixels = np.memmap(unfinished, np.uint8, "r+", shape=shape)
        self._filled = 0
        self._grey = True

    def add(self, image: np.ndarray) -> None:
        """The next image, `size x size` if grey, else with three channels."""
        self._grey &= image.ndim == 2
        self._pixels[self._filled] = image[:, :, None] if image.ndim == 2 else image
        self._filled += 1

    def closed(self, labels: list[int | str], splits: np.ndarray, bad: tuple[str, ...]) -> Decoded:
        """What was added, still on disk."""
        channels = 1 if self._grey else 3
        shape = (self._filled, *self._pixels.shape[1:])
        self._pixels.flush()
        os.truncate(self._unfinished, int(np.prod(shape)))
        names, split_of = np.unique(splits, return_inverse=True)
        record = {
            "shape": shape,
            "channels": channels,
            "labels": labels,
            "splits": names.tolist(),
            "split_of": split_of.tolist(),
            "bad": list(bad),
            "digest": digest(self._pixels[: self._filled, ..., :channels]),
        }
        os.replace(self._unfinished, self._path.with_suffix(".pixels"))
        files.replace(self._path.with_suffix(".json"), json.dumps(record))
        _forget_oldest(self._path.parent)
        return _read_from_disk(self._path)


@contextmanager
def on_disk(path: Path, count: int, size: int) -> Iterator[Drawer]:
    """A drawer for so many images; nothing is left of one that is not closed.

    Raises DataError where the disk has no room.
    """
    unfinished = path.with_name(f".{path.stem}.pixels.{os.getpid()}")
    try:
        try:
            drawer = Drawer(path, unfinished, count, size)
        except OSError as error:
            raise DataError(
                f"The decoded images need {count * size * size * 3 / 2**30:.1f} GiB in "
                f"{path.parent}: {error}.",
                remedy="Make room there, set XDG_CACHE_HOME to a folder on a larger disk, or use a "
                "smaller image_size.",
            ) from error
        yield drawer
    finally:
        unfinished.unlink(missing_ok=True)


def _forget_oldest(folder: Path) -> None:
    found = [*folder.glob("*.safetensors"), *folder.glob("*.json")]
    for old in sorted(found, key=lambda each: each.stat().st_mtime)[:-MOST_KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".pixels").unlink(missing_ok=True)


def digest(pixels: np.ndarray) -> str:
    """16 hex digits over the bytes of an array, read in parts."""
    found = hashlib.sha256()
    for part in in_parts(pixels):
        found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()[:16]


def in_parts(pixels: Pixels) -> Iterator[np.ndarray]:
    """An array's rows, some at a time."""
    rows = max(1, _CHUNK // max(1, int(np.prod(pixels.shape[1:]))))
    for start in range(0, len(pixels), rows):
        yield pixels[start : start + rows]
