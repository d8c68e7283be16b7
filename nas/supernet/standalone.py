"""Standalone training: one network with weights of its own, trained with a supernet's recipe.

`train_standalone` trains in one go; `train_network` is resumable, and starts from a supernet's
weights or learns from a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.display.progress import Advance
from nas.graph import Graph
from nas.space import Architecture
from nas.space.exits import trained_graph
from nas.supernet.distillation import Teacher, distillation_loss, parameters_digest
from nas.supernet.engine import Backward, Engine, run_steps
from nas.supernet.recipe import Recipe
from nas.supernet.records import NETWORK_TRAINING
from nas.torch_network import Network, to_torch


class NetworkTrainer(Engine[Network]):
    """A network in training that has its weights for itself.

    Args:
        graph: network for images and classes like those of `data`, see also `trained_graph`.
        data: only its training split is used.
        recipe: how it is trained; fields that choose and teach subnets are ignored.
        seed: seed of the weights, the order of the images and the augmentation.
        start: initial weights, the state of a `Network` of the graph; newly drawn ones by default.
        teacher: network to learn from, beside the labels.

    Raises:
        DeviceError: this machine does not have the device of the recipe.
    """

    log_format = NETWORK_TRAINING
    accuracies = ("accuracy",)
    has_fixed_step = True

    def __init__(
        self,
        graph: Graph,
        data: ImageDataset,
        recipe: Recipe,
        seed: int,
        start: Mapping[str, Tensor] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        network = to_torch(graph, seed=seed)
        if start is not None:
            network.load_state_dict(start)
        self._teacher = teacher
        super().__init__(
            "the network",
            network,
            data,
            recipe,
            seed,
            max(graph.macs, teacher.macs if teacher else 0),
            weight_decay=recipe.resolve_weight_decay(from_scratch=start is None),
            decays_depthwise=recipe.decays_depthwise is True,
            alternating=recipe.alternating is not False,
        )

    def backward(self, step: int) -> Backward[Network]:
        """Return what computes the gradients of a step."""
        return self._backward

    def _backward(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        def loss(logits: Tensor) -> Tensor:
            smoothing = self.recipe.label_smoothing
            if self._teacher is None:
                return F.cross_entropy(logits, labels, label_smoothing=smoothing)
            with self.recipe.autocast(self.device):
                probabilities = self._teacher.probabilities(images, self.log_priors)
            return distillation_loss(logits, labels, probabilities, smoothing)

        own, _, accuracy = self.learn(partial(network, images), labels, loss)
        return torch.stack([own, accuracy])


class TrainedNetwork(NamedTuple):
    """What a resumable training ends with.

    Attributes:
        network: the network, with its exit if it has one, in evaluation mode.
        seconds: duration of the training over all starts.
        epochs: passes over the training images; fewer than planned if these took too long.
    """

    network: Network
    seconds: float
    epochs: float


def train_standalone(
    graph: Graph,
    data: ImageDataset,
    recipe: Recipe | None = None,
    *,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    progress: Advance | None = None,
) -> Network:
    """Train a network in one go.

    Optimizer, learning rate, augmentation and label smoothing are those of `nas.train`
    with the same recipe; the fields that choose and teach subnets are ignored. The
    same arguments give the same weights on the same machine.

    Args:
        graph: network for images and classes like those of `data`.
        data: only its training split is used.
        recipe: how it is trained; `Recipe()` by default.
        seed: seed of the weights, the order of the images and the augmentation.
        start: initial weights; newly drawn ones by default.
        teacher: network to learn from, beside the labels.
        progress: called after every step with the loss and the accuracy of its batch.

    Returns:
        The trained network in evaluation mode.

    Raises:
        TrainingError: see `nas.supernet.engine.run_steps`.
    """
    trainer = NetworkTrainer(graph, data, recipe or Recipe(), seed, start, teacher)
    run_steps(trainer, progress=progress)
    return trainer.module.eval()


def train_network(
    architecture: Architecture,
    data: ImageDataset,
    folder: Path,
    recipe: Recipe,
    *,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    progress: Advance | None = None,
) -> TrainedNetwork:
    """Train the network of an architecture, or resume an interrupted training.

    On one machine, a training that was killed and resumed ends with the same weights as an
    uninterrupted one.

    Args:
        architecture: the architecture, of a space that is adapted to `data`.
        data: only its training split is used.
        folder: folder for `training.jsonl` and the checkpoint, which stays there at the end.
        recipe: how it is trained; fields that choose and teach subnets are ignored.
        seed: seed of the order of the images, the augmentation and newly drawn weights.
        start: initial weights of its `trained_graph`, see
            `nas.supernet.evaluation.calibrated_state`; newly drawn ones by default.
        teacher: network to learn from, beside the labels.
        progress: called after every step with the loss and the accuracy of its batch.

    Raises:
        CheckpointError: the folder has a training of another network, data set, seed or recipe,
            or from other weights.
        TrainingError: see `nas.supernet.engine.run_steps`.
    """
    trainer = NetworkTrainer(trained_graph(architecture), data, recipe, seed, start, teacher)
    identity = {
        "space": architecture.space.name,
        "space_digest": architecture.space.digest,
        "network": architecture.digest,
        "data_digest": data.digest,
        "seed": seed,
        "training": {
            **recipe.identity(from_scratch=start is None),
            "start": None if start is None else parameters_digest(start),
            "teacher": None if teacher is None else teacher.digest,
        },
    }
    seconds = run_steps(trainer, folder, identity, progress)
    return TrainedNetwork(trainer.module.eval(), seconds, trainer.epochs)
