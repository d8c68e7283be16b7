"""Further images for training, `[data] extra`: which of them may be trained on."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas.data import image_cache
from nas.data.dataset import PART_NAMES, ImageDataset, Images, Inventory, count_text, joined
from nas.data.decoding import decode
from nas.data.duplicates import joining_pairs
from nas.data.image_cache import ImageRecord, Pixels, iter_chunks, select, view_of, with_channels
from nas.data.labels import bad_images_error, count_by_class, number_classes
from nas.data.sources import Source, printable_line
from nas.data.splits import groups_of
from nas.errors import DataError
from nas.files.paths import without_folders


@dataclass(frozen=True, eq=False)
class FurtherImages:
    """The images of a source of further images.

    Attributes:
        name: Name of the source.
        pixels: The images that can be used, `n x height x width x channels` (uint8).
        labels: Their labels in the dataset, `n`.
        record: What is known of them.
        cache: File of the cached images; None without one.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    record: ImageRecord
    cache: Path | None


def read_further(
    data: ImageDataset, source: Source, *, skips_bad: bool, write_cache: bool
) -> FurtherImages:
    """Decode a source of further images for a dataset.

    Raises:
        DataError: The source has another class, or images that cannot be used.
    """
    size, background, resize = data.image_size, data.background, data.resize
    decoded = decode(source, size, background=background, resize=resize, write_cache=write_cache)
    record = decoded.record
    classes, labels, bad_labels = number_classes(source, record)
    if record.bad and not skips_bad:
        raise bad_images_error(source.name, record, count_by_class(classes, bad_labels))
    position = {name: label for label, name in enumerate(data.classes)}
    if others := [name for name in classes if name not in position]:
        raise DataError(
            f"The further images in {source.name} have the class {printable_line(others[0])}, "
            f"which {data.source} does not have.",
            remedy=f"Its classes are {count_text(data.class_counts)}.",
        )
    own = np.array([position[name] for name in classes], np.int64)[labels]
    cache = image_cache.cache_path(source, size, background, resize)
    return FurtherImages(source.name, decoded.pixels, own, record, cache)


def with_further(
    data: ImageDataset,
    inventory: Inventory,
    groups: Sequence[str | None],
    further: Sequence[FurtherImages],
) -> ImageDataset:
    """Return a dataset whose training images are followed by further ones.

    A further image is left out, with a warning, if its pixels equal those of an image that judges
    networks, or if its group has such an image. As in the splits, duplicates are of one group if
    `Inventory.are_duplicates_grouped`.

    Args:
        data: The dataset.
        inventory: All images of its source.
        groups: Group of each of these; None for one that is in no group.
        further: The further images, by source.
    """
    count = len(inventory.locations)
    inventory = _extended(inventory, further)
    names = [*groups, *(name for each in further for name in each.record.groups)]
    numbers = groups_of(names, inventory.locations)
    if inventory.are_duplicates_grouped:
        pairs = joining_pairs(inventory.duplicates(), inventory.images.pixels, numbers.numbers)
        numbers = numbers.joined(pairs)
    judging = np.isin(inventory.parts, ["search", "holdout", "test"])
    is_grouped = np.isin(numbers.numbers, numbers.numbers[judging])
    judged = set[bytes]()
    for images in (data.search, data.holdout, data.test):
        judged.update(_digests(images.pixels, data.channels))
    # Further images may join groups, so all parts get the new numbers.
    own = {
        name: replace(
            getattr(data, name), groups=numbers.numbers[:count][inventory.parts[:count] == name]
        )
        for name in PART_NAMES
    }
    train, parts = [own["train"]], inventory.parts.copy()
    for each in further:
        end = count + len(each.labels)
        digests = _digests(each.pixels, data.channels)
        is_equal = np.array([digest in judged for digest in digests], bool)
        is_left_out = is_equal | is_grouped[count:end]
        _warn_about_left_out(each.name, is_equal, is_left_out)
        chosen = np.flatnonzero(~is_left_out)
        own_groups = numbers.numbers[count:end][chosen]
        train.append(Images(select(each.pixels, chosen), each.labels[chosen], own_groups))
        parts[count:end][is_left_out] = "left out"
        count = end
    own["train"] = joined(train)
    return replace(data, **own, inventory=replace(inventory, parts=parts))


def _extended(inventory: Inventory, further: Sequence[FurtherImages]) -> Inventory:
    """Return an inventory with further images, all of them for training."""
    labels = np.concatenate([inventory.images.labels, *(each.labels for each in further)])
    records = [each.record for each in further]
    places = [
        f"{without_folders(each.name)}/{place}"
        for each in further
        for place in each.record.locations
    ]
    cache = inventory.cache
    if cache is not None:
        keys = [(each.cache.name, each.record.files) for each in further if each.cache is not None]
        are_cached = len(keys) == len(further)
        cache = image_cache.duplicates_path(cache, keys) if are_cached else None
    return replace(
        inventory,
        images=Images(
            view_of([inventory.images.pixels, *(each.pixels for each in further)]), labels
        ),
        parts=np.concatenate(
            [inventory.parts, np.full(len(labels) - len(inventory.parts), "train")]
        ),
        locations=(*inventory.locations, *places),
        sizes=np.concatenate([inventory.sizes, *(each.sizes for each in records)]),
        cache=cache,
    )


def _digests(pixels: Pixels, channels: int) -> Iterator[bytes]:
    """Yield the digest of the pixels of each image."""
    for chunk in iter_chunks(pixels):
        for image in with_channels(chunk, channels):
            yield hashlib.sha256(image.tobytes()).digest()


def _warn_about_left_out(source: str, is_equal: np.ndarray, is_left_out: np.ndarray) -> None:
    """Warn of the images of a source that are not trained on, and say why."""
    equal, count = int(is_equal.sum()), int(is_left_out.sum())
    if not count:
        return
    reasons = {
        "equal images that judge networks": equal,
        "are in groups of such images": count - equal,
    }
    warnings.warn(
        f"{count} of {len(is_left_out)} further images in {source} are left out: "
        f"{', '.join(f'{number} {reason}' for reason, number in reasons.items() if number)}.",
        stacklevel=4,
    )
