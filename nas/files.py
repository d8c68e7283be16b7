"""Replace files atomically, and find the folders that are shipped with the package."""

from __future__ import annotations

import os
from pathlib import Path

_UNFINISHED = ".unfinished"
_PACKAGE = Path(__file__).resolve().parent


def packaged_folder(name: str) -> Path:
    """Return a folder of the project, such as `search_spaces`.

    It is inside an installed package, and beside the package in a checkout.
    """
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def discard_unfinished(folder: Path) -> None:
    """Removes what killed processes left of replacements, in a folder that is this process's."""
    for left in folder.rglob(f".*{_UNFINISHED}"):
        left.unlink(missing_ok=True)


def replace(path: Path, content: str | bytes) -> None:
    """Writes beside `path`, syncs, and renames over it. Raises OSError, the old file kept."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise named(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def named(error: OSError, path: Path) -> OSError:
    """An error that says which file it is about; a full disk's does not."""
    error.filename = error.filename or str(path)
    return error
