"""Resolves the paths that users give in job files, options and calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self, TypeVar, overload

from nas.errors import RequestError
from nas.machine.home import lasting_home

AnyPath = TypeVar("AnyPath", bound=str | Path)


def expanded(path: AnyPath) -> AnyPath:
    """Return a path with the home folder in place of a leading `~`.

    Raises RequestError if the system knows no home folder.
    """
    text = str(path)
    if not text.startswith("~"):
        return path
    if text.split("/")[0] == "~" and lasting_home() is None:
        raise RequestError(
            f"{text}: this user has no home folder that ~ could stand for.",
            remedy="Write the whole path, or set the variable HOME.",
        )
    return type(path)(os.path.expanduser(text))


def located(path: str, folder: str | Path) -> str:
    """Return a path from the working folder: as it stands, or below another folder.

    The other folder counts if the path leads to nothing from the working folder.

    Args:
        path: path as a user wrote it.
        folder: folder that the path may be meant from, such as that of a job file.
    """
    here = expanded(path)
    below = os.path.join(folder, here)
    return below if not os.path.lexists(here) and os.path.lexists(below) else path


def without_folders(path: str) -> str:
    """Return the last part of an absolute path, and any other path or name as it is."""
    here = expanded(path)
    return os.path.basename(here.rstrip("/")) if os.path.isabs(here) else path


def working_folder() -> str:
    """Return the working folder; an empty text if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def in_folder(path: str | Path) -> str:
    """Return where a path that leads to nothing was looked for: " in /home/me".

    It is empty for an absolute path.
    """
    return "" if os.path.isabs(path) else f" in {working_folder() or 'a deleted folder'}"


class OpenedPath:
    """An attribute with a path that leads to the same file after the working folder has changed.

    It reads as the path that was set, and as an absolute one from another working folder.

    Example:
        >>> class Opened:
        ...     path = OpenedPath()
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_opened_{name}"

    def __set__(self, instance: object, path: str | Path) -> None:
        setattr(instance, self._name, (Path(expanded(path)), working_folder()))

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Path: ...

    def __get__(self, instance: object | None, owner: type) -> Path | Self:
        if instance is None:
            return self
        path, folder = getattr(instance, self._name)
        return path if working_folder() == folder else Path(folder, path)

    def folder(self, instance: object) -> str:
        """Return the folder that was the working folder when the path was set."""
        _, folder = getattr(instance, self._name)
        return str(folder)
