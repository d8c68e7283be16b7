"""The classes of a source: their names, the label of each image, and counts of them."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from nas.data.dataset import count_text
from nas.data.decoding import remedy_for
from nas.data.image_cache import ImageRecord
from nas.data.sources import Source, printable_line
from nas.errors import DataError

_NO_LABEL = "no label"


def number_classes(
    source: Source, record: ImageRecord
) -> tuple[tuple[str, ...], np.ndarray, list[int | None]]:
    """Return the class names, and the position among them of each image that can be used, and not.

    A class without an image that can be used is still a class. Names that are equal in the Unicode
    form NFC are one class, because systems write accents in different forms.

    Raises:
        DataError: A label has no class name, or a class name is not one line of text.
    """
    if source.classes is not None:
        unknown = set(record.label_values) - set(range(len(source.classes)))
        if unknown:
            raise DataError(
                f"{source.name} has label {min(unknown, key=str)}, but only {len(source.classes)} "
                "class names.",
                remedy="Correct the labels or the names.",
            )
        name_of: dict[int | str, str] = dict(enumerate(source.classes))
    else:
        name_of = {value: str(value) for value in record.label_values}
    name_of = {value: unicodedata.normalize("NFC", name) for value, name in name_of.items()}
    if any(isinstance(value, str) for value in name_of):
        classes = tuple(sorted(set(name_of.values())))
    else:
        classes = tuple(dict.fromkeys(name_of.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    position = {value: label_of[name] for value, name in name_of.items()}
    labels = np.array([position[label] for label in record.labels], np.int64)
    bad_labels = [None if label is None else position[label] for label in record.bad_labels]
    for name in classes:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise DataError(
                f"{source.name} has the class name {name!a}, which has control characters or "
                "is not valid UTF-8.",
                remedy="Rename the class.",
            )
    return classes, labels, bad_labels


def bad_images_error(source: str, record: ImageRecord, by_class: Mapping[str, int]) -> DataError:
    """Return the error for images of a source that cannot be used, given their number by class."""
    bad = record.bad
    remedy = f'{remedy_for(bad)} Replace them, move them away, or set on_bad_image = "skip".'
    return DataError(
        f"{len(bad)} of {len(bad) + len(record.labels)} images of {source} cannot be used: "
        f"{count_text(by_class)}. {'They are' if len(bad) <= 3 else 'The first three are'} "
        f"{'; '.join(bad[:3])}.",
        remedy=remedy.lstrip(),
    )


def warn_about_similar_names(source: str, classes: tuple[str, ...]) -> None:
    """Warn of class names that differ only in case or in blanks."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike["".join(name.split()).casefold()].append(name)
    groups = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if groups:
        warnings.warn(
            f"Class names in {source} differ only in case or blanks: "
            f"{printable_line('; '.join(groups))}. They are different classes; rename them if they "
            "are meant to be one.",
            stacklevel=3,
        )


def count_by_class(classes: tuple[str, ...], labels: Iterable[int | None]) -> dict[str, int]:
    """Return the number of labels of each class that has any, and of those that are missing."""
    counts = Counter(labels)
    missing = {_NO_LABEL: counts[None]} if counts[None] else {}
    return {name: counts[i] for i, name in enumerate(classes) if counts[i]} | missing
