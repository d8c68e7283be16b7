"""Where images come from: each source turns a name or a path into `Sample`s.

A new source is a function that returns a `Source`, and a line in `open_source`. Nothing here uses
the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nas.documents import shortened_text
from nas.errors import printable

LAYOUTS = (
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
"""Pillow's names of the formats that are decoded, and the extensions of their files.

The list is short on purpose: Pillow knows formats that start a program, EPS for example.
"""

IMAGE_EXTENSIONS = tuple(extension for group in IMAGE_FORMATS.values() for extension in group)

Split = Literal["train", "validation", "test"]

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

_LONGEST_PATH_SHOWN = 303
"""Characters of a path in a message."""


class Sample(NamedTuple):
    """One image as stored. `image` is a file, an encoded image, or pixels; None where missing."""

    split: Split
    place: str
    image: Path | bytes | np.ndarray | None
    label: int | str | None


@dataclass(frozen=True)
class Source:
    """Samples in a fixed order.

    Attributes:
        name: what a person calls it.
        samples: read once.
        count: of the samples.
        classes: names by label where the source has them.
        natural: whether a mirrored image is still of its class.
        image_size: pixels a side that suit the source.
        root: the file or folder that was opened; None for a source that is part of a package.
        files: every file that is known before the samples are read; a parquet row may name more.
    """

    name: str
    samples: Iterable[Sample]
    count: int
    classes: tuple[str, ...] | None
    natural: bool = True
    image_size: int = 32
    root: Path | None = None
    files: tuple[Path, ...] = ()


def shown(path: str | Path) -> str:
    """Return a path as a short line of printable text, for a message or a record."""
    return shortened_text(printable(str(path)).replace("\n", "\\n"), _LONGEST_PATH_SHOWN)


def split_named_in(path: Path) -> Split | None:
    """Return the split that a path names; the file's own name counts before its folders'."""
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None
