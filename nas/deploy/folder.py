"""`ModelFolder`: the folder `models/<id>/` of a run, with the files of one exported model.

New files are written to a hidden subfolder, verified there, synced to the disk and only then
renamed. The list of digests, `SHA256SUMS`, comes last: a folder whose files agree with it is
complete. A process that is killed leaves the earlier files, or some of the new ones; the same
export completes the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import filelock

from nas import files
from nas.documents import read_bytes, shortened
from nas.errors import ExportError, RunFolderError
from nas.records.model import CARD, CARD_FILE, PREPROCESSING, ModelCard, Preprocessing

ARCHITECTURE_FILE = "architecture.json"
PREPROCESSING_FILE = "preprocessing.json"
SAMPLES_FILE = "verification.safetensors"
CARD_PAGE = "card.md"
FIGURE_FILE = "benchmark.svg"
SCRIPT_FILE = "run.py"
SUMS_FILE = "SHA256SUMS"

LAST_FILES = (CARD_FILE, CARD_PAGE, SUMS_FILE)
"""Files that are renamed after all others, in this order."""

_STAGING = ".export"
"""Hidden subfolder in which files are written and verified."""

_LOCK = ".export.lock"

_EARLIER = ".earlier."
"""Start of the name that a replaced folder has until it is removed."""

_SHARED_FILES = (ARCHITECTURE_FILE, PREPROCESSING_FILE)
"""Files that training writes to the same folder, with the same content."""

_SUM = re.compile(r"([0-9a-f]{64})  (\S.*)")
"""A line of `SHA256SUMS`, as `sha256sum` writes and checks it."""

_MAX_SUMS_BYTES = 1 << 20

_EXPORT_AGAIN = "Export the model again with `nas export`."


class ModelFolder:
    """The folder of one exported model.

    Args:
        path: path of the folder, which may be missing until something is exported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"ModelFolder({str(self.path)!r})"

    @property
    def preprocessing(self) -> Preprocessing:
        """The contents of `preprocessing.json`. Raises CheckpointError for a damaged file."""
        return PREPROCESSING.read(self.path / PREPROCESSING_FILE)

    @property
    def card(self) -> ModelCard:
        """The contents of `card.json`. Raises CheckpointError for a damaged file."""
        return CARD.read(self.path / CARD_FILE)

    def sums(self) -> dict[str, str]:
        """Return the digests in `SHA256SUMS` by file, relative to the folder.

        Raises:
            RunFolderError: nothing was exported to the folder.
            ExportError: the file is damaged.
        """
        path = self.path / SUMS_FILE
        if not os.path.isfile(path):
            raise self._incomplete_error()
        return _read_sums(path)

    def changed_files(self) -> dict[str, str]:
        """Return what is wrong with each file that `SHA256SUMS` lists: `missing` or `changed`.

        Raises the errors of `sums`.
        """
        problems = {}
        for name, expected in self.sums().items():
            path = self.path / name
            if not os.path.isfile(path):
                problems[name] = "missing"
            elif digest(path) != expected:
                problems[name] = "changed"
        return problems

    def require_unchanged(self) -> None:
        """Check all files against `SHA256SUMS`.

        Raises:
            RunFolderError: nothing was exported to the folder.
            ExportError: a file is missing or changed; the message names it.
        """
        problems = self.changed_files()
        if problems:
            texts = ", ".join(f"{name} is {problem}" for name, problem in problems.items())
            raise ExportError(
                f"{self.path} is not as it was exported: {texts}.",
                remedy="Restore the files, or export the model again with `nas export`.",
            )

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Lock the folder, and yield an empty hidden subfolder for new files.

        If an earlier process was killed while it published verified files, the rest of them is
        published first. Other files that it left are removed. The subfolder is removed at the end
        of the block; `publish` renames files out of it.

        Raises:
            RunFolderError: another process exports to the folder, or the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file.", remedy="Move it away.")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunFolderError(
                f"Another process exports to {self.path}.", remedy="Wait until it has ended."
            ) from None
        staging = self.path / _STAGING
        try:
            if (staging / SUMS_FILE).is_file():
                self._rename_from(staging)
            remove(staging)
            files.remove_unfinished(self.path)
            staging.mkdir()
            yield staging
        finally:
            # Whole files with their digests are left for the next start.
            if not (staging / SUMS_FILE).is_file():
                remove(staging)
            lock.release()

    def publish(self, staging: Path, *, replaced: Collection[str] = ()) -> None:
        """Rename all files in the staging folder to the names that they have in the model folder.

        `SHA256SUMS` then lists them and the files of earlier exports that are unchanged.

        Args:
            staging: folder from `staging`; its files were verified.
            replaced: files and folders of earlier exports that are not valid any more. They are
                removed if they are as they were exported.

        Raises:
            RunFolderError: a file in the folder has the name of a new one and is from no export.
            OSError: a file cannot be written or renamed. The same export completes the folder.
        """
        self._require_own(staging)
        replaced = {*replaced, *(path.name for path in staging.iterdir())}
        sums = {
            name: value
            for name, value in self._unchanged_sums().items()
            if _first_part(name) not in replaced
        }
        sums |= {name: digest(staging / name) for name in _files_in(staging)}
        _sync(staging)
        lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
        # From here on, a next start publishes what is left.
        files.replace(staging / SUMS_FILE, "".join(lines))
        self._rename_from(staging)
        remove(staging)

    def _rename_from(self, staging: Path) -> None:
        """Remove what is no more valid, and rename what the staging folder holds, the list last."""
        listed = _read_sums(staging / SUMS_FILE)
        for name in self._unchanged_sums().keys() - listed.keys():
            (self.path / name).unlink()
        last = {name: at for at, name in enumerate(LAST_FILES, start=1)}
        for source in sorted(staging.iterdir(), key=lambda path: (last.get(path.name, 0), path)):
            target = self.path / source.name
            if source.name.startswith(_EARLIER):
                continue
            if target.is_dir():
                # A folder cannot replace another one that holds files.
                os.replace(target, staging / f"{_EARLIER}{source.name}")
            os.replace(source, target)
        _sync_folder(self.path)

    def _require_own(self, staging: Path) -> None:
        """Raise RunFolderError for a file that would be replaced and is from no export."""
        try:
            listed = self.sums() if (self.path / SUMS_FILE).is_file() else {}
        except ExportError:  # A damaged list does not say what is from an export.
            return
        for source in staging.iterdir():
            target = self.path / source.name
            own = any(_first_part(name) == source.name for name in listed)
            if target.exists() and not own and source.name not in _SHARED_FILES:
                raise RunFolderError(
                    f"{target} is not from an export, and would be replaced.",
                    remedy="Move it away, and export again.",
                )

    def _unchanged_sums(self) -> dict[str, str]:
        """Return the digests of the listed files that are unchanged."""
        if not (self.path / SUMS_FILE).is_file():
            return {}
        try:
            sums, changed = self.sums(), self.changed_files()
        except ExportError:  # A damaged list says of no file that it is unchanged.
            return {}
        return {name: value for name, value in sums.items() if name not in changed}

    def _incomplete_error(self) -> RunFolderError:
        if (self.path / _STAGING).is_dir():
            return RunFolderError(
                f"The export to {self.path} was interrupted, or has not ended.",
                remedy="Wait for it, or run the same `nas export` again.",
            )
        return RunFolderError(
            f"{self.path} is not an exported model: there is no {SUMS_FILE} in it.",
            remedy="Give the folder models/<id> that `nas export` wrote in a run folder.",
        )


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size


def is_part_of(name: str, owners: Collection[str]) -> bool:
    """Return whether a path in a model folder is that of a file, or of a file in a folder.

    Args:
        name: path with slashes, relative to the model folder.
        owners: names of files and folders.
    """
    return _first_part(name) in owners


def remove(path: Path) -> None:
    """Remove a file, or a folder with all its files, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files_in(folder: Path) -> list[str]:
    """Return the paths of all files in a folder, relative to it, with slashes."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _read_sums(path: Path) -> dict[str, str]:
    """Return the digests in a `SHA256SUMS` by file. Raises ExportError for a damaged file."""
    try:
        lines = read_bytes(path, _MAX_SUMS_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = [""]
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read: {error.strerror}.", remedy=_EXPORT_AGAIN
        ) from None
    sums = {}
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None or not _is_inside(match[2]):
            raise ExportError(
                f"{path}, line {number} is not a digest and the name of a file: {shortened(line)}.",
                remedy=_EXPORT_AGAIN,
            )
        sums[match[2]] = match[1]
    return sums


def _first_part(name: str) -> str:
    """Return the file or folder that a relative path with slashes begins with."""
    return PurePosixPath(name).parts[0]


def _is_inside(name: str) -> bool:
    """Return whether a relative path with slashes stays inside its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _sync(folder: Path) -> None:
    """Wait until all files below a folder are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
