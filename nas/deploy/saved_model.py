"""Trained models in files of their own: weights as safetensors, and a plain `nn.Module`.

`network.safetensors` holds the weights, and in its metadata the architecture and the preprocessing,
so that `load_model` makes a `TrainedModel` of it. `network.py` beside it is Python source with one
class, which torch runs without this package.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from nas import files
from nas.deploy.model import TrainedModel, preprocessing_steps
from nas.deploy.torch_source import TorchSource
from nas.errors import CheckpointError, RequestError, SpaceError
from nas.files.paths import expanded
from nas.run.model_card import NETWORK, NetworkRecord
from nas.run.trained import MODELS_FOLDER
from nas.space import Architecture, SearchSpace, load_space
from nas.space.library import load_shipped
from nas.supernet import checkpoint
from nas.torch_network import Network, to_torch

WEIGHTS_FILE = "network.safetensors"
SOURCE_FILE = "network.py"

_MAX_LINE_LENGTH = 88
"""Longest line of the source: what formatters of Python use unless told otherwise."""


def write_model(model: TrainedModel, path: Path) -> None:
    """Write the weights of a model to `path`, and its source to `network.py` in the same folder."""
    architecture, source = model.architecture, TorchSource(model.network.graph)
    record = NetworkRecord.model_validate(
        {
            "schema": 3,
            "architecture": architecture.to_json(),
            "digest": architecture.digest,
            "settings": {
                "image_size": architecture.space.image_size,
                "channels": model.preprocessing.channels,
                "classes": len(model.preprocessing.classes),
            },
            "preprocessing": model.preprocessing,
        }
    )
    state = model.network.tensors()
    tensors = {name: state[key].detach().contiguous() for key, name in source.tensor_names.items()}
    text = record.model_dump_json(by_alias=True, exclude={"preprocessing": {"min_confidence"}})
    files.replace(path, save(tensors, {checkpoint.RECORD_KEY: text}))
    files.replace(path.with_name(SOURCE_FILE), _source_file(model, source))


def load_model(path: Path | str, *, space: SearchSpace | None = None) -> TrainedModel:
    """Return a trained model from its folder, with the weights that are shipped.

    Args:
        path: folder with `network.safetensors`, or that file.
        space: search space of the network. None means the run's copy of the space's file if the
            folder is `models/<id>` in a folder with `run.json`, and otherwise the space that ships
            with this package.
            The copy is code: load only models of runs that you trust.

    Raises:
        CheckpointError: there is no such file, or it is damaged or of another network.
        RequestError: the space is unknown here.

    Example:
        model = nas.load_model("results/quickstart/models/jf2a")
        logits = model.logits(images)
    """
    path = Path(expanded(path))
    path = path / WEIGHTS_FILE if path.is_dir() else path
    tensors, record = _read(path)
    try:
        space = space or _space_of(record, path)
        architecture = space.from_json(record.architecture.model_dump())
    except SpaceError as error:
        raise RequestError(
            f"{path}: {error.message}",
            remedy="Load the space with nas.load_space, and give it as space=.",
        ) from error
    return TrainedModel(
        architecture, _network(architecture, tensors, record, path), record.preprocessing
    )


def _read(path: Path) -> tuple[dict[str, Tensor], NetworkRecord]:
    if not path.is_file():
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}.",
            remedy="Export the model with `nas export --format torch`.",
        )
    tensors, text = checkpoint.read_tensors(path, NETWORK)
    return tensors, NETWORK.parse(text.encode(), f"The record in {path}")


def _space_of(record: NetworkRecord, path: Path) -> SearchSpace:
    """Return the space of a network from the run around the model's folder, or by its name."""
    name, settings = record.architecture.space, record.settings.model_dump()
    models = path.resolve().parent.parent
    copy = models.parent / "spaces" / f"{name}.py"
    # A copy of the folder may lie anywhere, and what lies beside it may be anyone's.
    is_in_run = models.name == MODELS_FOLDER and (models.parent / "run.json").is_file()
    if is_in_run and copy.is_file():
        return load_space(copy, **settings)
    return load_shipped(name, **settings)


def _network(
    architecture: Architecture, tensors: dict[str, Tensor], record: NetworkRecord, path: Path
) -> Network:
    if architecture.digest != record.digest:
        raise CheckpointError(
            f"{path} is of network {record.digest}, but space '{architecture.space.name}' makes "
            f"{architecture.digest} of its choices.",
            remedy="Give the space of the run that trained it as space=.",
        )
    network = to_torch(architecture)
    names = TorchSource(network.graph).tensor_names
    state = {key: tensors[name] for key, name in names.items() if name in tensors}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise NETWORK.failure(f"{path} does not fit its network: {reason[:300]}") from None
    return network


def _source_file(model: TrainedModel, source: TorchSource) -> str:
    """Return the content of `network.py`."""
    values = model.preprocessing
    channels, size = values.channels, values.image_size
    space = model.architecture.space.name
    steps = "\n".join(
        textwrap.fill(step, _MAX_LINE_LENGTH, initial_indent="- ", subsequent_indent="  ")
        for step in preprocessing_steps(values)
    )
    functions = "\nfrom torch.nn import functional as F" if "F." in source.class_source else ""
    return f'''"""Network {model.architecture.digest} of search space {space}.

It needs torch and safetensors:

    import network

    model = network.load("{WEIGHTS_FILE}")
    logits = model(images)  # N x {len(values.classes)}, from N x {channels} x {size} x {size}

An image file becomes the input in these steps:

{steps}

The largest logit has the position of the class.
"""

import torch
from safetensors.torch import load_file
from torch import nn{functions}

IMAGE_SIZE = {size}
{_assignment("MEAN", values.mean)}
{_assignment("STD", values.std)}
{_assignment("CLASSES", values.classes)}


{source.class_source}

def load(path: str = "{WEIGHTS_FILE}") -> Network:
    """Return the network with the weights in a file, ready to classify."""
    network = Network()
    network.load_state_dict(load_file(path))
    # On a CPU, convolutions are several times faster in this layout.
    return network.eval().to(memory_format=torch.channels_last)
'''


def _assignment(name: str, values: tuple[float, ...] | tuple[str, ...]) -> str:
    """Return the assignment of a tuple, in one line or with a line for each value."""
    items = [json.dumps(value, ensure_ascii=False) for value in values]
    line = f"{name} = ({', '.join(items)}{',' if len(items) == 1 else ''})"
    if len(line) <= _MAX_LINE_LENGTH:
        return line
    return "\n".join([f"{name} = (", *[f"    {item}," for item in items], ")"])
