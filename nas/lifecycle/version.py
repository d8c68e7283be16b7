"""`version.json`: the version of an exported model, the model that it replaces, and the changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from nas.deploy.exporting import model_data
from nas.deploy.folder import SUMS_FILE, ModelFolder, digest
from nas.errors import CheckpointError, RequestError
from nas.files.documents import Digest, Document, Format, Name, to_json
from nas.lifecycle.comparison import Comparison, Judged, check_limit, compare_models
from nas.lifecycle.unpacking import VERSION_PATTERN, numbers
from nas.run.answers import ANSWERS, ANSWERS_FILE
from nas.run.run import Run
from nas.run.trained import MODELS_FOLDER

VERSION_FILE = "version.json"

FIRST_VERSION = "1.0"
"""Version of a model that replaces none."""

VersionText = Annotated[str, Field(pattern=f"^{VERSION_PATTERN}$")]


class VersionEntry(Document):
    """A line of the change log of a model.

    Attributes:
        version: the version.
        date: day of the export.
        changes: what changed since the version before, a sentence.
    """

    version: VersionText
    date: str
    changes: str


class ModelVersion(Document):
    """`version.json`.

    Attributes:
        version: the version.
        parent: ID of the model that it replaces.
        parent_version: version of that model.
        parent_digest: SHA-256 of the `SHA256SUMS` of that model, which names all of its files.
        comparison: the changes.
        log: the versions that led to this one, the latest first.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    version: VersionText
    parent: Name
    parent_version: VersionText
    parent_digest: Digest
    comparison: Comparison
    log: tuple[VersionEntry, ...]


VERSION = Format(
    ModelVersion,
    "the version of a model",
    CheckpointError,
    "Export the model again with `nas export --parent`.",
)


def version_of(path: Path) -> ModelVersion | None:
    """Return the version in a model folder; None if it replaces no model."""
    return VERSION.read(path / VERSION_FILE) if (path / VERSION_FILE).is_file() else None


def next_version(parent: str) -> str:
    """Return the version after another one.

    >>> next_version("1.9")
    '1.10'
    """
    first, last = parent.rsplit(".", 1)
    return f"{first}.{int(last) + 1}"


@dataclass(frozen=True)
class Replacement:
    """The model that an export replaces, and what is asked of its successor.

    Args:
        parent: folder of the model that is replaced.
        version: version of the successor; by default the one after that of the parent.
        max_negative_flips: share of the images that may be right with the parent and wrong with
            its successor, as a fraction; by default any.
        networks: number of networks that are exported.

    Raises:
        RequestError: several networks replace one, the limit is no fraction, or the version is not
            later than that of the parent.
        RunFolderError, ExportError, CheckpointError: see `Judged.of_folder`.
    """

    parent: Path
    version: str | None = None
    max_negative_flips: float | None = None
    networks: int = 1

    def __post_init__(self) -> None:
        check_limit(self.max_negative_flips)
        if self.networks != 1:
            raise RequestError(
                f"{self.networks} networks cannot replace one.", remedy="Give one --pick."
            )
        _ = self._judged  # A parent that cannot be read is an error before any work.
        if self.version is not None:
            _require_later(self.version, self._parent_version)

    def check_images(self, run: Run) -> None:
        """Raise RequestError if other images judge the networks of a run than the parent."""
        self._judged.require_same_images(run.data.classes, model_data(run), str(run.path))

    def check(self, run: Run, name: str) -> None:
        """Check that a trained network of a run may replace the parent.

        Args:
            run: the run.
            name: ID of the network.

        Raises:
            RequestError: it is in the same folder.
            ExportError: too many images were right and are wrong now.
        """
        folder = run.path / MODELS_FOLDER / name
        if folder.resolve() == self.parent.resolve():
            raise RequestError(
                f"{name} would replace itself.",
                remedy="Copy the folder of the parent to another place, and name the copy.",
            )
        self.require_flips(Judged(name, ANSWERS.read(folder / ANSWERS_FILE), model_data(run)))

    def require_flips(self, network: Judged) -> None:
        """Check how many images were right with the parent and are wrong now. See `check`."""
        self._compare(network).require_flips(self.max_negative_flips)

    def write_version(self, folder: ModelFolder) -> ModelVersion:
        """Write the version of the exported successor, and what it changes, to its folder."""
        comparison = self._compare(Judged.of_folder(folder.path))
        today = datetime.now(UTC).date().isoformat()
        entry = VersionEntry(version=self._version, date=today, changes=comparison.verdict)
        record = ModelVersion(
            version=self._version,
            parent=self._judged.name,
            parent_version=self._parent_version,
            parent_digest=digest(self.parent / SUMS_FILE),
            comparison=comparison,
            log=(entry, *(() if self._old is None else self._old.log)),
        )
        with folder.staging() as staging:
            (staging / VERSION_FILE).write_text(to_json(record), encoding="utf-8")
            folder.publish(staging)
        return record

    def _compare(self, network: Judged) -> Comparison:
        """Return what changes for users. The names have versions: the IDs may be the same."""
        return compare_models(
            self._judged._replace(name=f"{self._judged.name} {self._parent_version}"),
            network._replace(name=f"{network.name} {self._version}"),
        )

    @cached_property
    def _judged(self) -> Judged:
        return Judged.of_folder(self.parent)

    @cached_property
    def _old(self) -> ModelVersion | None:
        return version_of(self.parent)

    @property
    def _version(self) -> str:
        return self.version or next_version(self._parent_version)

    @property
    def _parent_version(self) -> str:
        return FIRST_VERSION if self._old is None else self._old.version


def _require_later(version: str, parent: str) -> None:
    """Raise RequestError unless a version is one, and later than that of its parent."""
    if not re.fullmatch(VERSION_PATTERN, version):
        raise RequestError(
            f"{version!r} is no version.", remedy="Give two or three numbers, such as 1.2."
        )
    if numbers(version) <= numbers(parent):
        raise RequestError(
            f"Version {version} is not later than {parent}, the version of the parent.",
            remedy=f"Leave it out for {next_version(parent)}.",
        )
