"""Trained networks of runs as weights from which supernets start: `[[space]] within`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from nas.data import ImageDataset
from nas.deploy.networks import JUDGED_FILE, WEIGHTS_FILE, load_trained, trained_record
from nas.errors import JobFileError, NasError
from nas.files.names import MAX_NAME_CHARACTERS, name_like
from nas.files.paths import without_folders
from nas.pretrained import CONVENTIONS, Origin, PublishedWeights
from nas.pretrained.weights_file import WeightsFile
from nas.run.run import Run
from nas.run.trained import MODELS_FOLDER
from nas.space import Architecture, Reference, SearchSpace
from nas.space.restriction import WITHIN


def read_trained_weights(network: str, space: SearchSpace) -> PublishedWeights:
    """Return the weights of a trained network of a run.

    A network that was refitted gives its weights before the refit: those after it have learned the
    images by which a job with the same images judges networks.

    Args:
        network: `RUN:ID`, where the ID is as `nas retrain` takes it.
        space: the space that a job names. The network must be of the same table of stages; its
            images and its classes may be others.

    Raises:
        JobFileError: there is no such run, it has no such network or has not trained it, or the
            network is of another space.
    """
    folder, _, pick = network.rpartition(":")
    run = Run(Path(folder))
    try:
        data = run.record.data
        record = trained_record(run, pick)
        model = load_trained(run, pick).judged
    except NasError as error:
        raise _error(network, error.message, error.remedy) from error
    own = model.architecture.space
    if _table_digest(own) != _table_digest(space):
        raise _error(
            network,
            f"that network is of the space {own.name}, and the stages of {space.name} are others.",
            f"Name its space: {run.path / 'spaces' / f'{own.name}.py'}.",
        )
    path = run.path / MODELS_FOLDER / record.id / (JUDGED_FILE if record.refit else WEIGHTS_FILE)
    content = path.read_bytes()
    preprocessing = model.preprocessing
    return PublishedWeights(
        file=WeightsFile(path, hashlib.sha256(content).hexdigest(), len(content), False, {}),
        reference=_row(f"{run.record.name}_{record.id}", model.architecture, space),
        architecture=model.architecture,
        tensors=model.network.tensors(),
        sources={},
        conventions=CONVENTIONS["torch"],
        known_by="",
        also=(),
        mean=preprocessing.mean,
        std=preprocessing.std,
        license=None,
        differences=(),
        origin=Origin(
            without_folders(network),
            "" if data is None else without_folders(data.source),
            preprocessing.classes,
        ),
    )


def require_channels(weights: PublishedWeights, data: ImageDataset) -> None:
    """Raise JobFileError for a trained network that reads images with other channels."""
    own = weights.architecture.space.channels
    if weights.origin is not None and own != data.channels:
        raise _error(
            weights.origin.source,
            f"that network reads images of {own} channel(s), and those of this job have "
            f"{data.channels}.",
            "Name a network for such images. Their size and their classes may be others.",
        )


def _error(network: str, message: str, remedy: str) -> JobFileError:
    return JobFileError(f'[[space]] within = "{network}": {message}', remedy=remedy)


def _table_digest(space: SearchSpace) -> str:
    """Return a digest of the table of a space, whatever is left of it and whatever its images."""
    table = replace(
        space.whole,
        name="table",
        references=(),
        resolutions=(1.0,),
        dtypes=("float32",),
        exit=None,
    )
    return table.adapt(image_size=224, channels=3, classes=10).digest


def _row(name: str, architecture: Architecture, space: SearchSpace) -> Reference:
    """Return the row of a trained network in a space.

    Its share of the image size is the one of the space that is nearest to its own.
    """
    own = architecture.space
    fixed = {key: left[0] for key, left in own.narrowed.items() if len(left) == 1}
    choices = {**fixed, **architecture.choices}
    share = architecture.graph.input_shape[1] / own.image_size
    nearest = min(space.resolutions, key=lambda each: abs(each - share))
    name = name_like(name[len(WITHIN) - MAX_NAME_CHARACTERS :])
    return space.with_trained(name, choices, nearest).reference_row(name)
