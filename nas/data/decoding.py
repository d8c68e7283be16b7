"""Decoding of the images of a source, several at a time, into one array that is then cached."""

from __future__ import annotations

import errno
import io
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFile

from nas.data import image_cache
from nas.data.image_cache import DecodedImages, ExampleFile, ImageRecord
from nas.data.image_formats import (
    HEIC_WITHOUT_READER,
    IMAGE_FORMATS,
    INSTALL_HEIC,
    RAW,
    is_raw,
    unreadable_reason,
)
from nas.data.image_reading import (
    UnknownFormatError,
    UnreadableImageError,
    open_image,
    orientation,
    read_pixels,
    with_8_bits,
)
from nas.data.sources import Sample, Source, printable_line
from nas.display.progress import Advance
from nas.errors import DataError
from nas.machine import this_machine

MAX_BYTES_IN_MEMORY = 4 << 30
"""Decoded images of more than 4 GiB stay on disk and are read batch by batch."""

MAX_EXAMPLE_FILES = 16
"""Most kinds of image files of which an example is stored; those with the most images are."""

MAX_EXAMPLE_BYTES = 8 << 20
"""Size of the largest file that is stored as an example, 8 MiB: a photo of a phone has less."""

_MAX_COLOUR_SPREAD = 8
"""Largest difference of the values of a channel that count as one colour. Editors round the
colours of pixels that are partly transparent."""

_MIN_VISIBLE_CONTRAST = 32
"""Smallest difference from the background, in any channel, that can be seen."""

_MAX_CONCURRENT_IMAGE_PIXELS = 1 << 24
"""Images of more pixels are decoded one at a time, so that the threads do not exhaust memory."""

_LARGE_IMAGE_LOCK = threading.Lock()

_IMAGES_PER_PROGRESS_CALL = 1024

_IMAGES_PER_TASK = 32
"""Images that a thread decodes at a time: handing over a task costs as much as decoding one."""


class _Reading(NamedTuple):
    """How images are read.

    Attributes:
        size: Side of the decoded images, in pixels.
        background: Colour behind transparent pixels, as `#rrggbb`.
        resize: One of `nas.data.image_reading.RESIZES`.
    """

    size: int
    background: str = "#ffffff"
    resize: str = "cover"


class _Image(NamedTuple):
    """An image of a source, decoded.

    Attributes:
        pixels: Pixels (uint8), `size x size` for a grey image and `size x size x 3` for another.
        kind: What matters to reading the file, such as "PNG RGBA, alpha"; empty if the sample
            has no file.
        silhouette: Colour (RGB) of an image that is drawn by its transparency alone; None for any
            other.
        size: Width and height before it was scaled.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    kind: str = ""
    silhouette: tuple[int, int, int] | None = None


def decode(
    source: Source,
    size: int,
    progress: Advance | None = None,
    *,
    background: str = "#ffffff",
    resize: str = "cover",
    write_cache: bool = True,
) -> DecodedImages:
    """Decode the images of a source, scaled to squares, or read them from the cache.

    Cached images are used if no file of the source has been changed, added or removed since. A
    cache that cannot be read or written costs time only, unless the images need more than
    `MAX_BYTES_IN_MEMORY`: these stay in the cache, or in a temporary file without `write_cache`.

    Args:
        source: Opened source; its samples are iterated if the cache cannot be used.
        size: Side of the decoded images, in pixels.
        progress: Called from time to time while images are decoded.
        background: Colour behind transparent pixels, as `#rrggbb`.
        resize: How they become squares, one of `nas.data.image_reading.RESIZES`.
        write_cache: Whether to add the images to the cache; it is read in any case.

    Raises:
        DataError: No image can be used, or the disk has no room for images that do not fit in
            memory.
    """
    how = _Reading(size, background, resize)
    on_disk = source.root is not None and source.count * size * size * 3 > MAX_BYTES_IN_MEMORY
    path = image_cache.cache_path(source, size, background, resize)
    if path is not None:
        cached = image_cache.read(path, size, on_disk=on_disk, touch=write_cache)
        if cached is not None:
            return cached
    if on_disk and path is not None and write_cache:
        return _decode_to_disk(source, how, path, progress)
    if on_disk:
        with tempfile.TemporaryDirectory(prefix="nas-images-") as folder:
            # The mapped pixels stay readable after the file has been removed.
            return _decode_to_disk(source, how, Path(folder) / "images", progress)
    images: list[np.ndarray] = []
    record = _decode_all(source, how, images.append, progress)
    pixels = np.stack(images if record.grey else [_to_rgb(image) for image in images])
    pixels = pixels[:, :, :, None] if record.grey else pixels
    if path is not None and write_cache:
        image_cache.write(path, pixels, record)
    return DecodedImages(pixels, record)


def remedy_for(bad: Sequence[str]) -> str:
    """Return what the user can do about images that cannot be used, by location and reason."""
    if any(HEIC_WITHOUT_READER in each for each in bad):
        return f"To read HEIC photos: {INSTALL_HEIC}."
    return ""


def _decode_to_disk(
    source: Source, how: _Reading, path: Path, progress: Advance | None
) -> DecodedImages:
    """Decode images into a file of the cache and leave the pixels there.

    Raises:
        DataError: No image can be used, or the file cannot be written.
    """
    total_bytes = source.count * how.size * how.size * 3
    try:
        with image_cache.writer(path, total_bytes) as file:

            def add(image: np.ndarray) -> None:
                file.add(_to_rgb(image))

            file.finish(_decode_all(source, how, add, progress))
        decoded = image_cache.read(path, how.size, on_disk=True)
        if decoded is None:
            reason = "what was written cannot be read back, or an image has changed"
            raise OSError(errno.EIO, reason)
    except OSError as error:
        raise DataError(
            f"The decoded images need {total_bytes / 2**30:.1f} GiB in "
            f"{printable_line(path.parent)}: {error.strerror}.",
            remedy="Make room there, set XDG_CACHE_HOME to a folder on a larger disk, or use a "
            "smaller image_size.",
        ) from error
    return decoded


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Return `size x size x 3` pixels, given those or the `size x size` pixels of a grey image."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _decode_all(
    source: Source,
    how: _Reading,
    add: Callable[[np.ndarray], None],
    progress: Advance | None,
) -> ImageRecord:
    """Call `add` with the pixels of each image that can be used; return the record of all images.

    Raises:
        DataError: No image can be used.
    """
    record = ImageRecord()
    label_values: set[int | str] = set()
    examples = _Examples()
    decoded = _decode_samples(source, how, record.files)
    for done, (sample, image) in enumerate(decoded, start=1):
        label = None if sample.label == -1 else sample.label
        if label is not None:
            label_values.add(label)
        if isinstance(image, str) or label is None:
            reason = image if isinstance(image, str) else "no label"
            record.bad.append(f"{sample.location} ({reason})")
            record.bad_labels.append(label)
        else:
            add(image.pixels)
            record.grey &= image.pixels.ndim == 2
            examples.add(sample, image.kind, position=len(record.labels))
            if image.silhouette is not None:
                record.silhouettes += 1
                record.invisible += _is_invisible(image.silhouette, how.background)
            record.labels.append(label)
            record.splits.append(sample.split)
            record.locations.append(sample.location)
            record.groups.append(sample.group)
            record.sizes.append(image.size)
        if progress and (done % _IMAGES_PER_PROGRESS_CALL == 0 or done == source.count):
            progress(done, source.count)
    if not record.labels:
        reason = f" The first: {record.bad[0]}." if record.bad else ""
        raise DataError(
            f"{source.name} has no image that can be used.{reason}", remedy=remedy_for(record.bad)
        )
    # Integers come before strings, because Python cannot compare them.
    record.label_values = sorted(label_values, key=lambda value: (isinstance(value, str), value))
    record.examples = examples.files()
    return record


class _Examples:
    """Collects the smallest image file of each kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._smallest: dict[str, tuple[int, int, Path | bytes]] = {}

    def add(self, sample: Sample, kind: str, position: int) -> None:
        """Take a sample into account; `position` is its own among the images that can be used."""
        content = sample.image
        if content is None or isinstance(content, np.ndarray):
            return
        self._counts[kind] += 1
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if kind not in self._smallest or size < self._smallest[kind][0]:
            self._smallest[kind] = (size, position, content)

    def files(self) -> list[ExampleFile]:
        """Return the smallest file of each kind, the kinds with the most images first."""
        examples: list[ExampleFile] = []
        for kind, count in self._counts.most_common():
            size, position, content = self._smallest[kind]
            stored = sum(bool(each.content) for each in examples)
            if size > MAX_EXAMPLE_BYTES or stored >= MAX_EXAMPLE_FILES:
                data = b""
            else:
                data = content if isinstance(content, bytes) else content.read_bytes()
            examples.append(ExampleFile(kind=kind, count=count, position=position, content=data))
        return examples


def _decode_samples(
    source: Source, how: _Reading, files: dict[str, str]
) -> Iterator[tuple[Sample, _Image | str]]:
    """Yield each sample, decoded, or with the reason why it cannot be used.

    Args:
        source: Opened source.
        how: How images are read.
        files: Receives the state of image files that the source did not list; see `ImageRecord`.
    """

    def decode_task(samples: list[Sample]) -> list[_Image | str]:
        return [_decode_image(sample, how) for sample in samples]

    remaining = iter(source.samples)
    listed = set(source.files)
    with ThreadPoolExecutor(this_machine.allowed_cores()) as threads:
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


def _decode_image(sample: Sample, how: _Reading) -> _Image | str:
    """Return a decoded image, or the reason why it cannot be used; see `image_reading`."""
    content = sample.image
    if content is None:
        return "no image"
    try:
        if isinstance(content, np.ndarray):
            pixels = read_pixels(
                Image.fromarray(content), how.size, how.background, None, how.resize
            )
            return _Image(pixels, (content.shape[1], content.shape[0]))
        if is_raw(content):
            return RAW
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with open_image(file, how.size, tuple(IMAGE_FORMATS)) as image:
            is_large = image.width * image.height > _MAX_CONCURRENT_IMAGE_PIXELS
            with _LARGE_IMAGE_LOCK if is_large else nullcontext():
                image.load()
                kind, own_size = _kind(image), _full_size(image)
                pixels = read_pixels(image, how.size, how.background, None, how.resize)
                return _Image(pixels, own_size, kind, _silhouette(image))
    except UnknownFormatError:
        assert not isinstance(content, np.ndarray)
        return unreadable_reason(content)
    except UnreadableImageError as error:
        return printable_line(str(error))


def _kind(image: ImageFile.ImageFile) -> str:
    """Return what matters to reading an image file, such as "JPEG RGB, decoded at 1/4"."""
    parts = [f"{image.format} {image.mode}"]
    if image.has_transparency_data:
        parts.append("alpha")
    if (turn := orientation(image)) > 1:
        parts.append(f"EXIF orientation {turn}")
    if (scale := _jpeg_scale(image)) > 1:
        parts.append(f"decoded at 1/{scale}")
    return ", ".join(parts)


def _jpeg_scale(image: ImageFile.ImageFile) -> int:
    """Return the divisor of the size at which a JPEG is decoded; 1 for other images."""
    is_jpeg = image.format in ("JPEG", "MPO") and image.decoderconfig
    return max(1, image.decoderconfig[0]) if is_jpeg else 1


def _full_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return width and height of an image file; of a JPEG that is decoded smaller, about these."""
    return image.width * _jpeg_scale(image), image.height * _jpeg_scale(image)


def _silhouette(image: Image.Image) -> tuple[int, int, int] | None:
    """Return the colour of an image that is drawn by its transparency alone, else None.

    Such an image has transparent and opaque pixels, and all that are more opaque than transparent
    have one colour.
    """
    if not image.has_transparency_data:
        return None
    image = with_8_bits(image).convert("RGBA")
    alpha = image.getchannel("A")
    levels = np.flatnonzero(alpha.histogram())
    if len(levels) < 2 or levels[-1] < 128:
        return None
    visible = alpha.point([0] * 128 + [255] * 128)
    histograms = np.reshape(image.convert("RGB").histogram(visible), (3, 256))
    values = [np.flatnonzero(histogram) for histogram in histograms]
    if any(each[-1] - each[0] > _MAX_COLOUR_SPREAD for each in values):
        return None
    red, green, blue = (int(each[0] + each[-1]) // 2 for each in values)
    return red, green, blue


def _is_invisible(colour: tuple[int, int, int], background: str) -> bool:
    """Return whether an image of one colour cannot be seen on a background."""
    behind = ImageColor.getrgb(background)
    return all(abs(a - b) < _MIN_VISIBLE_CONTRAST for a, b in zip(colour, behind, strict=True))
