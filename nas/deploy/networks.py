"""The networks of a run in torch, with the weights of its supernets or with their own."""

from __future__ import annotations

from pathlib import Path

from nas.deploy.folder import PREPROCESSING_FILE
from nas.deploy.model import TrainedModel
from nas.errors import CheckpointError, RequestError, RunFolderError
from nas.files.documents import shortened
from nas.run.model_card import PREPROCESSING
from nas.run.run import Run
from nas.run.trained import MODELS_FOLDER, TrainedRecord
from nas.space import Architecture
from nas.supernet import checkpoint
from nas.supernet.evaluation import calibrated_state
from nas.supernet.weights import Supernet
from nas.torch_network import Network, to_torch

WEIGHTS_FILE = "weights.safetensors"
"""Name of the file with the trained weights, in a model's folder. They are those that are shipped.
"""

JUDGED_FILE = "judged.safetensors"
"""Name of the file with the weights that were judged, in the folder of a model that was refitted.
Those of an exit are among them."""


def require_supernet(run: Run, space: str) -> None:
    """Raise RunFolderError unless a run holds the trained supernet of a space."""
    if not run.has_supernet(space):
        raise RunFolderError(
            f"{run.path} has no trained supernet of space {shortened(space)}.",
            remedy=f"Run its job again, or copy supernets/{space} from where it was run; "
            "`nas retrain` can do without it, with --from-scratch.",
        )


def load_supernet(run: Run, space: str) -> Supernet:
    """Return the trained supernet of a space.

    Raises:
        RunFolderError: the run does not hold it.
        CheckpointError: its file is damaged, or of another space.
    """
    require_supernet(run, space)
    return Supernet.load(run.supernet_folder(space), run.space(space))


def load_network(run: Run, digest: str) -> Network:
    """Return a network of a run as a `torch.nn.Module` in evaluation mode.

    Its weights are those of `nas retrain`, if it was trained to the end. Otherwise they are those
    of the supernet, with statistics of the batch norms computed on training images.

    Args:
        run: the run.
        digest: the beginning of its digest, such as an `id` of `Run.trials`.

    Raises the errors of `Run.architecture`, `Run.data` and `load_supernet`.
    """
    architecture = run.architecture(digest)
    if architecture.digest in run.trained:
        return load_trained(run, architecture.digest).network
    supernet = load_supernet(run, architecture.space.name)
    network = to_torch(architecture)
    network.load_state_dict(calibrated_state(supernet, architecture.graph, run.data))
    return network.eval()


def load_trained(run: Run, pick: str) -> TrainedModel:
    """Return a trained network of a run, with what it takes to classify images with it.

    Args:
        run: the run.
        pick: the beginning of the network's digest, or the name of a published network.

    Raises:
        RequestError: the run has no such network, or it is not trained.
        CheckpointError: a file of the model is missing or damaged.
    """
    record = trained_record(run, pick)
    folder = run.path / MODELS_FOLDER / record.id
    architecture = run.architecture_of(record.architecture)
    if architecture.digest != record.digest:
        raise CheckpointError(
            f"{folder} was trained with another version of space {record.space}.",
            remedy="Move the folder away, and train the network again with `nas retrain`.",
        )
    preprocessing = PREPROCESSING.read(folder / PREPROCESSING_FILE)
    judged = None
    if record.refit is not None:
        network = read_network(folder / JUDGED_FILE, architecture)
        judged = TrainedModel(architecture, network, preprocessing)
    network = read_network(folder / WEIGHTS_FILE, architecture)
    return TrainedModel(architecture, network, preprocessing, judged=judged)


def read_network(path: Path, architecture: Architecture) -> Network:
    """Return a network with the weights in a file, which may have those of its exit, too.

    Raises CheckpointError if the file is missing, damaged, or of another network.
    """
    network = to_torch(architecture)
    tensors, _ = checkpoint.read(path)
    own = network.tensors()
    checkpoint.require_tensors(path, tensors, own)
    network.load_state_dict({name: tensors[name] for name in own})
    return network


def is_trained(run: Run, pick: str) -> bool:
    """Return whether a network of a run was trained to the end. See `load_trained`."""
    return bool(_trained_records(run, pick))


def trained_record(run: Run, pick: str) -> TrainedRecord:
    """Return the record of a trained network of a run.

    Raises RequestError if no trained network has the digest or the name, or if several have it.
    """
    records = _trained_records(run, pick)
    if len(records) != 1:
        names = ", ".join(record.id for record in run.trained.values())
        trained = f"Trained are: {names}." if names else ""
        raise RequestError(
            f"{run.path} has {len(records) or 'no'} trained networks called {shortened(pick)}.",
            remedy=f"Train one with `nas retrain {run.path} --pick ID`. {trained}".rstrip(),
        )
    return records[0]


def _trained_records(run: Run, pick: str) -> list[TrainedRecord]:
    """Return the records of the trained networks that a pick may mean."""
    records = list(run.trained.values())
    named = [record for record in records if record.id == pick]
    return named or [record for record in records if pick and record.digest.startswith(pick)]
