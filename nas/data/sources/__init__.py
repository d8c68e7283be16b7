"""Dataset sources: each module opens one kind of dataset as a `Source` of `Sample`s.

To add a dataset source:

1. Write a function that returns a `Source`. `nas.data.sources.digits` is the shortest example;
   `nas.data.sources.image_folder` and `nas.data.sources.parquet` read files.
2. Give the `Source` to `nas.load_dataset`, or name the function in the entry point group
   `nas.sources` of your package: `[data] source = "NAME"` calls it without an argument, and
   `source = "NAME:REST"` with the text behind the colon.

Decoding, caching, splitting and training work for every source. No source uses the network.
"""

from __future__ import annotations

import stat
from pathlib import Path

from nas.data.sources.base import (
    EXPECTED_LAYOUTS,
    ClassFolders,
    Sample,
    Source,
    Split,
    place_in,
    printable_line,
)
from nas.data.sources.image_folder import open_image_folder
from nas.data.sources.tree import list_tree
from nas.errors import DataError
from nas.files.paths import expanded, in_folder
from nas.plugins import PlugInPoint

__all__ = [
    "ClassFolders",
    "Sample",
    "Source",
    "Split",
    "open_source",
    "place_in",
    "printable_line",
]


SOURCES = PlugInPoint("nas.sources", "source", callable, "function that returns a Source")


def open_source(
    source: str | Path | Source, class_folders: ClassFolders = "auto", group: str = ""
) -> Source:
    """Open a dataset: by its name, or the parquet file, parquet folder or image folder at a path.

    Args:
        source: "digits" or the name of another plug-in, which may be followed by a colon and what
            the plug-in expects; a path; or an opened source.
        class_folders: Which folders of an image folder are the classes, see `open_image_folder`.
        group: What tells the groups of the images: a regular expression with one group, which is
            searched in the path of an image file, or the name of a column of parquet files. Empty
            for no groups.

    Raises:
        DataError: `group` tells no groups. There is nothing at the path, nothing in a known layout,
            or a part cannot be read.
    """
    if isinstance(source, Source):
        return source
    name, colon, rest = str(source).partition(":")
    if name in SOURCES.names:
        opened: Source = SOURCES.load(name)(*([rest] if colon else []))
        return opened
    try:
        if not str(source):
            raise ValueError("the path is empty")
        path = Path(expanded(source))
        mode = path.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise DataError(
            f"There is no data at {printable_line(source)}{in_folder(source)} ({reason}).",
            remedy='Give the path of a folder or file, or "digits".',
        ) from error
    if stat.S_ISDIR(mode):
        folders, files = list_tree(path)
        parquet_files = [file for file in files if file.suffix.lower() == ".parquet"]
        if not parquet_files:
            return open_image_folder(path, folders, files, class_folders, group)
    elif stat.S_ISREG(mode) and path.suffix.lower() == ".parquet":
        parquet_files = [path]
    else:
        raise DataError(f"{printable_line(path)} is not a dataset.", remedy=EXPECTED_LAYOUTS)
    from nas.data.sources.parquet import open_parquet  # Imports pyarrow, which few sources need.

    return open_parquet(path, parquet_files, group)
