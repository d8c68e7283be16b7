"""Decoding of the images of a source, several at a time, into one array that is then cached."""

from __future__ import annotations

import io
import json
import math
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nas.data import image_cache
from nas.data.image_cache import CacheRecord, CacheWriteError, DecodedImages
from nas.data.image_formats import (
    HEIC_WITHOUT_READER,
    IMAGE_FORMATS,
    INSTALL_HEIC,
    RAW,
    is_raw,
    unreadable_reason,
)
from nas.data.sources import Sample, Source, Split, printable_line
from nas.errors import DataError, first_line

MAX_BYTES_IN_MEMORY = 4 << 30
"""Decoded images of more than 4 GiB stay on disk and are read batch by batch."""

MAX_IMAGE_PIXELS = 1 << 26
"""Largest number of pixels of an image, 64 million: decoding one takes at most about 0.5 GB.

For a JPEG, which can be decoded at a fraction of its size, the decoded pixels count. Pillow's own
limit is higher, and Pillow only warns about images of up to twice that.
"""

_MAX_CONCURRENT_IMAGE_PIXELS = 1 << 24
"""Images of more pixels are decoded one at a time, so that the threads do not exhaust memory."""

_LARGE_IMAGE_LOCK = threading.Lock()

_IMAGES_PER_PROGRESS_CALL = 1024

_IMAGES_PER_TASK = 32
"""Images that a thread decodes at a time: handing over a task costs as much as decoding one."""

DecodingProgress = Callable[[int, int], None]
"""Called with the number of images decoded and the number of all images."""


def decode(
    source: Source, size: int, progress: DecodingProgress | None = None, *, write_cache: bool = True
) -> DecodedImages:
    """Decode the images of a source, scaled and cropped to squares, or read them from the cache.

    Cached images are used if no file of the source has been changed, added or removed since. A
    cache that cannot be read or written costs time only, unless the images need more than
    `MAX_BYTES_IN_MEMORY`: these stay in the cache, or in a temporary file without `write_cache`.

    Args:
        source: Opened source; its samples are iterated if the cache cannot be used.
        size: Side of the decoded images, in pixels.
        progress: Called from time to time while images are decoded.
        write_cache: Whether to add the images to the cache; it is read in any case.

    Raises:
        DataError: No image can be used, or the disk has no room for images that do not fit in
            memory.
    """
    on_disk = source.root is not None and source.count * size * size * 3 > MAX_BYTES_IN_MEMORY
    path = image_cache.cache_path(source, size)
    if path is not None:
        cached = image_cache.read(path, size, on_disk=on_disk, touch=write_cache)
        if cached is not None:
            return cached
    if on_disk and path is not None and write_cache:
        return _decode_to_disk(source, size, path, progress)
    if on_disk:
        with tempfile.TemporaryDirectory(prefix="nas-images-") as folder:
            # The mapped pixels stay readable after the file has been removed.
            return _decode_to_disk(source, size, Path(folder) / "images", progress)
    images: list[np.ndarray] = []
    record = _decode_all(source, size, images.append, progress)
    if record.grey:
        pixels = np.stack(images)[:, :, :, None]
    else:
        pixels = np.stack([_to_rgb(image) for image in images])
    if path is not None and write_cache:
        image_cache.write(path, pixels, record)
    return record.with_pixels(pixels)


def remedy_for(bad: Sequence[str]) -> str:
    """Return what the user can do about images that cannot be used, by location and reason."""
    if any(HEIC_WITHOUT_READER in each for each in bad):
        return f"To read HEIC photos: {INSTALL_HEIC}."
    return ""


def _decode_to_disk(
    source: Source, size: int, path: Path, progress: DecodingProgress | None
) -> DecodedImages:
    """Decode images into a file of the cache and leave the pixels there.

    Raises:
        DataError: No image can be used, or the file cannot be written.
    """
    total_bytes = source.count * size * size * 3
    try:
        with image_cache.writer(path, total_bytes) as file:
            file.finish(_decode_all(source, size, lambda image: file.add(_to_rgb(image)), progress))
        decoded = image_cache.read(path, size, on_disk=True)
        if decoded is None:
            raise CacheWriteError("what was written cannot be read back, or an image has changed")
    except CacheWriteError as error:
        raise DataError(
            f"The decoded images need {total_bytes / 2**30:.1f} GiB in "
            f"{printable_line(path.parent)}: {error}.",
            remedy="Make room there, set XDG_CACHE_HOME to a folder on a larger disk, or use a "
            "smaller image_size.",
        ) from error
    return decoded


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Return `size x size x 3` pixels, given those or the `size x size` pixels of a grey image."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _decode_all(
    source: Source,
    size: int,
    add: Callable[[np.ndarray], None],
    progress: DecodingProgress | None,
) -> CacheRecord:
    """Call `add` with the pixels of each image that can be used; return the record of all images.

    Raises:
        DataError: No image can be used.
    """
    labels: list[int | str] = []
    splits: list[Split] = []
    bad: list[str] = []
    bad_labels: list[int | str | None] = []
    label_values: set[int | str] = set()
    files: dict[str, str] = {}
    grey = True
    for done, (sample, image) in enumerate(_decode_samples(source, size, files), start=1):
        label = None if sample.label == -1 else sample.label
        if label is not None:
            label_values.add(label)
        if isinstance(image, str) or label is None:
            bad.append(f"{sample.location} ({image if isinstance(image, str) else 'no label'})")
            bad_labels.append(label)
        else:
            add(image)
            grey &= image.ndim == 2
            labels.append(label)
            splits.append(sample.split)
        if progress and (done % _IMAGES_PER_PROGRESS_CALL == 0 or done == source.count):
            progress(done, source.count)
    if not labels:
        reason = f" The first: {bad[0]}." if bad else ""
        raise DataError(
            f"{source.name} has no image that can be used.{reason}", remedy=remedy_for(bad)
        )
    # Integers come before strings, because Python cannot compare them.
    sorted_values = sorted(label_values, key=lambda value: (isinstance(value, str), value))
    return CacheRecord(
        grey=grey,
        labels=labels,
        splits=splits,
        bad=bad,
        bad_labels=bad_labels,
        label_values=sorted_values,
        files=files,
    )


def _decode_samples(
    source: Source, size: int, files: dict[str, str]
) -> Iterator[tuple[Sample, np.ndarray | str]]:
    """Yield each sample with its pixels, or with the reason why it cannot be used.

    Args:
        source: Opened source.
        size: Side of the decoded images, in pixels.
        files: Receives the state of image files that the source did not list; see `CacheRecord`.
    """

    def decode_task(samples: list[Sample]) -> list[np.ndarray | str]:
        return [_decode_image(sample, size) for sample in samples]

    remaining = iter(source.samples)
    listed = set(source.files)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while samples := list(islice(remaining, _IMAGES_PER_PROGRESS_CALL)):
            for sample in samples:
                if isinstance(sample.image, Path) and sample.image not in listed:
                    files[json.dumps(str(sample.image))] = image_cache.file_state(sample.image)
            tasks = [
                samples[start : start + _IMAGES_PER_TASK]
                for start in range(0, len(samples), _IMAGES_PER_TASK)
            ]
            images = chain.from_iterable(threads.map(decode_task, tasks))
            yield from zip(samples, images, strict=True)


def _decode_image(sample: Sample, size: int) -> np.ndarray | str:
    """Return the pixels of an image, or the reason why it cannot be used.

    An animation is decoded as its first frame. Transparency is dropped.

    Returns:
        Pixels (uint8), `size x size` for a grey image and `size x size x 3` for another.
    """
    content = sample.image
    if content is None:
        return "no image"
    if isinstance(content, np.ndarray):
        return _scale_and_crop(Image.fromarray(content), size)
    try:
        if isinstance(content, Path) and not stat.S_ISREG(content.stat().st_mode):
            return "not a regular file"  # Opening a pipe blocks.
        if is_raw(content):
            return RAW
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with Image.open(file, formats=tuple(IMAGE_FORMATS)) as image:
            # Lets Pillow decode a large JPEG at a fraction of its size.
            image.draft(None, (2 * size, 2 * size))
            pixels = math.prod(image.size)
            if pixels > MAX_IMAGE_PIXELS:
                return f"{image.width} x {image.height} pixels, more than {MAX_IMAGE_PIXELS}"
            with _LARGE_IMAGE_LOCK if pixels > _MAX_CONCURRENT_IMAGE_PIXELS else nullcontext():
                ImageOps.exif_transpose(image, in_place=True)
                return _scale_and_crop(image, size)
    except UnidentifiedImageError:
        return unreadable_reason(content)
    except Image.DecompressionBombError:
        return f"more than {MAX_IMAGE_PIXELS} pixels"
    except OSError as error:
        return printable_line(error.strerror or str(error))
    except Exception as error:  # Pillow raises nearly anything for a damaged file.
        return printable_line(first_line(error))


def _scale_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Return the pixels of an image with 8 bits a channel, scaled and cropped to its centre.

    Raises:
        ValueError: The pixels have 32 bits, so that their range is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits a channel; expected 8 or 16")
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)
