"""The networks of a run in torch, with the weights of its supernets or with their own."""

from __future__ import annotations

from pathlib import Path

from nas.deploy.folder import PREPROCESSING_FILE
from nas.deploy.model import TrainedModel
from nas.errors import CheckpointError, RequestError, RunFolderError
from nas.files.documents import shortened
from nas.run.model_card import PREPROCESSING
from nas.run.run import Run
from nas.run.trained import MODELS_FOLDER, TRAINED, TRAINED_FILE
from nas.supernet import checkpoint
from nas.supernet.evaluation import calibrated_state
from nas.supernet.weights import Supernet
from nas.torch_network import Network, to_torch

WEIGHTS_FILE = "weights.safetensors"
"""Name of the file with the trained weights, in a model's folder."""


def load_supernet(run: Run, space: str) -> Supernet:
    """Return the trained supernet of a space.

    Raises:
        RunFolderError: the run does not hold it.
        CheckpointError: its file is damaged, or of another space.
    """
    if not run.has_supernet(space):
        raise RunFolderError(
            f"{run.path} has no trained supernet of space {shortened(space)}.",
            remedy=f"Run its job again, or copy supernets/{space} from where it was run; "
            "`nas retrain` can do without it, with --from-scratch.",
        )
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
    folder = model_folder(run, pick)
    record = TRAINED.read(folder / TRAINED_FILE)
    architecture = run.architecture_of(record.architecture)
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
    records = {record.id: record for record in run.trained.values()}
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
