"""Duplicates among images: pixels that are equal, and images that show the same thing.

Two images are near duplicates if their contours agree: the differences of neighbouring pixels of
both, scaled to 8 x 8, as vectors of length 1. Brightness, contrast and smooth backgrounds, such as
the sky, change little of them. Some images are like many others: a plane in the sky, or a
handwritten digit. So near duplicates must also be much closer to each other than to the images that
are usually nearest. docs/measurements.md says what re-compression, crops and brightness change, and
how many duplicates CIFAR-10 has.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas import files
from nas.data.image_cache import Pixels, iter_chunks
from nas.display.progress import Advance

MAX_DISTANCE = 0.2
"""Largest distance of near duplicates: 1 minus the cosine of their contours."""

MAX_SHARE = 0.22
"""Largest distance of near duplicates as a share of the usual distance of both."""

USUAL_NEIGHBOURS = 10
"""The usual distance of an image is that to its neighbour of this rank among `_REFERENCES`."""

MIN_SIDE = 16
"""Side of the images from which near duplicates are looked for. Smaller ones have too few pixels to
tell them from other images of their class."""

MAX_JOINED_GROUPS = 3
"""Most groups of several images that the near duplicates of one image join."""

MAX_COMPARED = 100_000
"""Most images of which all pairs are compared, in less than a minute on two cores. Of larger sets
only those pairs are, of which one image scores networks."""

_DIGEST_BYTES = 32

_SIDE = 8
_REFERENCES = 3000
_BLOCK = 1024

Contours = NDArray[np.float32]


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images that are duplicates.

    Attributes:
        exact: pairs of images with equal pixels, `pairs x 2`: each image with the first like it.
        near: pairs of other images that are near duplicates, `pairs x 2`.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]

    @property
    def pairs(self) -> NDArray[np.int64]:
        """All pairs, `pairs x 2`."""
        return np.concatenate([self.exact, self.near])


def cached_duplicates(
    cache: Path | None,
    pixels: Pixels,
    is_scored: NDArray[np.bool_] | None = None,
    progress: Advance | None = None,
) -> Duplicates:
    """Return what `find_duplicates` finds, from a file after the first time.

    Args:
        cache: file, which is written if it is missing or damaged; None for no file. Where
            `is_scored` matters, its digest is added to the name.
        pixels, is_scored, progress: see `find_duplicates`.
    """
    if cache is not None and is_scored is not None and len(pixels) > MAX_COMPARED:
        scored = hashlib.sha256(np.packbits(is_scored).data).hexdigest()[:16]
        cache = cache.with_name(f"{cache.stem}-{scored}{cache.suffix}")
    stored = None if cache is None else _read(cache)
    if stored is not None:
        return stored
    duplicates = find_duplicates(pixels, is_scored, progress)
    if cache is not None:
        with suppress(OSError):
            _write(cache, duplicates)
    return duplicates


def _read(cache: Path) -> Duplicates | None:
    """Return the duplicates in a file; None if it is missing or damaged.

    The digest is compared first: damaged arrays make NumPy raise nearly anything.
    """
    try:
        content = cache.read_bytes()
    except OSError:
        return None
    arrays, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(arrays).digest() != digest:
        return None
    with np.load(io.BytesIO(arrays)) as stored:
        return Duplicates(stored["exact"], stored["near"])


def _write(cache: Path, duplicates: Duplicates) -> None:
    """Replace a file by the arrays of duplicates and the digest of these."""
    content = io.BytesIO()
    np.savez_compressed(content, exact=duplicates.exact, near=duplicates.near)
    digest = hashlib.sha256(content.getbuffer()).digest()
    files.replace(cache, content.getvalue() + digest)


def find_duplicates(
    pixels: Pixels,
    is_scored: NDArray[np.bool_] | None = None,
    progress: Advance | None = None,
) -> Duplicates:
    """Return the pairs of images that are duplicates.

    Args:
        pixels: images, `n x height x width x channels` (uint8).
        is_scored: whether an image scores networks, `n`; only needed of more than `MAX_COMPARED`.
        progress: called with the number of images that were compared and that of all images.
    """
    count = len(pixels)
    exact = _exact_pairs(pixels)
    if pixels.shape[1] < MIN_SIDE:
        return Duplicates(exact, np.empty((0, 2), np.int64))
    contours = np.concatenate([_contours(chunk) for chunk in iter_chunks(pixels)])
    # An image without contours, such as an empty one, is like no other.
    is_usable = np.linalg.norm(contours, axis=1) > 0
    is_usable[exact[:, 1]] = False
    usable = np.flatnonzero(is_usable)
    if len(usable) < 2:
        return Duplicates(exact, np.empty((0, 2), np.int64))
    vectors = contours[usable]
    usual = _usual_distances(vectors)
    rows = np.arange(len(usable))
    if len(usable) > MAX_COMPARED and is_scored is not None:
        rows = np.flatnonzero(is_scored[usable])
    pairs = [np.empty((0, 2), np.int64)]
    for done, first, second, distance in _close_pairs(vectors, rows):
        is_near = distance <= MAX_SHARE * np.minimum(usual[first], usual[second])
        pairs.append(np.stack([usable[first[is_near]], usable[second[is_near]]], 1))
        if progress is not None:
            progress(done * count // len(rows), count)
    near = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return Duplicates(exact, near)


def joining_pairs(
    duplicates: Duplicates, pixels: Pixels, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the pairs of duplicates that belong into one part, `pairs x 2`.

    Images with little in them, such as the black frames between two scenes, belong to no other
    image, but would join all videos. So images of one colour are left out, and near duplicates of
    images that have more than `USUAL_NEIGHBOURS` of them, or some in more than `MAX_JOINED_GROUPS`
    other groups.

    Args:
        duplicates: duplicates among all images.
        pixels: all images, `n x height x width x channels` (uint8).
        groups: number of the group of each image, `n`.
    """
    originals = np.unique(duplicates.exact[:, 0])
    empty = [at for at in originals.tolist() if not np.ptp(pixels[at : at + 1], axis=(1, 2)).any()]
    exact = duplicates.exact[~np.isin(duplicates.exact[:, 0], empty)]
    both = np.concatenate([duplicates.near, duplicates.near[:, ::-1]])
    both = both[groups[both[:, 0]] != groups[both[:, 1]]]
    has_several = np.bincount(groups) > 1
    links = np.stack([both[:, 0], groups[both[:, 1]]], axis=1)[has_several[groups[both[:, 1]]]]
    joined = np.bincount(np.unique(links, axis=0)[:, 0], minlength=len(groups))
    is_common = np.bincount(both[:, 0], minlength=len(groups)) > USUAL_NEIGHBOURS
    is_common |= joined > MAX_JOINED_GROUPS
    return np.concatenate([exact, duplicates.near[~is_common[duplicates.near].any(1)]])


def _exact_pairs(pixels: Pixels) -> NDArray[np.int64]:
    """Return each image that equals an earlier one, behind the first of these."""
    first: dict[bytes, int] = {}
    pairs = []
    position = 0
    for chunk in iter_chunks(pixels):
        for image in chunk:
            digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            known = first.setdefault(digest, position)
            if known != position:
                pairs.append((known, position))
            position += 1
    return np.array(pairs, np.int64).reshape(-1, 2)


def _contours(images: NDArray[np.uint8]) -> Contours:
    """Return the differences of neighbouring pixels, scaled to length 1, or 0 without any.

    Args:
        images: images, `n x size x size x channels`.
    """
    small = _scaled(images.astype(np.float32))
    across = small[:, :, 1:] - small[:, :, :-1]
    down = small[:, 1:] - small[:, :-1]
    vectors = np.concatenate([each.reshape(len(images), -1) for each in (across, down)], axis=1)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _scaled(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images of `_SIDE x _SIDE` pixels, each the mean of the pixels in its place."""
    size = images.shape[1]
    # Row i of the matrix has the share of each pixel in the mean number i.
    edges = np.arange(size + 1) * _SIDE / size
    places = np.arange(_SIDE)[:, None]
    overlap = np.minimum(edges[1:], places + 1) - np.maximum(edges[:-1], places)
    shares = np.maximum(overlap, 0).astype(np.float32)
    rows = np.einsum("as,nstc->natc", shares, images, optimize=True)
    return np.asarray(np.einsum("bt,natc->nabc", shares, rows, optimize=True), np.float32)


def _usual_distances(vectors: Contours) -> NDArray[np.float32]:
    """Return the usual distance of each image, see `USUAL_NEIGHBOURS`; at least 0."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(vectors), min(_REFERENCES, len(vectors)), replace=False)
    references = vectors[chosen].T
    rank = min(USUAL_NEIGHBOURS, len(chosen) - 1)
    cosines = [
        np.partition(vectors[start : start + _BLOCK] @ references, -rank - 1, axis=1)[:, -rank - 1]
        for start in range(0, len(vectors), _BLOCK)
    ]
    return np.asarray(np.maximum(0, 1 - np.concatenate(cosines)), np.float32)


def _close_pairs(
    vectors: Contours, rows: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Yield pairs at most `MAX_DISTANCE` apart: rows done so far, both images, and distances."""
    for start in range(0, len(rows), _BLOCK):
        own = rows[start : start + _BLOCK]
        # If all rows are compared, those before were compared with these already.
        begin = start if len(rows) == len(vectors) else 0
        cosines = vectors[own] @ vectors[begin:].T
        first, second = np.nonzero(cosines >= 1 - MAX_DISTANCE)
        distance = 1 - cosines[first, second]
        is_other = own[first] != second + begin
        yield (
            start + len(own),
            own[first[is_other]],
            second[is_other] + begin,
            distance[is_other],
        )
