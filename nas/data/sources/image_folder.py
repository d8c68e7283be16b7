"""Image folders: one sub-folder for each class, directly or below a folder for each split."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from nas.data.sources.base import (
    EXPECTED_LAYOUTS,
    IMAGE_EXTENSIONS,
    SPLIT_NAMES,
    Sample,
    Source,
    Split,
    printable_line,
)
from nas.errors import DataError


def open_image_folder(root: Path, folders: list[Path], files: list[Path]) -> Source:
    """Return the source of an image folder.

    Args:
        root: The image folder.
        folders: All folders below it; see `list_tree`.
        files: All files below it; see `list_tree`.

    Raises:
        DataError: There are no class folders, a class folder has no image, or a broken link stands
            where a class folder may stand.
    """
    class_folders = _find_class_folders(root, folders)
    depth = len(root.parts)
    class_depth = max((len(folder.parts) for folder in class_folders), default=depth + 1)
    classes = tuple(sorted({folder.name for folder in class_folders}))
    label_of = {name: label for label, name in enumerate(classes)}
    split_of = {folder.parts: split for folder, split in class_folders.items()}
    samples: list[Sample] = []
    ignored: list[Path] = []
    for file in files:
        has_extension = file.suffix.lower() in IMAGE_EXTENSIONS
        is_image = has_extension or (file.is_symlink() and not os.path.exists(file))
        if not has_extension and is_image and len(file.parts) <= class_depth:
            raise DataError(
                f"{printable_line(file)} is a broken link where a class or split may stand.",
                remedy="Correct or remove the link.",
            )
        split = split_of.get(file.parts[:class_depth])
        if split is None or not is_image:
            ignored.append(file)
        else:
            label = label_of[file.parts[class_depth - 1]]
            samples.append(Sample(split, printable_line(file), file, label))
    if not class_folders:
        images = sum(file.suffix.lower() in IMAGE_EXTENSIONS for file in files)
        content = f"{images} images but no sub-folder for each class" if images else "no images"
        raise DataError(f"{printable_line(root)} has {content}.", remedy=EXPECTED_LAYOUTS)
    used_labels = {sample.label for sample in samples}
    for folder in class_folders:
        if label_of[folder.name] not in used_labels:
            raise DataError(
                f"The class folder {printable_line(folder)} has no image.",
                remedy=f"Add files that end in {', '.join(IMAGE_EXTENSIONS)}, or remove the "
                "folder.",
            )
    _warn_about_ignored(root, ignored)
    image_files = tuple(sample.image for sample in samples if isinstance(sample.image, Path))
    return Source(
        printable_line(root), samples, len(samples), classes, root=root, files=image_files
    )


def list_tree(root: Path) -> tuple[list[Path], list[Path]]:
    """Return all folders and all files below a folder, each sorted, without hidden ones.

    Links to folders are followed. A broken link counts as a file.

    Raises:
        DataError: A folder cannot be listed, or links make a loop.
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
                f"The folder {printable_line(folder)} cannot be listed ({error.strerror}).",
                remedy="Make it readable, or move it out of the data.",
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in listed:
            raise DataError(
                f"{printable_line(folder)} is a link to a folder that was listed before: the links "
                "make a loop or repeat images.",
                remedy="Remove the link.",
            )
        # Two splits or classes may link to the same folder, but a class must not repeat a folder.
        # So folders below a class share one set of listed folders, and those above do not.
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
    except OSError:  # A link to itself, or into a folder that this user may not read.
        return False


def _find_class_folders(root: Path, folders: list[Path]) -> dict[Path, Split]:
    """Return the class folders with the split of each.

    The folders in `root` are splits if one called train has sub-folders. Otherwise they are
    classes, so that a class may be called train or test.

    Raises:
        DataError: All folders are called like splits, but none called train has sub-folders.
    """
    depth = len(root.parts)
    top = [folder for folder in folders if len(folder.parts) == depth + 1]
    second = [folder for folder in folders if len(folder.parts) == depth + 2]
    split_of = {folder: SPLIT_NAMES.get(folder.name.lower()) for folder in top}
    if any(split_of[folder.parent] == "train" for folder in second):
        return {folder: split for folder in second if (split := split_of[folder.parent])}
    if top and all(split_of.values()):
        names = ", ".join(folder.name for folder in top)
        raise DataError(
            f"{printable_line(root)} has the split folders {names} only, and no folder train with "
            "a sub-folder for each class.",
            remedy=EXPECTED_LAYOUTS,
        )
    return dict.fromkeys(top, "train")


def _warn_about_ignored(root: Path, files: list[Path]) -> None:
    if files:
        examples = ", ".join(printable_line(file.relative_to(root)) for file in files[:3])
        warnings.warn(
            f"{len(files)} files in {printable_line(root)} are ignored, because they are in no "
            f"class folder or their extension is not that of an image: {examples}"
            f"{', ...' if len(files) > 3 else '.'}",
            stacklevel=2,
        )
