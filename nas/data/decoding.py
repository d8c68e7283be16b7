"""Decodes the images of a source, several at once, and keeps them for the next time."""

from __future__ import annotations

import io
import json
import math
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nas.data import image_cache
from nas.data.image_cache import CacheWriteError, Decoded, Record
from nas.data.sources import IMAGE_FORMATS, Sample, Source, Split, shown
from nas.errors import DataError, first_line

LARGE_BYTES = 4 << 30
"""Decoded images of more bytes than this stay on disk, and are read batch by batch."""

MAX_IMAGE_PIXELS = 1 << 26
"""Pixels of an image that are decoded, 64 million: at most about 0.5 GB are needed for one.

A JPEG is decoded at a fraction of its size, and that counts. Pillow's own limit is higher, and it
only warns of images up to twice that.
"""

_ALONE_PIXELS = 1 << 24
"""Images of more pixels are decoded one at a time, so that the threads share the memory."""

_ALONE = threading.Lock()

_TOGETHER = 1024
"""Images between two looks at the progress."""

_TASK = 32
"""Images that a thread decodes at a time: handing over one costs as much as decoding it."""

Step = Callable[[int, int], None]
"""Called with (images decoded, images in all)."""


def decode(
    source: Source, size: int, progress: Step | None = None, *, keep: bool = True
) -> Decoded:
    """Decode the images of a source, scaled and cropped to `size x size`, or read the cache.

    The cache belongs to the files as they are: one that is changed, added or removed is another
    source. It is in `nas.data.image_cache.cache_folder()`; one that cannot be read or written
    costs time only, unless the images are `LARGE_BYTES` or more: then they stay there. Without
    `keep` the cache is read, but not changed.

    Raises DataError where no image can be used, or there is no room for them.
    """
    large = source.root is not None and source.count * size * size * 3 > LARGE_BYTES
    path = image_cache.path_of(source, size)
    cached = None if path is None else image_cache.read(path, size, on_disk=large, mark=keep)
    if cached is not None:
        return cached
    if large and path is not None and keep:
        return _decode_to_disk(source, size, path, progress)
    if large:
        with tempfile.TemporaryDirectory(prefix="nas-images-") as folder:
            # The pixels stay readable while they are used, also after the file has lost its name.
            return _decode_to_disk(source, size, Path(folder) / "images", progress)
    pixels: list[np.ndarray] = []
    record = _decode_all(source, size, pixels.append, progress)
    if record.grey:
        stacked = np.stack(pixels)[:, :, :, None]
    else:
        stacked = np.stack([_coloured(image) for image in pixels])
    if path is not None and keep:
        image_cache.write(path, stacked, record)
    return record.with_pixels(stacked)


def _decode_to_disk(source: Source, size: int, path: Path, progress: Step | None) -> Decoded:
    """Decode images into a file of the cache and leave them there.

    Raises DataError where the disk has no room.
    """
    total = source.count * size * size * 3
    try:
        with image_cache.writer(path, total) as file:
            file.finish(
                _decode_all(source, size, lambda image: file.add(_coloured(image)), progress)
            )
        decoded = image_cache.read(path, size, on_disk=True)
        if decoded is None:
            raise CacheWriteError("what was written cannot be read back, or an image has changed")
    except CacheWriteError as error:
        raise DataError(
            f"The decoded images need {total / 2**30:.1f} GiB in {shown(path.parent)}: {error}.",
            remedy="Make room there, set XDG_CACHE_HOME to a folder on a larger disk, or use a "
            "smaller image_size.",
        ) from error
    return decoded


def _coloured(image: np.ndarray) -> np.ndarray:
    """Return `size x size x 3` pixels, also for the `size x size` of a grey image."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _decode_all(
    source: Source, size: int, add: Callable[[np.ndarray], None], progress: Step | None
) -> Record:
    """Add every image that can be used, and return what else is known of all of them.

    Raises DataError where none can be used.
    """
    labels: list[int | str] = []
    splits: list[Split] = []
    bad: list[str] = []
    values: set[int | str] = set()
    files: dict[str, str] = {}
    grey = True
    for done, (sample, image) in enumerate(_images(source, size, files), start=1):
        label = None if sample.label == -1 else sample.label
        if label is not None:
            values.add(label)
        if isinstance(image, str):
            bad.append(f"{sample.place} ({image})")
        elif label is None:
            bad.append(f"{sample.place} (no label)")
        else:
            add(image)
            grey &= image.ndim == 2
            labels.append(label)
            splits.append(sample.split)
        if progress and (done % _TOGETHER == 0 or done == source.count):
            progress(done, source.count)
    if not labels:
        reason = f" The first: {bad[0]}." if bad else ""
        raise DataError(f"{source.name} has no image that can be used.{reason}")
    in_order = sorted(values, key=lambda value: (isinstance(value, str), value))
    return Record(
        grey=grey, labels=labels, splits=splits, bad=bad, label_values=in_order, files=files
    )


def _images(
    source: Source, size: int, files: dict[str, str]
) -> Iterator[tuple[Sample, np.ndarray | str]]:
    """Yield samples with their pixels, or with what is wrong with them.

    Adds the state of image files that the source did not list to `files`; see `Record`.
    """

    def decoded(samples: list[Sample]) -> list[np.ndarray | str]:
        return [_pixels(sample, size) for sample in samples]

    left = iter(source.samples)
    listed = set(source.files)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while samples := list(islice(left, _TOGETHER)):
            for sample in samples:
                if isinstance(sample.image, Path) and sample.image not in listed:
                    files[json.dumps(str(sample.image))] = image_cache.state_of(sample.image)
            tasks = [samples[at : at + _TASK] for at in range(0, len(samples), _TASK)]
            yield from zip(samples, chain.from_iterable(threads.map(decoded, tasks)), strict=True)


def _pixels(sample: Sample, size: int) -> np.ndarray | str:
    """Return pixels `size x size` of a grey image, `size x size x 3` of another; or what is wrong.

    An animation counts as its first image, and transparency is left out.
    """
    content = sample.image
    if content is None:
        return "no image"
    if isinstance(content, np.ndarray):
        return _scaled(Image.fromarray(content), size)
    try:
        if isinstance(content, Path) and not stat.S_ISREG(content.stat().st_mode):
            return "no regular file"  # Opening a pipe would wait for ever.
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with Image.open(file, formats=tuple(IMAGE_FORMATS)) as image:
            # Lets a large JPEG be decoded at a fraction of its size.
            image.draft(None, (2 * size, 2 * size))
            count = math.prod(image.size)
            if count > MAX_IMAGE_PIXELS:
                return f"{image.width} x {image.height} pixels, more than {MAX_IMAGE_PIXELS}"
            with _ALONE if count > _ALONE_PIXELS else nullcontext():
                ImageOps.exif_transpose(image, in_place=True)
                return _scaled(image, size)
    except UnidentifiedImageError:
        return f"not an image in one of the formats {', '.join(IMAGE_FORMATS)}"
    except Image.DecompressionBombError:
        return f"more than {MAX_IMAGE_PIXELS} pixels"
    except OSError as error:
        return shown(error.strerror or str(error))
    except Exception as error:  # Pillow raises nearly anything for a damaged file.
        return shown(first_line(error))


def _scaled(image: Image.Image, size: int) -> np.ndarray:
    """Return the pixels of an image in 8 bits, scaled and cropped to the centre.

    Raises ValueError for pixels whose range is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits a channel; expected 8 or 16")
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)
