"""Folders of images."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from nas.data.sources.base import (
    IMAGE_EXTENSIONS,
    LAYOUTS,
    SPLIT_NAMES,
    Sample,
    Source,
    Split,
    shown,
)
from nas.errors import DataError


def list_tree(root: Path) -> tuple[list[Path], list[Path]]:
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


def open_image_folder(root: Path, folders: list[Path], files: list[Path]) -> Source:
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
    split_of = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in top}
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
