"""Decodes the images of a source, several at once, and keeps them for the next time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
from PIL import Image, ImageOps

from nas.errors import DataError
from nas.supernet import kept
from nas.supernet.kept import Decoded
from nas.supernet.sources import Sample, Source

LARGE_BYTES = 4 << 30
"""Decoded images of more bytes than this stay on disk, and are read batch by batch."""

_TOGETHER = 1024
"""Images between two looks at the progress."""

_TASK = 32
"""Images that a thread decodes at a time: handing over one costs as much as decoding it."""

_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for an image that it cannot decode."""

Step = Callable[[int, int], None]
"""Called with (images decoded, images in all)."""


def decode(source: Source, size: int, progress: Step | None = None) -> Decoded:
    """The images of a source, scaled and cropped to `size x size`; decoded once, then read back.

    What is kept belongs to the files as they are: one that is changed, added or removed is another
    source. It is kept in `nas.supernet.kept.cache_folder()`; a cache that cannot be read or written
    costs time only, unless the images are `LARGE_BYTES` or more: then they stay there.

    Raises DataError where no image can be used, or there is no room for them.
    """
    path = kept.path_of(source, size)
    found = None if path is None else kept.read(path)
    if found is not None:
        return found
    if path is not None and source.count * size * size * 3 > LARGE_BYTES:
        with kept.on_disk(path, source.count, size) as drawer:
            return drawer.closed(*_sorted(source, size, drawer.add, progress))
    pixels: list[np.ndarray] = []
    rest = _sorted(source, size, pixels.append, progress)
    if any(image.ndim == 3 for image in pixels):
        pixels = [i if i.ndim == 3 else np.repeat(i[:, :, None], 3, axis=2) for i in pixels]
        found = Decoded(np.stack(pixels), *rest)
    else:
        found = Decoded(np.stack(pixels)[:, :, :, None], *rest)
    if path is not None:
        kept.write(path, found)
    return found


def _sorted(
    source: Source, size: int, add: Callable[[np.ndarray], None], progress: Step | None
) -> tuple[list[int | str], np.ndarray, tuple[str, ...]]:
    """Adds every image that can be used; their labels and splits, and what is wrong with others.

    Raises DataError where none can be used.
    """
    labels: list[int | str] = []
    splits: list[str] = []
    bad: list[str] = []
    for done, (sample, image) in enumerate(_images(source, size), start=1):
        if isinstance(image, str):
            bad.append(f"{sample.place} ({image})")
        elif sample.label is None or sample.label == -1:
            bad.append(f"{sample.place} (no label)")
        else:
            add(image)
            labels.append(sample.label)
            splits.append(sample.split)
        if progress and (done % _TOGETHER == 0 or done == source.count):
            progress(done, source.count)
    if not labels:
        reason = f" The first: {bad[0]}." if bad else ""
        raise DataError(f"{source.name} has no image that can be used.{reason}")
    return labels, np.array(splits), tuple(bad)


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
