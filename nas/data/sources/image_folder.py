"""Image folders: one sub-folder for each class, directly or below a folder for each split."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from nas.data.image_formats import IMAGE_EXTENSIONS
from nas.data.sources.base import (
    EXPECTED_LAYOUTS,
    ClassFolders,
    Sample,
    Source,
    Split,
    place_in,
    printable_line,
    split_of_name,
)
from nas.data.sources.tree import is_image_file
from nas.errors import DataError

_Folders = tuple[str, ...]
"""Names of the folders from one folder down to another, in the Unicode form NFC."""

_NOT_A_CLASS = re.compile(
    r"(19|20)\d\d([-_. ]?[01]?\d([-_. ]?[0-3]?\d(\D.*)?)?)?"  # 2024, 2024-05, 2024-05-01 garden
    r"|[0-3]?\d[-_.][01]?\d[-_.](19|20)\d\d"  # 01.05.2024
    r"|dcim|\d{3}(?=.*[a-z_])[a-z0-9_]{5}"  # The folders of cameras: 100canon, 100_0501
    r"|images?|imgs?|photos?|pictures?|data|files|jpe?gs?|pngs?"
)
"""Names, in lower case, of folders that sort the images of one class."""

_MAX_NAMES_IN_MESSAGE = 5


def open_image_folder(
    root: Path,
    folders: list[Path],
    files: list[Path],
    class_folders: ClassFolders = "auto",
    group: str = "",
    classes: Collection[str] = (),
) -> Source:
    """Return the source of an image folder.

    The folders on top are splits if their names and their sub-folders say so, see `_find_splits`.
    Below them, or on top, are the classes. Folders whose names are equal in the Unicode form NFC
    are one class: macOS writes accents in another form than other systems.

    Args:
        root: The image folder. A single folder in it that holds no image of its own stands for it.
        folders: All folders below it; see `list_tree`.
        files: All files below it; see `list_tree`.
        class_folders: Which folders are the classes: "top" for those directly below the root or the
            splits, whatever is in them; "lowest" for those that hold the images, except folders
            named like dates; "auto" for the top ones if they hold most of their images themselves,
            or in folders named like dates. Otherwise "auto" raises an error, because the top
            folders may be topics.
        group: Regular expression with one group, which is searched in the path of each image below
            the root; the group is what it shows. Empty for no groups.
        classes: The classes of a trained network, of which the folder may have some only, and
            folders without images; those of the folder by default.

    Raises:
        DataError: A folder is none of `classes`. `group` tells no groups. There are no class
            folders, a class folder has no image, a broken link stands where a class folder may
            stand, or it is not clear which folders are splits or classes.
    """
    images = [file for file in files if is_image_file(file) or _is_broken_link(file)]
    below_root = {file: _folders_between(root, file.parent) for file in images}
    images.sort(key=lambda file: (below_root[file], _normalise(file.name)))
    all_folders = [_folders_between(root, folder) for folder in folders]
    known = {_normalise(name) for name in classes}
    start: _Folders = ()
    if class_folders != "top":
        start = _single_folder(below_root.values(), all_folders, known)
    base = root.joinpath(*start)
    below = {file: below_root[file][len(start) :] for file in images}
    splits = _find_splits(base, below.values())
    first = 1 if splits else 0
    placed: dict[Path, tuple[Split, _Folders]] = {}
    left_out: list[Path] = []
    for file, names in below.items():
        if len(names) <= first and not is_image_file(file):
            raise DataError(
                f"{printable_line(file)} is a broken link where a class or split may stand.",
                remedy="Correct or remove the link.",
            )
        split = splits.get(names[0]) if splits and names else "train"
        if split is None or len(names) <= first:
            left_out.append(file)
        else:
            placed[file] = split, names[first:]
    class_of = _class_by_path({names for _, names in placed.values()}, class_folders)
    own = set(class_of.values())
    if unknown := sorted(own - known if known else ()):
        raise DataError(
            f"{printable_line(base)} has the folder {_join(unknown[:1])} with images; expected "
            f"folders named {_join(sorted(known))}.",
            remedy="Rename the folder, or move it away.",
        )
    if not known:
        _require_images(
            base,
            [names[len(start) :] for names in all_folders if names[: len(start)] == start],
            own,
            splits,
            class_folders,
        )
    if class_folders != "lowest":
        _require_clear_classes(base, [names for _, names in placed.values()], class_folders)
    if not placed:
        content = f"{len(images)} images but no sub-folder for each class"
        raise DataError(
            f"{printable_line(root)} has {content if images else 'no images'}.",
            remedy=f"Expected folders named {_join(sorted(known))}." if known else EXPECTED_LAYOUTS,
        )
    names_of_classes = tuple(sorted(own))
    label_of = {name: label for label, name in enumerate(names_of_classes)}
    groups = _groups(root, list(placed), group) if group else {}
    samples = [
        Sample(split, place_in(root, file), file, label_of[class_of[names]], groups.get(file))
        for file, (split, names) in placed.items()
    ]
    used = set(below)
    _warn_about_left_out(root, left_out, [file for file in files if file not in used])
    return Source(
        printable_line(root),
        samples,
        len(samples),
        names_of_classes,
        root=root,
        files=tuple(placed),
        labelling=hashlib.sha256(
            repr([(sample.split, sample.label, sample.group) for sample in samples]).encode()
        ).hexdigest(),
        layout=_describe_layout(start, splits, class_folders),
    )


def _groups(root: Path, files: Sequence[Path], expression: str) -> dict[Path, str]:
    """Return what the group of an expression matches in the path of each file that it matches.

    Raises:
        DataError: The expression is none, has not one group, or matches no file.
    """
    try:
        pattern = re.compile(_normalise(expression))
        if pattern.groups != 1:
            raise ValueError(f"it has {pattern.groups} groups in parentheses, not one")
    except (re.error, ValueError) as error:
        raise DataError(
            f"group is {printable_line(expression)!r}, no regular expression with one group: "
            f"{error}.",
            remedy=r'For files such as cat/tom_3.jpg: group = "([a-z]+)_\d+".',
        ) from None
    matches = {
        file: pattern.search(_normalise(file.relative_to(root).as_posix())) for file in files
    }
    # A name that is not valid UTF-8 could not be stored in the cache.
    groups = {
        file: (match[1] or "").encode(errors="backslashreplace").decode()
        for file, match in matches.items()
        if match
    }
    if not groups:
        raise DataError(
            f"The expression {printable_line(expression)!r} of group matches no path, such as "
            f"{printable_line(files[0].relative_to(root))}.",
            remedy="Correct group in [data].",
        )
    return groups


def _folders_between(root: Path, folder: Path) -> _Folders:
    return tuple(_normalise(name) for name in folder.parts[len(root.parts) :])


def _normalise(name: str) -> str:
    """Return a name as text in NFC; it is UTF-8, whatever the locale of this process expects."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode(errors="surrogateescape"))


def _is_broken_link(file: Path) -> bool:
    return file.is_symlink() and not os.path.exists(file)


def _is_no_class(name: str) -> bool:
    return _NOT_A_CLASS.fullmatch(name.lower()) is not None


def _single_folder(
    images: Collection[_Folders], folders: Collection[_Folders], classes: Collection[str]
) -> _Folders:
    """Return the path to the folder that holds everything, as an unpacked archive often has one.

    It ends above a split, above a known class, above folders that are named like dates, and where
    images are.

    Args:
        images: The folders between the root and each image.
        folders: The path of each folder below the root.
        classes: The classes that are known.
    """
    start: _Folders = ()
    while images:
        depth = len(start)
        inside = {names[depth] for names in folders if names[:depth] == start != names}
        next_names = {names[depth : depth + 2] for names in images}
        if len(inside) != 1 or any(len(n) < 2 or _is_no_class(n[1]) for n in next_names):
            break
        name = inside.pop()
        if split_of_name(name) or name in classes:
            break
        start = (*start, name)
    return start


def _find_splits(base: Path, images: Iterable[_Folders]) -> dict[str, Split]:
    """Return the folders in `base` that are splits, with the split of each; none for classes.

    A class may be called train or test, and a folder beside the splits may be one with an unknown
    name. So a folder is a split if its name says so, it has sub-folders with images, and either all
    folders beside it are called like splits, or two splits have sub-folders of the same name and no
    other folder has these.

    Args:
        base: The folder with the splits or classes.
        images: The folders between `base` and each image.

    Raises:
        DataError: It is not clear whether the folders are splits or classes, there is no split for
            training, or the splits have no sub-folders.
    """
    own_images: Counter[str] = Counter()
    children: dict[str, set[str]] = defaultdict(set)
    for names in images:
        if len(names) == 1:
            own_images[names[0]] += 1
        elif names:
            children[names[0]].add(names[1])
    top = {*own_images, *children}
    split_of = {name: split for name in sorted(top) if (split := split_of_name(name))}
    with_children = {name: split for name, split in split_of.items() if name in children}
    others = sorted(top - set(split_of))
    has_train = "train" in with_children.values()
    are_splits = len(set(split_of.values())) > 1 or not own_images
    if split_of and not others and not has_train and are_splits:
        raise DataError(
            f"{printable_line(base)} has the split folders {_join(split_of)} only, and no folder "
            "train with a sub-folder for each class.",
            remedy=EXPECTED_LAYOUTS,
        )
    if not has_train:
        return {}
    common = {
        child
        for name, split in with_children.items()
        for other, other_split in with_children.items()
        if split != other_split
        for child in children[name] & children[other]
    }
    if others and not common and any(own_images[name] for name in with_children):
        return {}
    if others and (not common or any(children[name] & common for name in others)):
        raise DataError(
            f"{printable_line(base)} has the folders {_join(with_children)}, which may be splits, "
            f"beside others without a split in their names: {_join(others)}.",
            remedy="If they are splits, put train, validation or test into the names of all, and "
            f"move other folders out. If all are classes, rename {next(iter(with_children))}, for "
            "example to trains.",
        )
    return with_children


def _require_clear_classes(
    base: Path, images: Sequence[_Folders], class_folders: ClassFolders
) -> None:
    """Raise DataError for splits below the top folders, and in "auto" for what may be classes.

    Args:
        base: The folder with the splits or classes.
        images: The folders between the split, or `base`, and each image.
        class_folders: Which folders are the classes.
    """
    own: Counter[str] = Counter()
    below: dict[str, Counter[str]] = defaultdict(Counter)
    for names in images:
        child = next((name for name in _lowest(names)[1:] if not _is_no_class(name)), None)
        if child is None:
            own[names[0]] += 1
        else:
            below[names[0]][child] += 1
    topics = [name for name, inside in below.items() if own[name] < inside.total()]
    if not topics or len({_lowest(names)[-1] for names in images}) < 2:
        return
    children = sorted({child for name in topics for child in below[name]})
    if len({split_of_name(child) for child in children} - {None}) > 1:
        raise DataError(
            f"{printable_line(base)} has split folders ({_join(children)}) below the folders "
            f"{_join(topics)}.",
            remedy="Put the splits on top, with a sub-folder for each class in each of them.",
        )
    if class_folders == "top":
        return
    top = sorted({*own, *below})
    raise DataError(
        f"{printable_line(base)} has images in folders below {_join(topics)}, so it is not clear "
        f"which folders are the classes: {_join(top)}, or {_join(children)}.",
        remedy=f'Set class_folders = "lowest" in [data] for the classes {_join(children)}, or '
        f'"top" for {_join(top)}; on the command line, --class-folders.',
    )


def _lowest(names: _Folders) -> _Folders:
    """Return the path to the lowest folder that is not named like a date; at least one folder."""
    end = len(names)
    for index in range(len(names) - 1, 0, -1):
        if _is_no_class(names[index]):
            end = index
        elif not re.fullmatch(r"\d\d?", names[index]):  # A month or a day below a year.
            break
    return names[:end]


def _class_by_path(folders: Iterable[_Folders], class_folders: ClassFolders) -> dict[_Folders, str]:
    """Return the class name of the images in each folder. Raises DataError if one name is twice."""
    if class_folders != "lowest":
        return {names: names[0] for names in folders}
    paths: dict[str, _Folders] = {}
    for names in sorted(folders):
        path = _lowest(names)
        if paths.setdefault(path[-1], path) != path:
            raise DataError(
                f"Two folders with images have the same name: {'/'.join(paths[path[-1]])} and "
                f"{'/'.join(path)}.",
                remedy="Give them different names, or put their images into one folder.",
            )
    return {names: _lowest(names)[-1] for names in folders}


def _require_images(
    base: Path,
    folders: Sequence[_Folders],
    classes: Collection[str],
    splits: Mapping[str, Split],
    class_folders: ClassFolders,
) -> None:
    """Raise DataError for a class folder without any image, in no split.

    Args:
        base: The folder with the splits or classes.
        folders: The path from it of each folder.
        classes: The classes that have images.
        splits: The splits by folder; empty if there are none.
        class_folders: Which folders are the classes.
    """
    above = {names[:-1] for names in folders}
    for path in folders:
        if splits and path[:1] and path[0] not in splits:
            continue
        names = path[1:] if splits else path
        if class_folders == "lowest":
            is_class = names and path not in above
            name = _lowest(names)[-1] if names else ""
        else:
            is_class, name = len(names) == 1, names[0] if names else ""
        if is_class and name not in classes:
            raise DataError(
                f"The class folder {printable_line(base.joinpath(*path))} has no image.",
                remedy=f"Add files that end in {', '.join(IMAGE_EXTENSIONS)}, or remove the "
                "folder, or give the folder that holds only the classes as the source.",
            )


def _describe_layout(
    start: _Folders, splits: Mapping[str, Split], class_folders: ClassFolders
) -> str:
    parts = []
    if start:
        parts.append(f"all in {printable_line('/'.join(start))}")
    if splits:
        order: tuple[Split, ...] = ("train", "validation", "test")
        named = (
            name if name.lower() == split else f"{printable_line(name)} is {split}"
            for name, split in sorted(splits.items(), key=lambda item: order.index(item[1]))
        )
        parts.append(f"splits by folder: {', '.join(named)}")
    if class_folders == "lowest":
        parts.append("classes are the lowest folders")
    return "; ".join(parts)


def _join(names: Iterable[str]) -> str:
    """Return some names as a list in a message."""
    shown = [printable_line(name) for name in names]
    return ", ".join(shown[:_MAX_NAMES_IN_MESSAGE]) + (
        ", ..." if len(shown) > _MAX_NAMES_IN_MESSAGE else ""
    )


def _warn_about_left_out(root: Path, images: Sequence[Path], other: Sequence[Path]) -> None:
    for files, reason in (
        (images, "images in {} are left out, because they are in no class folder"),
        (other, "files in {} are ignored, because their extension is not that of an image"),
    ):
        if files:
            examples = ", ".join(printable_line(file.relative_to(root)) for file in files[:3])
            warnings.warn(
                f"{len(files)} {reason.format(printable_line(root))}: {examples}"
                f"{', ...' if len(files) > 3 else '.'}",
                stacklevel=3,
            )
