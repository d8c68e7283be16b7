"""`ModelFolder`: the folder `models/<id>/` of a run, with the files of one exported model.

New files are written and verified in a hidden folder beside it, which gets copies of the files that
stay, and then takes its place. A process that is killed leaves the folder as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from nas import files
from nas.errors import ExportError, RunFolderError
from nas.files.documents import read_text_bytes, shortened
from nas.files.foreign import file_problem
from nas.files.locks import Lock, LockHeldError
from nas.files.names import require_utf8
from nas.files.paths import OpenedPath
from nas.run.model_card import CARD, CARD_FILE, PREPROCESSING, ModelCard, Preprocessing

ARCHITECTURE_FILE = "architecture.json"
PREPROCESSING_FILE = "preprocessing.json"
SAMPLES_FILE = "verification.safetensors"
CARD_PAGE = "card.md"
FIGURE_FILE = "benchmark.svg"
SUSTAINED_FILE = "sustained.svg"
MISTAKES_FILE = "mistakes.jpg"
SCRIPT_FILE = "run.py"
SUMS_FILE = "SHA256SUMS"

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

    path = OpenedPath()

    def __init__(self, path: Path) -> None:
        require_utf8(path)
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
            raise RunFolderError(
                f"{self.path} is not an exported model: there is no {SUMS_FILE} in it.",
                remedy="Give the folder models/<id> that `nas export` wrote in a run folder.",
            )
        return _read_sums(path)

    def changed_files(self) -> dict[str, str]:
        """Return what is wrong with each file that `SHA256SUMS` lists: `missing`, `changed`,
        `empty`, or what took its place, such as `a pointer of Git LFS`.

        Raises the errors of `sums`.
        """
        problems = {}
        for name, expected in self.sums().items():
            path = self.path / name
            if not os.path.isfile(path):
                problems[name] = "missing"
            elif digest(path) != expected:
                problem = file_problem(path)
                problems[name] = problem.removeprefix("it is ") if problem else "changed"
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
        """Lock the folder, and yield an empty hidden folder beside it for new files.

        The hidden folder is removed at the end of the block, unless `publish` has put it in place.

        Raises:
            RunFolderError: another process exports to the folder, it cannot be locked, or the path
                is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file.", remedy="Move it away.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = self.path.parent / f".{self.path.name}.lock"
        lock = Lock(lock_file, is_removed=True)
        try:
            lock.acquire(timeout_s=0)
        except LockHeldError:
            raise RunFolderError(
                f"Another process exports to {self.path}.", remedy="Wait until it has ended."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"{lock_file}: {error.strerror}.",
                remedy="Use a run on a local disk that this user can write to.",
            ) from None
        staging = self._beside / "new"
        try:
            self._clean_up()
            files.remove_unfinished(self.path)
            staging.mkdir(parents=True)
            yield staging
        finally:
            self._clean_up()
            lock.release()

    def publish(self, staging: Path, *, replaced: Collection[str] = ()) -> None:
        """Put the staging folder in the place of the model folder, whose other files it gets.

        `SHA256SUMS` then lists its files and those of earlier exports that are unchanged. Whoever
        may read the model folder may read the new files.

        Args:
            staging: folder from `staging`; its files were verified.
            replaced: files and folders of earlier exports that are not valid any more. They are
                left out if they are as they were exported.

        Raises:
            RunFolderError: a file in the folder has the name of a new one and is from no export.
            OSError: a file cannot be written or renamed. The folder is as it was.
        """
        unchanged = self._unchanged_of(staging)
        sums = {name: digest(staging / name) for name in _files_in(staging)}
        new = [*staging.rglob("*"), staging / SUMS_FILE]
        left_out = {SUMS_FILE, *(path.name for path in staging.iterdir())}
        left_out |= {*replaced} & {first_part(name) for name in unchanged}
        if self.path.is_dir():
            for source in self.path.iterdir():
                if source.name not in left_out:
                    copy = shutil.copytree if source.is_dir() else shutil.copy2
                    copy(source, staging / source.name)
        sums |= {each: unchanged[each] for each in unchanged if first_part(each) not in left_out}
        lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
        (staging / SUMS_FILE).write_text("".join(lines), encoding="utf-8")
        if self.path.is_dir():
            files.share(staging, new, self.path)
        _sync(staging)
        if self.path.exists():
            os.rename(self.path, self._beside / "old")
        os.rename(staging, self.path)
        _sync_folder(self.path.parent)

    def restore(self) -> None:
        """Put the folder back that a killed process had moved away to replace it."""
        if not self.path.exists() and self._beside.exists():
            with self.staging():
                pass

    @property
    def _beside(self) -> Path:
        """The hidden folder with the new folder, `new`, and the one that it replaces, `old`."""
        return self.path.parent / f".{self.path.name}.export"

    def _clean_up(self) -> None:
        """Remove what an export left, after its folder is in its place again."""
        if not self.path.exists() and (self._beside / "old").exists():
            os.rename(self._beside / "old", self.path)
        remove(self._beside)

    def _unchanged_of(self, staging: Path) -> dict[str, str]:
        """Return the digests of the listed files that are unchanged.

        Raises RunFolderError for a file that a new one would replace and that is from no export.
        """
        try:
            sums = self.sums() if (self.path / SUMS_FILE).is_file() else {}
        except ExportError:  # A damaged list says nothing of any file.
            return {}
        own = {*_SHARED_FILES, *map(first_part, sums)}
        for source in staging.iterdir():
            target = self.path / source.name
            if target.exists() and source.name not in own:
                raise RunFolderError(
                    f"{target} is not from an export, and would be replaced.",
                    remedy="Move it away, and export again.",
                )
        changed = self.changed_files() if sums else {}
        return {name: value for name, value in sums.items() if name not in changed}


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size


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
        lines = read_text_bytes(path, _MAX_SUMS_BYTES).decode("utf-8").splitlines()
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


def first_part(name: str) -> str:
    """Return the file or folder that a path in a model folder begins with.

    Args:
        name: the path with slashes, relative to the model folder.
    """
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
