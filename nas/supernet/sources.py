"""Where images come from: each source turns a name or a path into `Sample`s.

A new source is a function that returns a `Source`, and a line in `open_source`. Nothing here uses
the network.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nas.documents import shortened_text
from nas.errors import DataError, printable

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

_SPLITS: dict[str, Split] = {
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


def open_source(source: str | Path) -> Source:
    """Open the source called "digits", or the one at a path.

    Raises DataError if there is nothing, or nothing in a known layout, or a part is unreadable.
    """
    if source == "digits":
        return _digits()
    try:
        if not str(source):
            raise ValueError("the path is empty")
        path = Path(source).expanduser()
        mode = path.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise DataError(
            f"There is no data at {shown(source)} ({reason}).",
            remedy='Give the path of a folder or file, or "digits".',
        ) from error
    if stat.S_ISDIR(mode):
        folders, files = _list_tree(path)
        parquet_files = [file for file in files if file.suffix.lower() == ".parquet"]
        if not parquet_files:
            return _image_folder(path, folders, files)
    elif stat.S_ISREG(mode) and path.suffix.lower() == ".parquet":
        parquet_files = [path]
    else:
        raise DataError(f"{shown(path)} is no data set.", remedy=LAYOUTS)
    from nas.supernet.parquet import open_parquet  # Imports pyarrow, which few sources need.

    return open_parquet(path, parquet_files)


def shown(path: str | Path) -> str:
    """Return a path as a short line of printable text, for a message or a record."""
    return shortened_text(printable(str(path)).replace("\n", "\\n"), _LONGEST_PATH_SHOWN)


def split_named_in(path: Path) -> Split | None:
    """Return the split that a path names; the file's own name counts before its folders'."""
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _digits() -> Source:
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Sixteen levels of grey, spread over a byte.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    samples = (
        Sample("train", f"digit {index}", image, int(label))
        for index, (image, label) in enumerate(zip(pixels, bunch.target, strict=True))
    )
    classes = tuple("0123456789")
    return Source("digits", samples, len(pixels), classes, natural=False, image_size=8)


def _list_tree(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders below a folder and everything else below it, sorted, without hidden ones.

    Links to folders are followed. A link that leads nowhere counts as a file.

    Raises DataError for a folder that cannot be listed, and for links that make a loop.
    """
    folders: list[Path] = []
    files: list[Path] = []
    pending: list[tuple[Path, set[tuple[int, int]]]] = [(root, set())]
    while pending:
        folder, listed = pending.pop()
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise DataError(
                f"The folder {shown(folder)} cannot be listed ({error.strerror}).",
                remedy="Make it readable, or move it out of the data.",
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in listed:
            raise DataError(
                f"{shown(folder)} is a link to a folder that was listed before: the links make a "
                "loop or repeat images.",
                remedy="Remove the link.",
            )
        # Two splits or two classes may link to the same folder. Below a class it may come once.
        if len(folder.parts) - len(root.parts) <= 2:
            listed = {*listed, identity}
        else:
            listed.add(identity)
        for entry in visible:
            if _is_folder(entry):
                folders.append(folder / entry.name)
                pending.append((folder / entry.name, listed))
            else:
                files.append(folder / entry.name)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself, or to where this user may not look.
        return False


def _image_folder(root: Path, folders: list[Path], files: list[Path]) -> Source:
    """Return the source of a folder with a sub-folder for each class, or splits with such folders.

    Raises DataError if there are no class folders, one has no image, or a link that may stand for
    a class leads nowhere.
    """
    class_folders = _class_folders(root, folders)
    depth = len(root.parts)
    class_depth = max((len(folder.parts) for folder in class_folders), default=depth + 1)
    classes = tuple(sorted({folder.name for folder in class_folders}))
    label_of = {name: label for label, name in enumerate(classes)}
    by_parts = {folder.parts: split for folder, split in class_folders.items()}
    samples: list[Sample] = []
    left_out: list[Path] = []
    for file in files:
        has_extension = file.suffix.lower() in IMAGE_EXTENSIONS
        is_image = has_extension or (file.is_symlink() and not os.path.exists(file))
        if not has_extension and is_image and len(file.parts) <= class_depth:
            raise DataError(
                f"{shown(file)} is a link that leads nowhere, in the place of a class or split.",
                remedy="Correct or remove the link.",
            )
        split = by_parts.get(file.parts[:class_depth])
        if split is None or not is_image:
            left_out.append(file)
        else:
            label = label_of[file.parts[class_depth - 1]]
            samples.append(Sample(split, shown(file), file, label))
    if not class_folders:
        images = sum(file.suffix.lower() in IMAGE_EXTENSIONS for file in files)
        has = f"{images} images but no sub-folder for each class" if images else "no images"
        raise DataError(f"{shown(root)} has {has}.", remedy=LAYOUTS)
    used = {sample.label for sample in samples}
    for folder in class_folders:
        if label_of[folder.name] not in used:
            raise DataError(
                f"The class folder {shown(folder)} has no image.",
                remedy=f"Add files that end in {', '.join(IMAGE_EXTENSIONS)}, or remove the "
                "folder.",
            )
    _warn_of_left_out(root, left_out)
    image_files = tuple(sample.image for sample in samples if isinstance(sample.image, Path))
    return Source(shown(root), samples, len(samples), classes, root=root, files=image_files)


def _class_folders(root: Path, folders: list[Path]) -> dict[Path, Split]:
    """Return the class folders with the split of each.

    There are splits where a folder called train has folders of its own; a class may be called
    train or test too.
    """
    depth = len(root.parts)
    top = [folder for folder in folders if len(folder.parts) == depth + 1]
    below = [folder for folder in folders if len(folder.parts) == depth + 2]
    split_of = {folder: _SPLITS.get(folder.name.lower()) for folder in top}
    if any(split_of[folder.parent] == "train" for folder in below):
        return {folder: split for folder in below if (split := split_of[folder.parent])}
    if top and all(split_of.values()):
        names = ", ".join(folder.name for folder in top)
        raise DataError(
            f"{shown(root)} has the split folders {names} only, and no folder train with a "
            "sub-folder for each class.",
            remedy=LAYOUTS,
        )
    return dict.fromkeys(top, "train")


def _warn_of_left_out(root: Path, files: list[Path]) -> None:
    if files:
        first = ", ".join(shown(file.relative_to(root)) for file in files[:3])
        warnings.warn(
            f"{len(files)} files in {shown(root)} are left out, because they are in no class "
            f"folder or their extension is not that of an image: {first}"
            f"{', ...' if len(files) > 3 else '.'}",
            stacklevel=2,
        )
