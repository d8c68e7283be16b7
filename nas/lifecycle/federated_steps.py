"""What a client and the server of federated fine-tuning do with images and weights.

Each app holds a copy of this text, so that it runs without this package. Nothing here needs Flower.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.data.image_formats import RAW, is_raw
from nas.data.image_reading import UnreadableImageError
from nas.data.sources.image_folder import open_image_folder
from nas.data.sources.tree import list_tree
from nas.deploy.script_steps import as_input, decoded
from nas.errors import DataError

BATCH_SIZE = 32

MOMENTUM = 0.9

JUDGING_SHARE = 10
"""One of so many images of a client judges the weights, and is not trained on."""


MIN_IMAGES = 3
"""Fewest images of a client: one judges the weights, and one alone has no variance."""


def read_folder(folder: Path, preprocessing: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the decoded images `N x height x width x channels` of a folder, and their labels `N`.

    The folder is read as that of a job. Images that cannot be read are left out, and named on
    stderr.

    Args:
        folder: folder with a sub-folder for each class, which may be missing.
        preprocessing: what `preprocessing.json` holds.

    Raises:
        DataError: a sub-folder is no class, or there are fewer images than `MIN_IMAGES`.
    """
    classes = preprocessing["classes"]
    source = open_image_folder(folder, *list_tree(folder), classes=classes)
    label_of = {unicodedata.normalize("NFC", name): label for label, name in enumerate(classes)}
    pixels, labels = [], []
    for sample in source.samples:
        path, label = sample.image, sample.label
        assert source.classes is not None
        assert isinstance(path, Path)
        assert isinstance(label, int)
        try:
            if is_raw(path):
                raise UnreadableImageError(RAW)
            pixels.append(decoded(path, dict(preprocessing)))
        except UnreadableImageError as error:
            print(f"{path} is left out: {error}", file=sys.stderr)
        else:
            labels.append(label_of[source.classes[label]])
    if len(labels) < MIN_IMAGES:
        raise DataError(
            f"{folder} has {len(labels)} image{'s' * (len(labels) != 1)} that can be used; "
            f"expected {MIN_IMAGES} or more, of which one judges the weights.",
            remedy="Add images, or leave this client out.",
        )
    return np.concatenate(pixels), np.array(labels)


def batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    preprocessing: Mapping[str, Any],
    generator: np.random.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images as the input of the network with their labels, in random order if asked for."""
    order = np.arange(len(labels)) if generator is None else generator.permutation(len(labels))
    for start in range(0, len(order), BATCH_SIZE):
        own = order[start : start + BATCH_SIZE]
        images = torch.from_numpy(as_input(pixels[own], dict(preprocessing)))
        yield images, torch.from_numpy(labels[own])


def proximal_term(parameters: Sequence[Tensor], start: Sequence[Tensor], mu: float) -> Tensor:
    """Return `mu / 2` times the squared distance from the weights that the server sent.

    This is the term of FedProx (Li et al. 2020, "Federated optimization in heterogeneous
    networks"); without it, the training is that of FedAvg.
    """
    squares = [(own - sent).square().sum() for own, sent in zip(parameters, start, strict=True)]
    return 0.5 * mu * torch.stack(squares).sum()


def fine_tune(
    network: nn.Module,
    pixels: np.ndarray,
    labels: np.ndarray,
    preprocessing: Mapping[str, Any],
    *,
    epochs: int,
    learning_rate: float,
    mu: float,
    trains_norms: bool,
    seed: int,
) -> None:
    """Train the weights of a network on images.

    Args:
        network: the network.
        pixels, labels, preprocessing: see `batches`.
        epochs: passes over the images.
        learning_rate: step of SGD.
        mu: see `proximal_term`.
        trains_norms: whether the statistics of the norms become those of the images, too.
        seed: seed of the order of the images.
    """
    parameters, generator = list(network.parameters()), np.random.default_rng(seed)
    start = [each.detach().clone() for each in parameters]
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum=MOMENTUM)
    network.train(trains_norms)
    for _ in range(epochs):
        for images, classes in batches(pixels, labels, preprocessing, generator):
            if len(classes) == 1:  # It has no variance.
                continue
            loss = F.cross_entropy(network(images), classes)
            if mu:
                loss = loss + proximal_term(parameters, start, mu)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.inference_mode()
def count_right(
    network: nn.Module, pixels: np.ndarray, labels: np.ndarray, preprocessing: Mapping[str, Any]
) -> int:
    """Return the number of images that a network classifies correctly."""
    network.eval()
    return sum(
        int((network(images).argmax(1) == classes).sum())
        for images, classes in batches(pixels, labels, preprocessing)
    )


def weights_of(network: nn.Module, *, has_norms: bool) -> dict[str, np.ndarray]:
    """Return what clients and server send each other, in order of names.

    These are the trained weights, and the statistics of the norms if they are trained as well.
    """
    names = {name for name, _ in network.named_parameters()}
    return {
        name: each.numpy()
        for name, each in sorted(network.state_dict().items())
        if name in names or (has_norms and each.is_floating_point())
    }


def norms_of(network: nn.Module) -> bytes:
    """Return the statistics of the norms before the first round."""
    return save({name: each.numpy() for name, each in network.named_buffers()})


def load_weights(
    network: nn.Module, arrays: Sequence[np.ndarray], norms: bytes, *, has_norms: bool
) -> None:
    """Give a network the arrays of `weights_of` and, where these have none, the norms."""
    own = dict(zip(weights_of(network, has_norms=has_norms), arrays, strict=True))
    tensors = {**load(norms), **own}
    network.load_state_dict({name: torch.from_numpy(each) for name, each in tensors.items()})


def refusal(
    arrays: Sequence[np.ndarray],
    sent: Sequence[np.ndarray],
    weight: float,
    *,
    is_private: bool = False,
) -> str:
    """Return why an answer of a client cannot be averaged; empty if it can.

    Args:
        arrays: the weights that it sent.
        sent: the weights that it got.
        weight: how much it counts.
        is_private: whether noise hides the client, which is scaled for clients that count the same.
    """
    if [each.shape for each in arrays] != [each.shape for each in sent]:
        return "its weights have other shapes than those of the network"
    if broken := sum(not np.isfinite(each).all() for each in arrays):
        return f"{broken} of its {len(arrays)} tensors have values that are NaN or infinite"
    if all(np.array_equal(own, each) for own, each in zip(arrays, sent, strict=True)):
        return "it trained nothing: its weights are those that it got"
    if not (np.isfinite(weight) and weight > 0):
        return f"its number of images is {weight}"
    if is_private and weight != 1:
        return f"it counts {weight} times, where all count once"
    return ""


class Rounds:
    """The rounds that are done, and the file with the weights after the last of them.

    Args:
        path: the safetensors file, which may be missing.
        weights: weights of the model in order of names, with which the first round begins.
        settings: settings of the app.

    Attributes:
        weights: weights with which the next round begins.
        done: number of rounds that are done.

    Raises:
        ValueError: the file is of another model or other settings, or is damaged.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> None:
        self.path, self.settings = path, dict(settings)
        self.weights, self.done = dict(weights), 0
        if not path.is_file():
            return
        try:
            stored, record = read_round(path)
            model, done, before = record["model"], int(record["rounds"]), record["settings"]
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged ({error}): move it away.") from None
        if model != settings["model"]:
            raise ValueError(f"{path} has weights of another model: move it away.")
        # All rounds count for what is said of the privacy of the clients.
        for name in ("noise", "secure-aggregation"):
            if before.get(name) != settings[name]:
                raise ValueError(
                    f"{path} has rounds with {name} = {before.get(name)}, and this run has "
                    f"{settings[name]}: move the file away, or set {name} as before."
                )
        shapes = {name: each.shape for name, each in stored.items()}
        expected = {name: each.shape for name, each in weights.items()}
        if different := sorted(dict(shapes.items() ^ expected.items())):
            raise ValueError(
                f"{path}: tensor {different[0]} has shape {shapes.get(different[0])}, expected "
                f"{expected.get(different[0])}: move the file away."
            )
        self.weights, self.done = stored, done

    def store(self, arrays: Sequence[np.ndarray]) -> None:
        """Count a round, and store the weights that it led to."""
        self.weights = dict(zip(self.weights, arrays, strict=True))
        self.done += 1
        record = {"schema": 1, "model": self.settings["model"], "rounds": self.done}
        write_round(self.path, self.weights, {**record, "settings": self.settings})


def write_round(
    path: Path, weights: Mapping[str, np.ndarray], record: Mapping[str, object]
) -> None:
    """Replace the file of the weights; a server that is killed leaves the old one or the new one.

    Args:
        path: the safetensors file.
        weights: the weights by name.
        record: the number of rounds, and what they were made with.
    """
    stored = {name: np.ascontiguousarray(each, np.float32) for name, each in weights.items()}
    temporary = path.with_name(f".{path.name}.unfinished")
    with temporary.open("wb") as file:
        file.write(save(stored, {"record": json.dumps(record)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_round(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the weights, in order of names, and the record of a file of `write_round`."""
    with safe_open(str(path), framework="np") as file:
        record = json.loads((file.metadata() or {})["record"])
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, record
