"""Decodes the images of a source, several at once, and keeps them for the next time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nas.errors import DataError
from nas.supernet.sources import Sample, Source

VERSION = 1
"""Of what decoding gives; what another version kept is decoded again."""

MOST_KEPT = 8
"""Decoded sources in the cache; the one that was used longest ago goes first."""

_TOGETHER = 1024
"""Images between two looks at the progress."""

_TASK = 32
"""Images that a thread decodes at a time: handing over one costs as much as decoding it."""

_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for an image that it cannot decode."""

Step = Callable[[int, int], None]
"""Called with (images decoded, images in all)."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The usable images of a source, in its order.

    Args:
        pixels: `n x size x size x channels`, uint8; one channel where every image is grey.
        labels: as stored.
        splits: "train", "validation" or "test" of each.
        bad: place and reason of every image that cannot be used.
    """

    pixels: np.ndarray
    labels: list[int | str]
    splits: np.ndarray
    bad: tuple[str, ...]


def decode(source: Source, size: int, progress: Step | None = None) -> Decoded:
    """The images of a source, scaled and cropped to `size x size`; decoded once, then read back.

    What is kept belongs to the files as they are: one that is changed, added or removed is another
    source. It is kept in `cache_folder()`; a cache that cannot be read or written costs time only.

    Raises DataError where no image can be used.
    """
    kept = _kept_path(source, size)
    found = None if kept is None else _read(kept)
    if found is None:
        found = _decoded(source, size, progress)
        if kept is not None:
            _write(kept, found)
    return found


def cache_folder() -> Path:
    """Where decoded images are kept: `nas/images` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nas" / "images"


def _decoded(source: Source, size: int, progress: Step | None) -> Decoded:
    pixels: list[np.ndarray] = []
    labels: list[int | str] = []
    splits: list[str] = []
    bad: list[str] = []
    for done, (sample, image) in enumerate(_images(source, size), start=1):
        if isinstance(image, str):
            bad.append(f"{sample.place} ({image})")
        elif sample.label is None or sample.label == -1:
            bad.append(f"{sample.place} (no label)")
        else:
            pixels.append(image)
            labels.append(sample.label)
            splits.append(sample.split)
        if progress and (done % _TOGETHER == 0 or done == source.count):
            progress(done, source.count)
    if not pixels:
        reason = f" The first: {bad[0]}." if bad else ""
        raise DataError(f"{source.name} has no image that can be used.{reason}")
    if any(image.ndim == 3 for image in pixels):
        pixels = [i if i.ndim == 3 else np.repeat(i[:, :, None], 3, axis=2) for i in pixels]
        stacked = np.stack(pixels)
    else:
        stacked = np.stack(pixels)[:, :, :, None]
    return Decoded(stacked, labels, np.array(splits), tuple(bad))


def _images(source: Source, size: int) -> Iterator[tuple[Sample, np.ndarray | str]]:
    """Samples with their pixels, or with what is wrong with them."""

    def decoded(samples: list[Sample]) -> list[np.ndarray | str]:
        return [_pixels(sample, size) for sample in samples]

    left = iter(source.samples)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while samples := list(islice(left, _TOGETHER)):
            tasks = [samples[at : at + _TASK] for at in range(0, len(samples), _TASK)]
            yield from zip(samples, chain.from_iterable(threads.map(decoded, tasks)), strict=True)


def _pixels(sample: Sample, size: int) -> np.ndarray | str:
    """Pixels `size x size` of a grey image, `size x size x 3` of another; or what is wrong."""
    content = sample.image
    if content is None:
        return "no image"
    try:
        if isinstance(content, np.ndarray):
            image = Image.fromarray(content)
        else:
            image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
            # Lets a large JPEG be decoded at a fraction of its size.
            image.draft(None, (2 * size, 2 * size))
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        return np.asarray(image)
    except _BROKEN as error:
        return str(error) or type(error).__name__


def _kept_path(source: Source, size: int) -> Path | None:
    """Where a source's images are kept; None for one without files."""
    if not source.files:
        return None
    stated = [(str(path.resolve()), path.stat()) for path in source.files]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stated]
    words = json.dumps([VERSION, size, files])
    return cache_folder() / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path) -> Decoded | None:
    """What `_write` kept; None where there is nothing, or not what was written."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})["record"])
            pixels, splits = file.get_tensor("pixels"), file.get_tensor("splits")
        if record["digest"] != _digest(pixels):
            raise ValueError("its pixels are not those that were written")
        names = np.array(record["splits"])
        found = Decoded(pixels, record["labels"], names[splits], tuple(record["bad"]))
        os.utime(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        warnings.warn(f"{path} is damaged ({error}); the images are decoded again.", stacklevel=4)
        return None
    return found


def _write(path: Path, found: Decoded) -> None:
    names, splits = np.unique(found.splits, return_inverse=True)
    record = {
        "labels": found.labels,
        "splits": names.tolist(),
        "bad": list(found.bad),
        "digest": _digest(found.pixels),
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"pixels": found.pixels, "splits": splits.astype(np.uint8)}
        save_file(tensors, unfinished, {"record": json.dumps(record)})
        os.replace(unfinished, path)
        kept = sorted(path.parent.glob("*.safetensors"), key=lambda each: each.stat().st_mtime)
        for old in kept[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"The decoded images cannot be kept for the next time: {error}.", stacklevel=4
        )
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()[:16]
