"""Dataset sources: each module opens one kind of dataset as a `Source` of `Sample`s.

To add a dataset source:

1. Write a module here with a function that returns a `Source`. `nas.data.sources.digits` is the
   shortest example; `nas.data.sources.image_folder` and `nas.data.sources.parquet` read files.
2. Call the function in `open_source`, which chooses the source for a name or path.
3. Test the module in `tests/data/sources`.

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
    printable_line,
)
from nas.data.sources.digits import open_digits
from nas.data.sources.image_folder import open_image_folder
from nas.data.sources.tree import list_tree
from nas.errors import DataError

__all__ = [
    "ClassFolders",
    "Sample",
    "Source",
    "Split",
    "open_source",
    "printable_line",
]


def open_source(source: str | Path, class_folders: ClassFolders = "auto") -> Source:
    """Open a dataset: "digits", or the parquet file, parquet folder or image folder at a path.

    Args:
        source: "digits" or a path.
        class_folders: Which folders of an image folder are the classes, see `open_image_folder`.

    Raises:
        DataError: There is nothing at the path, nothing in a known layout, or a part cannot be
            read.
    """
    if source == "digits":
        return open_digits()
    try:
        if not str(source):
            raise ValueError("the path is empty")
        path = Path(source).expanduser()
        mode = path.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise DataError(
            f"There is no data at {printable_line(source)} ({reason}).",
            remedy='Give the path of a folder or file, or "digits".',
        ) from error
    if stat.S_ISDIR(mode):
        folders, files = list_tree(path)
        parquet_files = [file for file in files if file.suffix.lower() == ".parquet"]
        if not parquet_files:
            return open_image_folder(path, folders, files, class_folders)
    elif stat.S_ISREG(mode) and path.suffix.lower() == ".parquet":
        parquet_files = [path]
    else:
        raise DataError(f"{printable_line(path)} is not a dataset.", remedy=EXPECTED_LAYOUTS)
    from nas.data.sources.parquet import open_parquet  # Imports pyarrow, which few sources need.

    return open_parquet(path, parquet_files)
