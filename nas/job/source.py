"""What a retargeted run takes over from the run that it comes from: files, trained networks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nas import files
from nas.deploy.exits import EXIT_FILE
from nas.deploy.folder import ARCHITECTURE_FILE, PREPROCESSING_FILE
from nas.deploy.networks import JUDGED_FILE, WEIGHTS_FILE
from nas.deploy.refit import REFIT_FOLDER
from nas.job.folder import JobRun
from nas.run.answers import ANSWERS_FILE, EXIT_ANSWERS_FILE
from nas.run.run import Run
from nas.run.trained import MODELS_FOLDER, TRAINED_FILE, read_trained
from nas.supernet.records import TRAINING_LOG

_MODEL_FILES = (
    *(WEIGHTS_FILE, ARCHITECTURE_FILE, PREPROCESSING_FILE, TRAINING_LOG, ANSWERS_FILE),
    *(EXIT_FILE, EXIT_ANSWERS_FILE, JUDGED_FILE, f"{REFIT_FOLDER}/{TRAINING_LOG}", TRAINED_FILE),
)
"""What a training leaves in a model's folder; the last file says that the others are complete."""


def take_over(path: Path, copy: Path) -> None:
    """Link the weights in a file, and copy other files, to which a run may append."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        copy.unlink(missing_ok=True)
        with suppress(OSError):  # A file system without hard links, or another one.
            os.link(path, copy)
            return
    files.replace(copy, path.read_bytes())


def trained_in_source(run: Run) -> dict[str, Path]:
    """Return the folders of the networks that the source of a run has trained, by digest.

    They are none for a run of its own, and if the source was moved or removed since.
    """
    source = run.record.source
    if source is None:
        return {}
    folder = Path(source.folder)
    return {
        digest: folder / MODELS_FOLDER / record.id
        for digest, record in read_trained(folder).items()
    }


def take_over_trained(run: JobRun) -> None:
    """Take over the trained networks of the source of a run that lie on the front of the run.

    They keep their weights and their test accuracy, so that the test images are not read again.
    """
    source = run.record.source
    if source is not None and take_over_models(run, run.front["digest"]):
        run.progress.note(
            f"{', '.join(source.models)}: on the front, with the weights that they were trained to "
            f"in {source.folder}"
        )


def take_over_models(run: JobRun, digests: Iterable[str]) -> list[str]:
    """Take over trained networks of the source of a run, and return the names of their folders.

    Args:
        run: the run.
        digests: digests of networks; those that the source has not trained, or that the run has,
            are left out.
    """
    trained, own, source = trained_in_source(run), run.trained, run.record.source
    taken = [trained[digest] for digest in digests if digest in trained and digest not in own]
    for folder in taken:
        for name in _MODEL_FILES:
            if (folder / name).is_file():
                take_over(folder / name, run.path / MODELS_FOLDER / folder.name / name)
    names = [folder.name for folder in taken]
    if names and source is not None:
        source.models = list(dict.fromkeys([*source.models, *names]))
        run.write_trials(run.trials)
        run.save()
    return names
