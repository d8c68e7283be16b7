"""Training of finalists: networks of a run are trained to the end, and tested once.

Each trained network has a folder `models/<id>/` in the run folder, with its weights, its training
log and the record `trained.json`.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import nas
from nas import files
from nas.data import ImageDataset, Images
from nas.deploy.folder import ARCHITECTURE_FILE, PREPROCESSING_FILE, ModelFolder
from nas.deploy.model import TrainedModel, preprocessing_of
from nas.documents import SCHEMA, shortened, to_json
from nas.errors import CheckpointError, RequestError
from nas.run.model_card import PREPROCESSING
from nas.run.run import Run
from nas.run.trained import (
    MODELS_FOLDER,
    TRAINED,
    TRAINED_FILE,
    SplitAccuracy,
    TrainedRecord,
    read_trained,
)
from nas.space import Architecture, load_space
from nas.space.library import find_reference
from nas.space.records import ArchitectureRecord
from nas.supernet import checkpoint
from nas.supernet.distillation import Teacher
from nas.supernet.evaluation import accuracy_by_class, calibrated_state, evaluate, predict_network
from nas.supernet.settings import TrainingSettings
from nas.supernet.standalone import NetworkProgress, train_network
from nas.supernet.training import CHECKPOINT_FILE
from nas.supernet.weights import Supernet
from nas.torch_device import resolve_device
from nas.torch_network import Network, to_torch

WEIGHTS_FILE = "weights.safetensors"
"""Name of the file with the trained weights, in a model's folder."""

Progress = Callable[[NetworkProgress], None]


@dataclass(frozen=True, eq=False)
class Retraining:
    """What all finalists of a run are trained with.

    Attributes:
        run: path of the run folder.
        data: the images of the run.
        settings: settings of the training, see `finetuning_settings`.
        seed: seed of the order of the images, the augmentation and newly drawn weights.
        supernets: the run's supernets by space; those that are missing start and teach nothing.
        from_scratch: whether all networks start with newly drawn weights.
    """

    run: Path
    data: ImageDataset
    settings: TrainingSettings
    seed: int
    supernets: Mapping[str, Supernet]
    from_scratch: bool = False

    @cached_property
    def teacher(self) -> tuple[str, Teacher] | None:
        """The most accurate of the supernets' largest networks, and its space; None without any.

        All networks have the same teacher, so that those of different spaces can be compared.
        """
        accuracies = {
            name: evaluate(supernet, [supernet.space.largest], self.data)[0]
            for name, supernet in self.supernets.items()
        }
        if not accuracies:
            return None
        best = max(accuracies, key=lambda name: accuracies[name])
        return best, Teacher.of_supernet(self.supernets[best], self.data)


def finetuning_settings(settings: TrainingSettings, epochs: int) -> TrainingSettings:
    """Return the settings with which finalists are trained, from those of the supernets."""
    return replace(settings, epochs=epochs, seconds=None)


def retrain(
    run: Run,
    pick: str,
    *,
    epochs: int | None = None,
    from_scratch: bool = False,
    progress: Progress | None = None,
) -> TrainedRecord:
    """Train a network of a run to the end, or resume an interrupted training.

    The network starts with the supernet's weights, and learns from the labels and from the largest
    network of the run's supernets. The test images are read once, at the end: a network that is
    trained already is not trained or tested again, and its record is returned.

    Args:
        run: the run.
        pick: the beginning of the network's digest, such as an `id` of `run.front`.
        epochs: passes over the training images; by default those of the run's plan.
        from_scratch: whether the network starts with newly drawn weights.
        progress: called after every step.

    Raises:
        RequestError: the run has no such network, or it was trained in another way.
        RunFolderError: the run has no supernet of the network's space.
        DataError: the images of the run are missing, or others.
        TrainingError: the training diverged.
    """
    name, architecture = finalist(run, pick)
    record = trained_record(run.path, name, architecture, epochs, from_scratch=from_scratch)
    if record is not None:
        return record
    setup = prepare(run, [architecture.space.name], epochs, from_scratch=from_scratch)
    return train_model(setup, name, architecture, progress)


def finalist(run: Run, pick: str) -> tuple[str, Architecture]:
    """Return the name of a network's folder in `models`, and the network.

    The name is the network's ID, or the name of the folder that it was trained in before.

    Args:
        run: the run.
        pick: the beginning of the network's digest.

    Raises:
        RequestError: the run has no such network, or several.
    """
    architecture = run.architecture(pick)
    record = read_trained(run.path).get(architecture.digest)
    if record is not None:
        return record.id, architecture
    rows = run.trials
    return str(rows[rows["digest"] == architecture.digest].iloc[0]["id"]), architecture


def published_network(run: Run, name: str) -> Architecture:
    """Return a published network for the images of a run.

    Raises:
        SpaceError: neither a space of the run nor one that ships has a network of this name.
    """
    for space in map(run.space, run.record.spaces or {}):
        if name in [reference.name for reference in space.references]:
            return space.reference(name)
    space, _ = find_reference(name)
    return space.adapt(**run.space_settings).reference(name)


def prepare(
    run: Run, spaces: Collection[str], epochs: int | None = None, *, from_scratch: bool = False
) -> Retraining:
    """Open what the finalists of a run are trained with.

    Args:
        run: the run.
        spaces: spaces of the run whose supernets finalists start from; the other supernets are used
            as teachers if the run has them.
        epochs, from_scratch: see `retrain`, also for the errors.
    """
    plan = run.record.plan
    trained = [summary.epochs for summary in run.record.supernets.values()]
    epochs = epochs or (plan.retrain_epochs if plan else 0) or math.ceil(max(trained, default=0))
    names = {field.name for field in fields(TrainingSettings)}
    given: dict[str, Any] = {
        name: value
        for name, value in run.record.job.training.items()
        if name in names and value not in (None, "auto")
    }
    if run.record.image_changes and run.record.image_changes.experiment:
        given["flip"] = run.record.image_changes.flip
    epochs = epochs or round(TrainingSettings.epochs)
    settings = TrainingSettings(**{**given, "epochs": epochs})
    device = resolve_device(settings.device)
    supernets = {
        name: run.supernet(name).to(device)
        for name in run.record.spaces or {}
        if run.has_supernet(name) or (name in spaces and not from_scratch)
    }
    return Retraining(
        run.path,
        run.data,
        finetuning_settings(settings, epochs),
        run.record.job.seed,
        supernets,
        from_scratch,
    )


def trained_record(
    run: Path,
    name: str,
    architecture: Architecture,
    epochs: int | None = None,
    *,
    from_scratch: bool = False,
) -> TrainedRecord | None:
    """Return the record of a network that is trained already; None if it is not.

    Args:
        run: path of the run folder.
        name: name of the network's folder in `models`.
        architecture: the network.
        epochs: passes over the images that are asked for; None accepts any.
        from_scratch: whether a training from newly drawn weights is asked for.

    Raises:
        RequestError: the folder holds another network, or one that was trained in another way.
    """
    path = run / MODELS_FOLDER / name / TRAINED_FILE
    ModelFolder(path.parent).restore()
    if not path.is_file():
        return None
    record = TRAINED.read(path)
    asked = {"digest": architecture.digest, "epochs": epochs or record.epochs}
    if from_scratch:
        asked["start"] = "scratch"
    for key, value in asked.items():
        stored = getattr(record, key)
        if stored != value:
            raise RequestError(
                f"{path.parent} holds a network with {key} = {stored}, not {value}.",
                remedy="Move the folder away to train again. The test images are then read again, "
                "so do not choose by their accuracy.",
            )
    return record


def train_model(
    setup: Retraining, name: str, architecture: Architecture, progress: Progress | None = None
) -> TrainedRecord:
    """Train a network to the end, test it once, and write its folder. See `retrain`.

    Args:
        setup: what the run's finalists are trained with.
        name: name of the network's folder in `models`.
        architecture: the network.
        progress: called after every step.
    """
    record = trained_record(setup.run, name, architecture)
    if record is not None:
        return record
    folder = setup.run / MODELS_FOLDER / name
    data, settings = setup.data, setup.settings
    supernet = setup.supernets.get(architecture.space.name)
    if supernet is not None and supernet.space.digest != architecture.space.digest:
        supernet = None  # A published network of a space that has changed since.
    supernet_accuracy = start = None
    if supernet is not None:
        (supernet_accuracy,) = evaluate(supernet, [architecture], data, "holdout")
        if not setup.from_scratch:
            start = calibrated_state(supernet, architecture.graph, data)
    network, seconds = train_network(
        architecture,
        data,
        folder,
        settings,
        seed=setup.seed,
        start=start,
        teacher=setup.teacher[1] if setup.teacher else None,
        progress=progress,
    )
    _save_network(folder, architecture, network, setup)
    record = TrainedRecord(
        schema=SCHEMA,
        id=name,
        space=architecture.space.name,
        digest=architecture.digest,
        architecture=ArchitectureRecord(**architecture.to_json()),
        start="scratch" if start is None else "supernet",
        supernet_accuracy=supernet_accuracy,
        holdout=_split_accuracy(network, data, data.holdout),
        test=_split_accuracy(network, data, data.test),
        epochs=round(settings.epochs),
        seed=setup.seed,
        training=settings.identity(),
        teacher=f"largest of {setup.teacher[0]}" if setup.teacher else None,
        data_digest=data.digest,
        seconds=seconds,
        versions={
            "python": platform.python_version(),
            "hardware-nas": nas.__version__,
            "torch": torch.__version__,
        },
    )
    files.replace(folder / TRAINED_FILE, to_json(record))
    (folder / CHECKPOINT_FILE).unlink()
    return record


def _save_network(
    folder: Path, architecture: Architecture, network: Network, setup: Retraining
) -> None:
    """Write the weights, and what it takes to classify images with them."""
    record = {
        "space": architecture.space.name,
        "settings": architecture.space.settings,
        "space_digest": architecture.space.digest,
        "network": architecture.digest,
        "data_digest": setup.data.digest,
        "training": setup.settings.identity(),
        "seed": setup.seed,
    }
    checkpoint.write(folder / WEIGHTS_FILE, network.tensors(), record)
    preprocessing = preprocessing_of(setup.data, network.graph.input_shape[1])
    files.replace(folder / PREPROCESSING_FILE, to_json(preprocessing))
    text = json.dumps(architecture.to_json(), indent=1)
    files.replace(folder / ARCHITECTURE_FILE, f"{text}\n")


def _split_accuracy(network: Network, data: ImageDataset, images: Images) -> SplitAccuracy:
    predictions = predict_network(network, data, images)
    accuracy, by_class = accuracy_by_class(predictions, images.labels, data.classes)
    return SplitAccuracy(accuracy=accuracy, images=len(images), class_accuracy=by_class)


def load_trained(run: Run, pick: str) -> TrainedModel:
    """Return a trained network of a run, with what it takes to classify images with it.

    Args:
        run: the run.
        pick: the beginning of the network's digest, or the name of a published network.

    Raises:
        RequestError: the run has no such network, or it is not trained.
        CheckpointError: a file of the model is missing or damaged.
    """
    folder = model_folder(run, pick)
    record = TRAINED.read(folder / TRAINED_FILE)
    if record.space in (run.record.spaces or {}):
        space = run.space(record.space)
    else:  # A published network of another space that ships with the package.
        space = load_space(record.space, **run.space_settings)
    architecture = space.from_json(record.architecture.model_dump())
    if architecture.digest != record.digest:
        raise CheckpointError(
            f"{folder} was trained with another version of space {record.space}.",
            remedy="Move the folder away, and train the network again with `nas retrain`.",
        )
    path = folder / WEIGHTS_FILE
    network = to_torch(architecture)
    tensors, _ = checkpoint.read(path)
    checkpoint.require_tensors(path, tensors, network.tensors())
    network.load_state_dict(tensors)
    return TrainedModel(architecture, network, PREPROCESSING.read(folder / PREPROCESSING_FILE))


def model_folder(run: Run, pick: str) -> Path:
    """Return the folder of a trained network of a run. See `load_trained`."""
    records = {record.id: record for record in read_trained(run.path).values()}
    names = (
        [pick]
        if pick in records
        else [name for name, record in records.items() if pick and record.digest.startswith(pick)]
    )
    if len(names) != 1:
        trained = f"Trained are: {', '.join(records)}." if records else ""
        raise RequestError(
            f"{run.path} has {len(names) or 'no'} trained networks called {shortened(pick)}.",
            remedy=f"Train one with `nas retrain {run.path} --pick ID`. {trained}".rstrip(),
        )
    return run.path / MODELS_FOLDER / names[0]
