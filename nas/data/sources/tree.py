"""The files of a data folder, without those that are no part of the data."""

from __future__ import annotations

import os
from pathlib import Path

from nas.data.image_formats import KNOWN_EXTENSIONS
from nas.data.sources.base import printable_line
from nas.errors import DataError
from nas.files.foreign import without_mark

_JUNK_FOLDERS = frozenset(
    (
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "__macosx",
        "__pycache__",
        "lost+found",
        "system volume information",
    )
)
"""Folders that operating systems, file servers and archivers make, in lower case."""

_JUNK_FILES = frozenset(
    ("desktop.ini", "ehthumbs.db", "icon\r", "picasa.ini", "thumbs.db", "zbthumbnail.info")
)
"""Files that they make, in lower case."""

_OWN_FOLDERS = (
    {"job.toml", "run.json"},
    {"job.toml", ".lock"},
    {"card.json", "preprocessing.json"},
)
"""Files that a run folder, the folder of a run that has just begun, and a model folder hold."""

_TABLE_START = b'{"schema":'
_TABLE_MARK = b'"record": "header"'
"""How the first line of a latency table begins, and what is in it."""


def list_tree(root: Path) -> tuple[list[Path], list[Path]]:
    """Return all folders and all files below a folder, each sorted.

    Links to folders are followed. A broken link counts as a file. Left out are hidden entries, what
    operating systems and file servers leave in folders (`__MACOSX`, `@eaDir`, `Thumbs.db`), and
    what this project writes: run folders, model folders, latency tables, and folders that hold
    these and no images.

    Raises:
        DataError: A folder cannot be listed, or links make a loop.
    """
    folders: list[Path] = []
    files: list[Path] = []
    own: set[Path] = set()
    pending: list[tuple[Path, set[tuple[int, int]]]] = [(root, set())]
    while pending:
        folder, above = pending.pop()
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                all_entries = list(entries)
        except OSError as error:
            raise DataError(
                f"The folder {printable_line(folder)} cannot be listed ({error.strerror}).",
                remedy="Make it readable, or move it out of the data.",
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            raise DataError(
                f"{printable_line(folder)} is a link to a folder that it is in: the links make a "
                "loop.",
                remedy="Remove the link.",
            )
        if folder != root and _is_own(folder, {entry.name for entry in all_entries}):
            own.add(folder)
            continue
        for entry in all_entries:
            name = entry.name.lower()
            if name.startswith("."):
                continue
            if _is_folder(entry):
                if name not in _JUNK_FOLDERS:
                    folders.append(folder / entry.name)
                    pending.append((folder / entry.name, {*above, identity}))
            elif name not in _JUNK_FILES:
                files.append(folder / entry.name)
    own |= _holders_of(own, files)
    return (
        sorted(folder for folder in folders if not _is_in(folder, own)),
        sorted(file for file in files if not _is_in(file, own)),
    )


def is_image_file(file: Path) -> bool:
    """Return whether a file is an image by its name, whether or not it can be decoded here."""
    return file.suffix.lower() in KNOWN_EXTENSIONS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself, or into a folder that this user may not read.
        return False


def _is_own(folder: Path, names: set[str]) -> bool:
    """Return whether a folder is a run folder, a model folder, or one of latency tables."""
    if any(marks <= names for marks in _OWN_FOLDERS):
        return True
    tables = [name for name in names if name.endswith(".jsonl")]
    return bool(tables) and _is_table(folder / min(tables))


def _is_table(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = without_mark(file.readline(1000))
    except OSError:
        return False
    return start.startswith(_TABLE_START) and _TABLE_MARK in start


def _holders_of(own: set[Path], files: list[Path]) -> set[Path]:
    """Return the folders that hold some of the project's own folders and no data."""
    holders = {parent for folder in own for parent in folder.parents}
    for file in files if holders else ():
        if is_image_file(file) or file.suffix.lower() == ".parquet":
            holders -= set(file.parents)
    return holders


def _is_in(path: Path, folders: set[Path]) -> bool:
    return bool(folders) and (path in folders or not folders.isdisjoint(path.parents))
