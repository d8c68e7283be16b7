"""Standalone training: one network with weights of its own, trained with a supernet's recipe.

`train_standalone` trains in one go; `train_network` is resumable, and starts from a supernet's
weights or learns from a teacher.
"""

from __future__ import annotations

import time
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
from nas.machine.torch_device import keep_freed_memory, limit_threads, resolve_device
from nas.space import Architecture
from nas.space.exits import trained_graph
from nas.supernet import checkpoint
from nas.supernet.captured import CapturedStep
from nas.supernet.distillation import Classifiers, Teacher, distillation_loss, parameters_digest
from nas.supernet.recipe import (
    TrainingState,
    learning_rate,
    make_batches,
    parameter_groups,
)
from nas.supernet.records import NETWORK_TRAINING, TRAINING_LOG
from nas.supernet.settings import TrainingSettings
from nas.supernet.sharding import ShardedModule, count_shards
from nas.supernet.training import CHECKPOINT_FILE
from nas.torch_network import Network, to_torch


class NetworkStep(NamedTuple):
    """Loss and accuracy of one training step of a network, on its own batch.

    Attributes:
        loss: loss on the batch.
        accuracy: accuracy on the batch, in [0, 1].
        clipped_share: share of the weight tensors whose gradient was clipped, in [0, 1].
    """

    loss: float
    accuracy: float
    clipped_share: float


class NetworkTrainer:
    """A network with its optimizer and its batches.

    Args:
        graph: network for images and classes like those of `data`, see also `trained_graph`.
        data: only its training split is used.
        settings: training settings; those that choose and teach subnets are ignored.
        seed: seed of the weights, the order of the images and the augmentation.
        start: initial weights, the state of a `Network` of the graph; newly drawn ones by default.
        teacher: network to learn from, beside the labels.

    Attributes:
        network: the network in training mode.
        state: its weights and the optimizer.
        steps: number of steps of the whole training.

    Raises:
        DeviceError: this machine does not have the device of the settings.
    """

    def __init__(
        self,
        graph: Graph,
        data: ImageDataset,
        settings: TrainingSettings,
        seed: int,
        start: Mapping[str, Tensor] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        keep_freed_memory()
        self._settings, self._teacher = settings, teacher
        self.device = resolve_device(settings.device)
        self._classes, priors = len(data.classes), data.log_priors
        self._log_priors = None if priors is None else torch.from_numpy(priors).to(self.device)
        network = to_torch(graph, seed=seed)
        if start is not None:
            network.load_state_dict(start)
        self.network = network.to(self.device).train()
        decay = settings.resolve_weight_decay(from_scratch=start is None)
        groups = parameter_groups(self.network, decay, depthwise=False)
        self.state = TrainingState(self.network, groups)
        self._batches = make_batches(data, settings, seed, self.device, alternating=True)
        self.steps = settings.steps(self._batches.steps_per_epoch)
        macs = max(graph.macs, teacher.macs if teacher else 0)
        self._batch_macs = macs * self._batches.batch_size
        shards = count_shards(self._batches.batch_size, macs, self.device)
        compute = partial(ShardedModule(self.network, shards).step, backward=self._backward)
        is_gpu = self.device.type == "cuda"
        self._compute = CapturedStep(compute, self.network) if is_gpu else compute

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return learning_rate(self._settings, step, self.steps)

    def step(self, step: int) -> NetworkStep:
        """Do one training step, counted from 0.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights were not updated.
        """
        with limit_threads(self._batch_macs):
            (loss, accuracy), clipped_share = self.state.update(
                self._compute(*self._batches.batch(step)),
                self.learning_rate(step),
                self._settings.learning_rate,
                f"step {step + 1} of {self.steps} of the network",
            )
        return NetworkStep(loss, accuracy, clipped_share)

    def _backward(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradients of a network; return its loss and its accuracy on the images.

        Both are those of the last classifier.
        """
        with self._settings.autocast(self.device):
            output = network(images)
        classifiers = Classifiers.of(output, self._classes, self._log_priors)
        loss = self._loss(classifiers.last, labels, images)
        classifiers.total_loss(loss, labels).backward()
        accuracy = (output[:, -self._classes :].detach().argmax(1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def _loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        smoothing = self._settings.label_smoothing
        if self._teacher is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        with self._settings.autocast(self.device):
            probabilities = self._teacher.probabilities(images, self._log_priors)
        return distillation_loss(logits, labels, probabilities, smoothing)


def train_standalone(
    graph: Graph,
    data: ImageDataset,
    settings: TrainingSettings | None = None,
    *,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    progress: Advance | None = None,
) -> Network:
    """Train a network on the labels of the training images.

    Optimizer, learning rate, augmentation and label smoothing are those of `nas.train`
    with the same settings; the settings that choose and teach subnets are ignored. The
    same arguments give the same weights on the same machine.

    Args:
        graph: network for images and classes like those of `data`.
        data: only its training split is used.
        settings: training settings; `TrainingSettings()` by default.
        seed: seed of the weights, the order of the images and the augmentation.
        start: initial weights; newly drawn ones by default.
        progress: called after every step with the number of steps done and of all steps.

    Returns:
        The trained network in evaluation mode.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    trainer = NetworkTrainer(graph, data, settings or TrainingSettings(), seed, start)
    for step in range(trainer.steps):
        trainer.step(step)
        if progress:
            progress(step + 1, trainer.steps)
    return trainer.network.eval()


def train_network(
    architecture: Architecture,
    data: ImageDataset,
    folder: Path,
    settings: TrainingSettings,
    *,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    progress: Advance | None = None,
) -> tuple[Network, float]:
    """Train the network of an architecture, or resume an interrupted training.

    On one machine, a training that was killed and resumed ends with the same weights as an
    uninterrupted one.

    Args:
        architecture: the architecture, of a space that is adapted to `data`.
        data: only its training split is used.
        folder: folder for `training.jsonl` and the checkpoint, which stays there at the end.
        settings: training settings; those that choose and teach subnets are ignored.
        seed: seed of the order of the images, the augmentation and newly drawn weights.
        start: initial weights of its `trained_graph`, see
            `nas.supernet.evaluation.calibrated_state`; newly drawn ones by default.
        teacher: network to learn from, beside the labels.
        progress: called after every step with the loss and the accuracy of its batch.

    Returns:
        The network, with its exit if it has one, in evaluation mode, and the seconds of the
        training over all starts.

    Raises:
        CheckpointError: the folder has a training of another network, data set, seed or settings,
            or from other weights.
        TrainingError: the loss or the gradient is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = NetworkTrainer(trained_graph(architecture), data, settings, seed, start, teacher)
    identity = {
        "space": architecture.space.name,
        "space_digest": architecture.space.digest,
        "network": architecture.digest,
        "data_digest": data.digest,
        "seed": seed,
        "training": {
            **settings.identity(from_scratch=start is None),
            "start": None if start is None else parameters_digest(start),
            "teacher": None if teacher is None else teacher.digest,
        },
    }
    path, log = folder / CHECKPOINT_FILE, folder / TRAINING_LOG
    first_step = 0
    if saved := checkpoint.read_own(path, identity):
        tensors, record = saved
        trainer.state.load_state_dict(tensors, path)
        first_step = record.step
    rows = checkpoint.truncate_log(log, NETWORK_TRAINING, first_step)
    earlier_s = rows[-1].seconds if rows else 0.0
    started = last_checkpoint = time.monotonic()
    for step in range(first_step, trainer.steps):
        result = trainer.step(step)
        now = time.monotonic()
        figures = {**result._asdict(), "learning_rate": trainer.learning_rate(step)}
        seconds = round(earlier_s + now - started, 3)
        checkpoint.log_step(log, step + 1, trainer.steps, figures, seconds=seconds)
        if step + 1 == trainer.steps or now - last_checkpoint >= settings.checkpoint_seconds:
            checkpoint.write(path, trainer.state.state_dict(), {**identity, "step": step + 1})
            last_checkpoint = time.monotonic()
        if progress:
            text = f"loss {result.loss:.3f}, {result.accuracy:.0%}"
            progress(step + 1, trainer.steps, text)
    return trainer.network.eval(), round(earlier_s + time.monotonic() - started, 3)
