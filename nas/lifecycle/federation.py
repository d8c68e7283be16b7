"""Federated fine-tuning: an app for Flower from an exported model, and its weights taken back.

The app runs in an environment of its own, without this package: Flower needs older versions of
libraries than this package is tested with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, JsonValue

from nas import errors, files
from nas.data import ImageDataset, image_formats, image_reading
from nas.data.sources import base, image_folder, tree
from nas.deploy import script_steps
from nas.deploy.answers import find_answers
from nas.deploy.card import ModelOrigin
from nas.deploy.confidence import calibrate
from nas.deploy.export import export_model
from nas.deploy.exporting import TABLE_FORMATS, set_threshold
from nas.deploy.folder import PREPROCESSING_FILE, ModelFolder, digest
from nas.deploy.int8 import logits_as_chosen
from nas.deploy.model import TrainedModel
from nas.deploy.networks import JUDGED_FILE, read_network
from nas.deploy.requests import ExportRequest
from nas.deploy.saved_model import SOURCE_FILE, WEIGHTS_FILE, load_model, write_model
from nas.deploy.scripts import standalone
from nas.deploy.torch_source import TorchSource
from nas.deploy.verify import load_data
from nas.display.progress import Advance
from nas.errors import CheckpointError, DataError, RequestError
from nas.files import foreign
from nas.files.documents import Digest, Document, Format, to_json
from nas.lifecycle.comparison import Judged
from nas.lifecycle.version import ModelVersion, Replacement
from nas.run.answers import ANSWERS_FILE
from nas.run.model_card import ModelCard
from nas.supernet import checkpoint

APP_FILES = {
    "federated_client.py": "client_app.py",
    "federated_server.py": "server_app.py",
    "federated_start.py": "start.py",
}
"""Files of this folder, and what they are called in an app."""

REQUIREMENTS = ("flwr>=1.42,<2", "numpy", "pillow>=10.1", "safetensors", "torch")
"""What the environment of an app needs. Secure aggregation is in no fixed interface of Flower."""

_STEPS = "nas.lifecycle.federated_steps"
"""What the files of an app import as `steps`."""

_STEPS_MODULES = (
    *(errors, foreign, image_formats, base, tree, image_folder),
    *(image_reading, script_steps),
)
"""Modules whose texts `steps` holds: a client reads images and folders as a job does."""

_STATISTICS = (".running_mean", ".running_var")
"""Endings of the names of statistics, which clients with noise or masks do not send."""

_FACTS = (
    *("data", "statements", "image_changes", "latencies_us"),
    *("search_device", "search_runtime", "search_dtype"),
)
"""What the card says of the network with any weights."""

_PROJECT = """\
[project]
name = "federated-{name}"
version = "1.0.0"
description = "Fine-tunes network {name} on images that stay where they are."
dependencies = [{requirements}]

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
model = "{model}"
# The server waits for so many clients before it starts.
clients = {clients}
rounds = 10
# Passes over the images of each client in a round.
epochs = 1
learning-rate = 0.01
# FedProx: how much weights that leave those of the server cost. FedAvg has 0.
proximal-mu = 0.0
# Differential privacy: the noise over the largest change of a client, which is clipped. 0 has none.
noise = 0.0
clip = 1.0
# Whether the server sees the sum of the weights alone.
secure-aggregation = false
# How long the server waits for the clients of a round.
round-seconds = 3600
# File of the server with the weights after the last round, from which it continues.
weights = "federated.safetensors"
"""


class FederatedRecord(Document):
    """The record in the weights that the server of an app stores.

    Attributes:
        model: SHA-256 of the `network.safetensors` of the model.
        rounds: number of rounds that are done.
        settings: settings of the app, by the names in its `pyproject.toml`.
    """

    schema_version: Literal[1] = Field(alias="schema")
    model: Digest
    rounds: Annotated[int, Field(ge=1)]
    settings: dict[str, JsonValue]


FEDERATED = Format(
    FederatedRecord,
    "the weights of federated fine-tuning",
    CheckpointError,
    "Copy federated.safetensors again from the folder of the server.",
)


def write_app(model: Path, clients: int, out: Path) -> None:
    """Write an app for Flower that fine-tunes an exported model on images of its clients.

    Args:
        model: folder of the model, with the files of format `torch`.
        clients: number of clients for which its server waits.
        out: folder of the app, which must be new.

    Raises:
        RequestError: the model was not exported as `torch`, its folder lacks the weights that were
            judged, there are less than two clients, or the folder has something in it.
        ExportError, RunFolderError: a file of the model is changed, or nothing was exported.
    """
    folder = _torch_folder(model)
    if clients < 2:
        raise RequestError(f"{clients} clients share nothing.", remedy="Give at least two.")
    here = Path(__file__).parent
    steps = standalone(here / "federated_steps.py", *_STEPS_MODULES)
    texts = {own: (here / name).read_text(encoding="utf-8") for name, own in APP_FILES.items()}
    texts = {name: text.replace(_STEPS, "steps") for name, text in texts.items()}
    texts["steps.py"] = steps
    texts["pyproject.toml"] = _PROJECT.format(
        name=folder.card.id,
        requirements=", ".join(f'"{each}"' for each in REQUIREMENTS),
        model=digest(folder.path / WEIGHTS_FILE),
        clients=clients,
    )
    with files.new_folder(out) as staging:
        for name in (SOURCE_FILE, WEIGHTS_FILE, PREPROCESSING_FILE):
            shutil.copy2(folder.path / name, staging / name)
        if folder.card.refit is not None:
            write_model(judged_model(folder), staging / WEIGHTS_FILE)
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")


def take_back(
    model: Path,
    weights: Path,
    out: Path,
    *,
    max_negative_flips: float | None = None,
    progress: Advance | None = None,
) -> ModelVersion:
    """Export a model with the weights of its federated fine-tuning, as its next version.

    The temperature is fitted again, and the files are quantised and verified as `nas export` does.
    The norms stay those of the clients' images: those of the model's own images would undo most of
    what the clients taught it.

    Args:
        model: folder of the model that the app was made from, as it was exported.
        weights: what the server of the app stored.
        out: folder of the new model, which must be new.
        max_negative_flips: share of the images that judged the model that may be right with it and
            wrong with the new one, as a fraction; by default any.
        progress: receives the steps of the export.

    Raises:
        RequestError: there are no weights, they are of another model, or the folder exists.
        CheckpointError: the file of the weights is damaged.
        DataError: the images of the model are not here, or others; or those of no class with which
            its threshold was chosen are not.
        ExportError: a format could not be exported, or too many images are wrong now.
    """
    folder = _torch_folder(model)
    if out.exists():
        raise RequestError(f"{out} exists.", remedy="Give a new folder with --out.")
    if not weights.is_file():
        raise RequestError(f"{weights} is no file.", remedy="Name what the server stored.")
    replacement = Replacement(model, max_negative_flips=max_negative_flips)
    card, trained = folder.card, judged_model(folder)
    record = _load_weights(trained, weights, digest(folder.path / WEIGHTS_FILE))
    data = _data_of(card, trained.preprocessing.reading.decoded_size, folder)
    calibration = calibrate(trained.network, data)
    parts = card.data.judging_parts
    answers = find_answers(
        logits_as_chosen(trained, data)[0](data.part(*parts)), data, parts, pictures=False
    )
    replacement.require_flips(Judged(card.id, answers, card.data))
    formats = [each.format for each in card.files if each.format not in TABLE_FORMATS]
    request = ExportRequest(formats=formats).or_else(ExportRequest.of_card(card))
    threshold = set_threshold(trained, data, request)
    origin = ModelOrigin(
        id=card.id,
        calibration=calibration,
        threshold=threshold,
        recipe={**card.recipe, "federated": {**record.settings, "rounds": record.rounds}},
        threads=next((each.latency.threads for each in card.files if each.latency), 1),
        answers=answers,
        **{name: getattr(card, name) for name in _FACTS},
    )
    result = ModelFolder(out)
    export_model(trained, data, result, request, origin, progress)
    files.replace(out / ANSWERS_FILE, to_json(answers))
    return replacement.write_version(result)


def judged_model(folder: ModelFolder) -> TrainedModel:
    """Return a model with the weights that did not learn the images that judge it.

    A fine-tuning starts from these, so that the same images can judge what it leads to.

    Raises RequestError if the folder lacks them.
    """
    model, path = load_model(folder.path), folder.path / JUDGED_FILE
    if folder.card.refit is None:
        return model
    if not path.is_file():
        raise RequestError(
            f"{folder.path} has no {JUDGED_FILE}, from which a fine-tuning starts.",
            remedy="Copy the file from the folder models/<id> of the run.",
        )
    network = read_network(path, model.architecture)
    return TrainedModel(model.architecture, network, model.preprocessing)


def _data_of(card: ModelCard, image_size: int, folder: ModelFolder) -> ImageDataset:
    """Return the images of a model. Raises DataError if those of its threshold are not here."""
    expected = card.threshold.unknown if card.threshold else 0
    data = load_data(card.data, image_size, folder.path, with_unknown=expected > 0)
    actual = 0 if data.unknown is None else len(data.unknown)
    if actual < expected:
        raise DataError(
            f"The threshold of {card.id} was chosen with {expected} images of no class, and "
            f"{actual} are here.",
            remedy="Name the folder models/<id> of its run, in the folder where the job was run.",
        )
    return data


def _torch_folder(model: Path) -> ModelFolder:
    """Return the folder of a model. Raises RequestError if it has no files of format `torch`."""
    folder = ModelFolder(model)
    folder.require_unchanged()
    if not (folder.path / WEIGHTS_FILE).is_file():
        raise RequestError(
            f"{model} has no {WEIGHTS_FILE}.",
            remedy="Export the model with `nas export --format torch`.",
        )
    return folder


def _load_weights(model: TrainedModel, path: Path, expected: str) -> FederatedRecord:
    """Give a model the weights that a server stored, and return their record.

    Raises:
        RequestError: they are of another model than that with the digest `expected`.
        CheckpointError: the file is damaged.
    """
    tensors, text = checkpoint.read_tensors(path, FEDERATED)
    record = FEDERATED.parse(text.encode(), f"The record in {path}")
    if record.model != expected:
        raise RequestError(
            f"{path} has weights of another model.", remedy="Name the model of the app."
        )
    state = model.network.tensors()
    names = {
        key: name
        for key, name in TorchSource(model.network.graph).tensor_names.items()
        if name in tensors or not name.endswith(_STATISTICS)
    }
    checkpoint.require_tensors(path, tensors, {name: state[key] for key, name in names.items()})
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FEDERATED.failure(f"{path}: tensor {name!r} has values that are not finite")
    model.network.load_state_dict(state | {key: tensors[name] for key, name in names.items()})
    return record
