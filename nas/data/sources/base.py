"""What every dataset source returns: a `Source` of `Sample`s; and what sources share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nas.documents import shortened_text
from nas.errors import printable

EXPECTED_LAYOUTS = (
    "Expected parquet files with the columns image and label, or a folder with a sub-folder for "
    "each class (train and test folders may be on top)."
)

IMAGE_FORMATS = {
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Formats that are decoded, by Pillow's names, with the extensions of their files.

All other formats are refused, because Pillow starts a program to read some of them, such as EPS.
"""

IMAGE_EXTENSIONS = tuple(extension for group in IMAGE_FORMATS.values() for extension in group)

Split = Literal["train", "validation", "test"]
"""The splits that a source may have."""

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Words that name a split in the name of a file or folder."""

_MAX_LINE_CHARACTERS = 303
"""Characters of a path or reason in a message: enough for usual paths, short enough to read."""


class Sample(NamedTuple):
    """One image of a source, not yet decoded.

    Attributes:
        split: Split of the image.
        location: Where the image is, for messages: a path, or a file and a row.
        image: Path of an image file, content of one, or pixels `height x width [x 3]` (uint8);
            None if the image is missing.
        label: Label as stored; None or -1 if the label is missing.
    """

    split: Split
    location: str
    image: Path | bytes | np.ndarray | None
    label: int | str | None


@dataclass(frozen=True)
class Source:
    """An opened dataset: samples in a fixed order, and what is known about them.

    Attributes:
        name: Name for messages and reports.
        samples: Samples; they can be iterated once.
        count: Number of samples.
        classes: Class names by label; None if the source has labels only.
        flip_preserves_class: Whether a mirrored image still belongs to its class.
        image_size: Default side of the decoded images, in pixels.
        root: File or folder that was opened; None for a source that is part of a package.
        files: Files that are known before the samples are read. Their state decides whether cached
            images are up to date. Rows of a parquet file may name more files.
    """

    name: str
    samples: Iterable[Sample]
    count: int
    classes: tuple[str, ...] | None
    flip_preserves_class: bool = True
    image_size: int = 32
    root: Path | None = None
    files: tuple[Path, ...] = ()


def printable_line(text: str | Path) -> str:
    """Return a path or another text as one short line of printable characters."""
    return shortened_text(printable(str(text)).replace("\n", "\\n"), _MAX_LINE_CHARACTERS)


def split_from_path(path: Path) -> Split | None:
    """Return the split that a path names, or None.

    The name of the file comes before the names of its folders.
    """
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None
