"""Where images come from: each source turns a place into `Sample`s.

A new source is a function that returns a `Source`, and a line in `open_source`. Nothing here uses
the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nas.errors import DataError

LAYOUTS = (
    "Expected a folder or file of parquet (columns image, label), or a folder with a sub-folder a "
    "class (train/ and test/ on top are understood)."
)

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


class Sample(NamedTuple):
    """One image as stored. `image` is a file, an encoded image, or pixels; None where missing."""

    split: str
    place: str
    image: Path | bytes | np.ndarray | None
    label: int | str | None


@dataclass(frozen=True)
class Source:
    """Samples in a fixed order.

    Attributes:
        name: what a person calls it.
        samples: read once.
        count: of them.
        classes: names by label where the source has them.
        natural: whether a mirrored image is still of its class.
        image_size: pixels a side that suit the source.
        files: in which they are; none for a source that is part of a package.
    """

    name: str
    samples: Iterable[Sample]
    count: int
    classes: tuple[str, ...] | None
    natural: bool = True
    image_size: int = 32
    files: tuple[Path, ...] = ()


def open_source(source: str | Path) -> Source:
    """The source called "digits", or at a path.

    Raises DataError where there is nothing, or nothing that is understood.
    """
    if source == "digits":
        return _digits()
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"There is no data at {path}.", remedy='Give the path of a folder or file, or "digits".'
        )
    if path.suffix == ".parquet" or (path.is_dir() and _visible(path, ".parquet")):
        return _parquet(path)
    if path.is_dir():
        return _image_folder(path)
    raise DataError(f"{path} is no data set.", remedy=LAYOUTS)


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


def _parquet(path: Path) -> Source:
    """Parquet in the Hugging Face layout; names of files and folders tell the splits."""
    from datasets import ClassLabel, IterableDataset

    files = [path] if path.is_file() else _visible(path, ".parquet")
    splits = [
        _split_of(file.relative_to(path) if file != path else Path(file.name)) for file in files
    ]
    if any(splits):
        unnamed = [file for file, split in zip(files, splits, strict=True) if split is None]
        if unnamed:
            raise DataError(
                f"{unnamed[0]} has no split in its name, but other files have.",
                remedy="Put train, validation or test into the name, or move the file away.",
            )
    tables = []
    for file, split in zip(files, splits, strict=True):
        try:
            table = IterableDataset.from_parquet(str(file))
            columns = set(table.features)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise DataError(
                f"{file} is no readable parquet: {error}", remedy="Replace or remove the file."
            ) from error
        missing = {"image", "label"} - columns
        if missing:
            raise DataError(
                f"{file} has no column {' and no column '.join(sorted(missing))}; "
                f"it has {', '.join(sorted(columns))}.",
                remedy="Rename the columns with the images and the classes to image and label.",
            )
        tables.append((file, split or "train", table.select_columns(["image", "label"])))
    label = tables[0][2].features["label"]
    classes = tuple(label.names) if isinstance(label, ClassLabel) else None
    rows = sum(_rows(file) for file in files)
    return Source(str(path), _parquet_samples(tables), rows, classes, files=tuple(files))


def _rows(file: Path) -> int:
    """Of a parquet file."""
    from pyarrow import parquet

    count: int = parquet.read_metadata(file).num_rows
    return count


def _parquet_samples(tables: list[tuple[Path, str, Any]]) -> Iterator[Sample]:
    from datasets import Image as ImageFeature

    for file, split, table in tables:
        if isinstance(table.features["image"], ImageFeature):
            # Undecoded, so that a broken image is a row that can be named.
            table = table.cast_column("image", ImageFeature(decode=False))
        try:
            for row, record in enumerate(table):
                image, label = record["image"], record["label"]
                content = image.get("bytes") if isinstance(image, dict) else image
                if content is None and isinstance(image, dict) and image.get("path"):
                    content = file.parent / image["path"]
                yield Sample(split, f"{file}, row {row}", content, label)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} breaks off: {error}", remedy="Replace or remove the file."
            ) from error


def _image_folder(path: Path) -> Source:
    """A sub-folder a class, with split folders on top where one of them is train."""
    folders = _folders(path)
    splits = {folder: _SPLITS.get(folder.name.lower()) for folder in folders}
    if "train" in splits.values():
        roots = [(split, folder) for folder, split in splits.items() if split]
    else:
        roots = [("train", path)]
    extensions = tuple(Image.registered_extensions())
    samples = [
        Sample(split, str(file), file, folder.name)
        for split, root in roots
        for folder in _folders(root)
        for file in _visible(folder, *extensions)
    ]
    if not samples:
        loose = len(_visible(path, *extensions))
        found = f"{loose} images but no sub-folder a class" if loose else "no images"
        raise DataError(f"{path} has {found}.", remedy=LAYOUTS)
    files = tuple(sample.image for sample in samples if isinstance(sample.image, Path))
    return Source(str(path), samples, len(samples), None, files=files)


def _split_of(path: Path) -> str | None:
    """The split that a file's path tells; its own name counts before its folders'."""
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _visible(path: Path, *extensions: str) -> list[Path]:
    """The files below `path` with one of the extensions, sorted, without hidden ones."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in extensions
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
