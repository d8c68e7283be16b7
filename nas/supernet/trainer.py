"""`Trainer`: the training steps of a supernet, and the state from which a training resumes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.graph import Graph
from nas.machine.torch_device import keep_freed_memory, limit_threads, resolve_device
from nas.pretrained import PublishedWeights
from nas.space import SearchSpace
from nas.supernet.distillation import Classifiers
from nas.supernet.distributed import SINGLE_PROCESS, ProcessGroup
from nas.supernet.evaluation import require_adapted
from nas.supernet.pretrained import start_from
from nas.supernet.recipe import (
    TrainingState,
    learning_rate,
    make_batches,
    parameter_groups,
    resized_image_size,
)
from nas.supernet.records import ScheduleRow
from nas.supernet.schedule import Schedule
from nas.supernet.settings import TrainingSettings
from nas.supernet.sharding import ShardedModule, count_shards
from nas.supernet.subnets import SubnetSampler
from nas.supernet.weights import Supernet
from nas.torch_network import resize

ROLLBACK_LEARNING_RATE_FACTOR = 0.5
"""Factor by which the learning rate falls each time that a training diverged."""

LEARNING_RATE_FLOOR = 0.05
"""Smallest learning rate after the warm-up, as a fraction of the peak.

Supernets rank worse if it decays to zero, as that of networks that are trained standalone does.
"""


MAX_EPOCHS = 200
"""Most epochs that a training with a time budget does. Settings can ask for more."""


class StepResult(NamedTuple):
    """Loss and accuracies of one training step, on its own batch.

    Attributes:
        loss: loss of the largest subnet.
        accuracy_largest, accuracy_smallest: accuracies in [0, 1].
        accuracy_random: mean accuracy of the random subnets in [0, 1], or None without any.
        clipped_share: share of the weight tensors whose gradient was clipped, in [0, 1].
    """

    loss: float
    accuracy_largest: float
    accuracy_smallest: float
    accuracy_random: float | None
    clipped_share: float

    @property
    def text(self) -> str:
        """The loss and the accuracies of the smallest, random and the largest subnets."""
        values = (self.accuracy_smallest, self.accuracy_random, self.accuracy_largest)
        accuracies = " ".join(f"{value:.0%}" for value in values if value is not None)
        return f"loss {self.loss:.3f}, small to large {accuracies}"


class Trainer:
    """A supernet with its optimizer and its batches.

    Args:
        space: search space, adapted to `data`.
        data: only its training split is used.
        settings: training settings.
        seed: seed of the weights, the order of the images, the augmentation and the subnets.
        group: processes that train together; all of them have the same weights at any step.
        decisions: what was decided about the number of steps before, if the settings have a time
            budget.
        published: weights of a published network to start from; None for random ones.
        rollbacks: how often the training went back to a checkpoint because it diverged.

    Attributes:
        supernet: the supernet in training mode.
        state: the weights and the optimizer.
        schedule: number of steps, and the position of each.
        rollbacks: see above.

    Raises:
        DataError: the space is adapted to other data.
        DeviceError: this machine does not have the device of the settings.
    """

    def __init__(
        self,
        space: SearchSpace,
        data: ImageDataset,
        settings: TrainingSettings,
        seed: int,
        group: ProcessGroup = SINGLE_PROCESS,
        decisions: Sequence[ScheduleRow] = (),
        published: PublishedWeights | None = None,
        rollbacks: int = 0,
    ) -> None:
        require_adapted(space, data)
        keep_freed_memory()
        self.space, self.data, self.settings, self.seed = space, data, settings, seed
        self.group = group
        gpu = group.local_rank if group.world_size > 1 else None
        self.device = resolve_device(settings.device, gpu)
        self.published = published
        self.supernet = Supernet(space, torch.Generator().manual_seed(seed)).to(self.device)
        self.supernet.train()
        self.state = TrainingState(
            self.supernet, parameter_groups(self.supernet, settings.resolve_weight_decay())
        )
        self.batches = make_batches(data, settings, seed, self.device, group)
        images, macs = self.batches.batch_size // group.world_size, space.largest.macs
        self._shards = ShardedModule(self.supernet, count_shards(images, macs, self.device))
        self._batch_macs = images * macs
        self.schedule = Schedule(
            settings.steps(self.batches.steps_per_epoch),
            settings.seconds,
            decisions,
            longest_s=settings.longest_seconds,
            most_steps=round(MAX_EPOCHS * self.batches.steps_per_epoch),
        )
        self.rollbacks = rollbacks
        self._resizing = settings.resolve_progressive_resizing(space)
        self._subnets = SubnetSampler(space, settings.random_subnets, seed)

    def identity(self) -> dict[str, object]:
        """Return what a checkpoint must have in common with this training, as plain data."""
        return {
            "space": self.space.name,
            "space_digest": self.space.digest,
            "data_digest": self.data.digest,
            "training": self.settings.identity(),
            "seed": self.seed,
            "published": None if self.published is None else self.published.digest,
        }

    def start(self) -> None:
        """Take the weights that a training starts from, where there is no checkpoint."""
        if self.published is not None:
            if self.group.is_main:
                start_from(self.supernet, self.published, self.data)
            # Others may compute the statistics and the classifier with other rounding.
            self.supernet.load_state_dict(self.group.broadcast(self.supernet.state_dict()))

    @property
    def learning_rate_factor(self) -> float:
        """Factor on the learning rate of the settings; it falls with every rollback."""
        return ROLLBACK_LEARNING_RATE_FACTOR**self.rollbacks

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        position, end = self.schedule.position(step), self.schedule.end
        rate = learning_rate(self.settings, position, end, LEARNING_RATE_FLOOR)
        return self.learning_rate_factor * rate

    def step(self, step: int) -> StepResult:
        """Do one training step, counted from 0.

        The gradients of all subnets of the step are summed before the weights are updated.

        Raises:
            DivergedError: the loss or the gradient is not finite; the weights were not updated.
        """
        with limit_threads(self._batch_macs):
            images, labels = self.batches.batch(step)
            position, end = self.schedule.position(step), self.schedule.end
            size = resized_image_size(self.data.image_size, self._resizing, position, end)
            images = resize(images, (size, size))
            backward = partial(self._backward, self._subnets.sample(step))
            (loss, largest, smallest, *random), clipped_share = self.state.update(
                self._shards.step(images, labels, backward),
                self.learning_rate(step),
                self.settings.learning_rate,
                f"step {step + 1} of {self.schedule.steps} of the supernet {self.space.name}",
                self.group,
            )
        mean_random = sum(random) / len(random) if random else None
        return StepResult(loss, largest, smallest, mean_random, clipped_share)

    def _backward(
        self, subnets: Sequence[Graph], supernet: Supernet, images: Tensor, labels: Tensor
    ) -> Tensor:
        """Add the gradients of all subnets of a step on some images to those of a supernet.

        All subnets but the first, the largest one, learn from its output (in-place distillation).
        The figures are those of the last classifiers; exits learn beside them.

        Returns:
            The loss of the largest subnet, and the accuracy of each subnet.
        """
        targets, smoothing = labels, self.settings.label_smoothing
        losses: list[Tensor] = []
        accuracies: list[Tensor] = []
        for graph in subnets:
            with self.settings.autocast(self.device):
                output = supernet(graph, images)
            classifiers = Classifiers.of(output, self.space.classes, self.data.log_priors)
            loss = F.cross_entropy(classifiers.last, targets, label_smoothing=smoothing)
            classifiers.total_loss(loss, labels).backward()
            logits = classifiers.last.detach()
            if not losses:
                targets, smoothing = logits.softmax(1), 0.0
            losses.append(loss.detach())
            accuracies.append((logits.argmax(1) == labels).float().mean())
        return torch.stack([losses[0], *accuracies])
