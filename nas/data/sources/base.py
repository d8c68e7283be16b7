"""What every dataset source returns: a `Source` of `Sample`s; and what sources share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nas.errors import printable, shortened_text

EXPECTED_LAYOUTS = (
    "Expected parquet files with the columns image and label, or a folder with a sub-folder for "
    "each class (train and test folders may be on top)."
)

Split = Literal["train", "validation", "test"]
"""The splits that a source may have."""

ClassFolders = Literal["auto", "top", "lowest"]
"""Which folders of an image folder are the classes, see `nas.data.sources.image_folder`."""

_SPLIT_WORDS: dict[Split, str] = {
    "train": "train|training",
    "validation": "val|valid|validate|validating|validation|dev|development",
    "test": "test|testing|eval|evaluation",
}
"""Words that name a split in the name of a file or folder."""

_SPLIT_PATTERNS = {
    split: re.compile(f"(?:{pattern})(?:sets?|data|dataset|images|imgs|photos|split)?")
    for split, pattern in _SPLIT_WORDS.items()
}

_MAX_LINE_CHARACTERS = 303
"""Characters of a path or reason in a message: enough for usual paths, short enough to read."""


class Sample(NamedTuple):
    """One image of a source, not yet decoded.

    Attributes:
        split: Split of the image.
        location: Where the image is, for messages and records: a path, or a file and a row, below
            the source's root, so that it says nothing about this machine; see `place_in`.
        image: Path of an image file, content of one, or pixels `height x width [x 3]` (uint8);
            None if the image is missing.
        label: Label as stored; None or -1 if the label is missing.
        group: What the image shows, such as one object or patient; images of one group are on one
            side of every split. None if it is in no group.
    """

    split: Split
    location: str
    image: Path | bytes | np.ndarray | None
    label: int | str | None
    group: str | None = None


@dataclass(frozen=True)
class Source:
    """An opened dataset: samples in a fixed order, and what is known about them.

    Attributes:
        name: Name for messages and reports.
        samples: Samples; they can be iterated once.
        count: Number of samples.
        classes: Class names by label; None if the source has labels only.
        flip_preserves_class: Whether a mirrored image still belongs to its class; None if that is
            not known, as of images of a user.
        image_size: Default side of the decoded images, in pixels.
        root: File or folder that was opened; None for a source that is part of a package.
        files: Files that are known before the samples are read. Their state decides whether cached
            images are up to date. Rows of a parquet file may name more files.
        labelling: Digest of the splits and labels that follow from the names of files and folders.
            Cached images belong to one labelling.
        layout: How splits and classes were recognised, for the line that says what was understood;
            empty if there is nothing to say.
    """

    name: str
    samples: Iterable[Sample]
    count: int
    classes: tuple[str, ...] | None
    flip_preserves_class: bool | None = None
    image_size: int = 32
    root: Path | None = None
    files: tuple[Path, ...] = ()
    labelling: str = ""
    layout: str = ""


def printable_line(text: str | Path) -> str:
    """Return a path or another text as one short line of printable characters."""
    return shortened_text(printable(str(text)).replace("\n", "\\n"), _MAX_LINE_CHARACTERS)


def place_in(root: Path, file: Path) -> str:
    """Return where a file of a source is, below the root of the source."""
    is_inside = file != root and file.is_relative_to(root)
    return printable_line(file.relative_to(root) if is_inside else file.name)


def split_of_name(name: str) -> Split | None:
    """Return the split that the name of a file or folder names, such as `training_set`; or None.

    The result is None as well for a name with the words of several splits, such as `train_test`.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name))
    parts = re.findall(r"[^\W\d_]+", spaced.lower())
    splits = {
        split
        for split, pattern in _SPLIT_PATTERNS.items()
        if any(pattern.fullmatch(part) for part in parts)
    }
    return splits.pop() if len(splits) == 1 else None


def split_from_path(path: Path) -> Split | None:
    """Return the split that a path names, or None.

    The name of the file comes before the names of its folders.
    """
    names = (path.stem, *reversed(path.parent.parts))
    return next((split for split in map(split_of_name, names) if split), None)
