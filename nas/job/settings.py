"""Job files: how one is found and read.

`nas.run.settings` has their tables and keys, `nas.job.settings_errors` words the messages about
wrong files.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas import files
from nas.deploy.formats import format_names
from nas.errors import JobFileError, printable, shortened_text
from nas.files.documents import read_text_bytes
from nas.files.names import name_like
from nas.files.paths import expanded, in_folder
from nas.job.settings_errors import describe_problems, option_error
from nas.run.settings import JobSettings

JOB_FILE = "job.toml"
"""Name of the job file in a run folder."""

MAX_BYTES = 2**20
"""Size in bytes of the largest job file that is read; the packaged ones have about 500 bytes."""


def job_path(name_or_path: str) -> Path:
    """Return the path of a job file.

    Args:
        name_or_path: path of a job file or of a run folder, whose job file it is, or the name of a
            packaged job such as `quickstart`.

    Raises:
        JobFileError: there is neither. The message names the packaged jobs.
    """
    path = Path(expanded(name_or_path))
    if os.path.isfile(path):
        return path
    if run_folder_of(path / JOB_FILE) is not None:
        return path / JOB_FILE
    packaged = {file.stem: file for file in files.packaged_folder("jobs").glob("*.toml")}
    if name_or_path in packaged:
        return packaged[name_or_path]
    if os.path.exists(path):  # A folder or a device: `load_job` refuses it with the reason.
        return path
    raise JobFileError(
        f"There is no job file {printable(shortened_text(name_or_path))}{in_folder(path)}.",
        remedy="Give the path of a TOML file, or the name of a packaged job: "
        f"{', '.join(sorted(packaged))}.",
    )


def run_folder_of(job: Path) -> Path | None:
    """Return the run folder that a job file lies in, and belongs to; None if it lies in none."""
    is_run = job.name == JOB_FILE and os.path.isfile(job.with_name("run.json"))
    return job.parent if is_run else None


def load_job(path: Path) -> JobSettings:
    """Read a job file and check it. A job without a `name` is called as its file.

    A relative path in the file is taken from the working folder, or else from the folder of the
    file.

    Args:
        path: path of the job file.

    Raises:
        JobFileError: the file cannot be read, or is no valid job. The message names the first wrong
            keys, their values and what is allowed.
    """
    path = Path(expanded(path))
    # Errors of the validation are not chained, because they may repeat a password.
    try:
        text = read_text_bytes(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise _file_error(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _file_error(path, f"is not UTF-8 (at byte {error.start})") from None
    try:
        job = JobSettings.model_validate(tomllib.loads(text), context=path.parent)
    except ValidationError as error:
        raise JobFileError(f"{path}: {describe_problems(error, JobSettings)}") from None
    except (ValueError, RecursionError) as error:
        raise _file_error(path, f"is not TOML: {printable(str(error))[:200]}") from None
    unknown = [name for name in job.finish.export or () if name not in format_names()]
    if unknown:
        raise JobFileError(
            f"{path}: finish.export has {shortened_text(repr(unknown[0]))}: the formats are "
            f"{', '.join(format_names())}."
        )
    return job if "name" in job.model_fields_set else _named_after(path, job)


def _named_after(path: Path, job: JobSettings) -> JobSettings:
    """Return a job with the name of its file, with a hyphen for what a name cannot have."""
    try:
        return job.model_copy(update={"name": name_like(path.stem)})
    except ValueError as error:
        raise JobFileError(
            f"{path} has no name, and none can be made of that of the file: {error}.",
            remedy='Begin the job file with a line such as name = "photos".',
        ) from None


def _file_error(path: Path, reason: str) -> JobFileError:
    return JobFileError(
        f"{path} {reason}.", remedy="Give a TOML file; jobs/overnight.toml shows every key."
    )


def with_options(settings: JobSettings, **options: Any) -> JobSettings:
    """Return a job with other settings.

    Args:
        settings: the settings of the job.
        options: new values of keys, and of tables a mapping of the keys that change.

    Raises:
        RequestError: a value is not allowed. The message names the option of the command.
    """
    changes = {
        name: {**dict(getattr(settings, name)), **value} if isinstance(value, dict) else value
        for name, value in options.items()
    }
    try:
        return JobSettings.model_validate({**dict(settings), **changes})
    except ValidationError as error:
        raise option_error(error) from None
