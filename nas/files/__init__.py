"""Files: replaces them atomically, reads lines and documents with checks, and parses addresses.

This module itself replaces files, and finds the folders that are shipped with the package.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nas.errors import RequestError
from nas.machine.process_identity import host, is_alive, this_process

_UNFINISHED = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d+)\.unfinished")
"""Names of `unfinished`: a digest of the host, the ID of the process and its start in 10 ms."""

_LONGEST_NAME = 200
"""Bytes of a file's name that its unfinished file repeats: names have at most 255."""

MAX_UNFINISHED_S = 86400
"""Age at which a file of another machine's process counts as left: none is written that long."""

_PACKAGE = Path(__file__).resolve().parent.parent


def packaged_folder(name: str) -> Path:
    """Return a folder of the project, such as `search_spaces`.

    The folder is inside the package if that is installed, and beside it in a checkout.
    """
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def replace(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: readers see the old content or the new one, never a part.

    The content is written to a file in the same folder, synced to the disk, and renamed. Whoever
    could read the old file can read the new one, and nobody else at any time: it has the
    permissions of the old one, its group and, if the system lets this user give files away, its
    owner.

    Raises OSError if that fails; the old file stays.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = unfinished(path)
    try:
        with temporary.open("wb") as file:
            with suppress(OSError):  # There is no old file, or the file system has no permissions.
                old = path.stat()
                _set_access(temporary, old, stat.S_IMODE(old.st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise with_path(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def share(folder: Path, paths: Iterable[Path], like: Path) -> None:
    """Give a folder the owner and permissions of the one whose place it takes.

    Args:
        folder: the new folder.
        paths: the files and folders in it that whoever may read the other folder may read, too,
            whatever the umask is. Nobody else may write them by this.
        like: the folder that it replaces.
    """
    with suppress(OSError):  # Some file systems have no permissions.
        old = like.stat()
        for path in paths:
            own = stat.S_IMODE(path.stat().st_mode)
            is_entered = path.is_dir() or own & stat.S_IXUSR
            _set_access(path, old, own | (old.st_mode & (0o555 if is_entered else 0o444)))
        # A folder that its owner cannot write cannot be moved.
        _set_access(folder, old, stat.S_IMODE(old.st_mode) | stat.S_IRWXU)


def _set_access(path: Path, old: os.stat_result, mode: int) -> None:
    """Give a file or folder the owner and group of another one, as far as this user may; a mode."""
    for owner in (old.st_uid, -1):
        with suppress(OSError):
            os.chown(path, owner, old.st_gid)
            break
    if path.stat().st_gid != old.st_gid:  # Another group may do what everybody may.
        mode &= 0o707 | mode << 3 & 0o070
    path.chmod(mode)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside a path, which takes its place at the end of the block without an error.

    Where a disk is mounted, as the volume of a container is, its parts take their places in turn.

    Args:
        path: path that does not exist, or is an empty folder, whose permissions stay.

    Raises RequestError for another path.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(f"{path} is not empty.", remedy="Name a new folder with --out.")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Who may write to a volume need not be allowed to write beside it.
    beside = path if path.is_dir() and not os.access(path.parent, os.W_OK) else path.parent
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=beside) as temporary:
        staging = Path(temporary) / "folder"
        staging.mkdir()
        yield staging
        if path.exists():
            share(staging, staging.rglob("*"), path)
        try:
            os.replace(staging, path)
        except OSError as error:
            if beside != path and error.errno != errno.EBUSY:  # That of a mount point.
                raise
            for each in list(staging.iterdir()):
                shutil.move(each, path / each.name)


def check_output_path(path: Path, what: str, suffixes: Sequence[str]) -> None:
    """Check that a file can be written to a path, before it is made.

    Args:
        path: the path.
        what: what is to be written, which begins a sentence.
        suffixes: the suffixes that the name may have.

    Raises RequestError for another suffix, a missing folder, or the path of a folder.
    """
    if path.suffix.lower() not in suffixes:
        raise RequestError(
            f"{what} cannot be written to {path}.",
            remedy=f"Use a name that ends in {' or '.join(suffixes)}.",
        )
    if not path.parent.is_dir():
        raise RequestError(
            f"There is no folder {path.parent} to write {path.name} to.",
            remedy="Make the folder, or name another one.",
        )
    if path.is_dir():
        raise RequestError(f"{path} is a folder.", remedy="Name a file in it.")


def unfinished(path: Path) -> Path:
    """Return the path beside a file under which this process writes it, before it is renamed."""
    process = this_process()
    started = round(100 * process["started"])
    own = path.name
    if len(os.fsencode(own)) > _LONGEST_NAME:
        own = f"{zlib.crc32(os.fsencode(own)):08x}"
    return path.with_name(f".{own}.{_host_digest()}-{process['pid']}-{started}.unfinished")


def remove_unfinished(folder: Path) -> None:
    """Remove the files of `unfinished` that dead processes left in a folder and those below it.

    Files of living processes stay: others may write beside the one that works on a folder, such as
    a report. Of a process on another machine nobody knows whether it lives, only the file's age.
    """
    for path in folder.rglob(".*.unfinished"):
        if (match := _UNFINISHED.fullmatch(path.name)) is None:
            continue
        written_on, pid, started = match.groups()
        with suppress(OSError):  # It is gone by now, or another user's: it disturbs nobody.
            if written_on == _host_digest():
                is_left = not is_alive({"pid": int(pid), "started": int(started) / 100})
            else:
                is_left = time.time() - path.stat().st_mtime > MAX_UNFINISHED_S
            if is_left:
                path.unlink()


def _host_digest() -> str:
    return f"{zlib.crc32(host().encode()):08x}"


def with_path(error: OSError, path: Path) -> OSError:
    """Return an error that names its file: the one for a full disk does not."""
    error.filename = error.filename or str(path)
    return error
