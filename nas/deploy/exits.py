"""Exits of trained networks: their weights beside those of the network, and their answers."""

from __future__ import annotations

from pathlib import Path

from nas import files
from nas.deploy.answers import find_answers
from nas.deploy.networks import JUDGED_FILE, load_trained, trained_record
from nas.files.documents import to_json
from nas.graph import Graph
from nas.run.answers import EXIT_ANSWERS_FILE
from nas.run.run import Run
from nas.run.trained import MODELS_FOLDER
from nas.space.exits import with_exit
from nas.supernet import checkpoint
from nas.supernet.evaluation import network_logits
from nas.torch_network import Network, to_torch

EXIT_FILE = "exit.safetensors"
"""Name of the file with the trained weights of an exit, in a model's folder."""


def part_of(network: Network, graph: Graph) -> Network:
    """Return the part of a network that a graph is, with copies of its weights.

    It is in evaluation mode, on the device of the network.
    """
    part, tensors = to_torch(graph), network.tensors()
    part.load_state_dict({name: tensors[name] for name in part.tensors()})
    return part.to(next(network.parameters()).device).eval()


def load_with_exit(run: Run, pick: str, *, judged: bool = False) -> Network:
    """Return a trained network of a run with both classifiers, in evaluation mode.

    Args:
        run: the run.
        pick: as for `nas.deploy.networks.load_trained`, of a network with an exit.
        judged: whether it has the weights that were judged, instead of those that are shipped.

    Raises:
        CheckpointError: a file of the model is missing or damaged.
    """
    shipped = load_trained(run, pick)
    model = shipped.judged if judged else shipped
    path = _folder(run, pick) / (EXIT_FILE if model is shipped else JUDGED_FILE)
    whole = to_torch(with_exit(model.architecture).whole)
    own, _ = checkpoint.read(path)
    tensors = {**model.network.tensors(), **own}
    checkpoint.require_tensors(path, tensors, whole.tensors())
    whole.load_state_dict(tensors)
    return whole.eval()


def renew_exit_answers(run: Run, pick: str) -> None:
    """Write what the exit of a trained network answers on the images that judge it.

    Nothing is done if the network has no exit, or the file is there.
    """
    folder, parts = _folder(run, pick), run.images.judging_parts
    if not (folder / EXIT_FILE).is_file() or (folder / EXIT_ANSWERS_FILE).is_file():
        return
    network = run.architecture_of(trained_record(run, pick).architecture)
    early = part_of(load_with_exit(run, pick, judged=True), with_exit(network).prefix)
    logits = network_logits(early, run.data, run.data.part(*parts))
    answers = find_answers(logits, run.data, parts, pictures=False)
    files.replace(folder / EXIT_ANSWERS_FILE, to_json(answers))


def _folder(run: Run, pick: str) -> Path:
    return run.path / MODELS_FOLDER / trained_record(run, pick).id
