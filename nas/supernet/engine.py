"""`Engine`: the steps of any training; `run_steps`: its loop, log, checkpoints and rollbacks."""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor

from nas.data import ImageDataset
from nas.display.progress import Advance
from nas.errors import TrainingError, first_line
from nas.files.documents import Format
from nas.machine.torch_device import keep_freed_memory, limit_threads, resolve_device
from nas.supernet import checkpoint, optimization
from nas.supernet.captured import CapturedStep
from nas.supernet.distillation import Classifiers
from nas.supernet.distributed import SINGLE_PROCESS, ProcessGroup
from nas.supernet.recipe import (
    MAX_ROLLBACKS,
    MOMENTUM,
    ROLLBACK_LEARNING_RATE_FACTOR,
    Recipe,
    most_steps,
)
from nas.supernet.records import TRAINING_LOG
from nas.supernet.schedule import Schedule
from nas.supernet.sharding import ModuleT, ShardedModule, count_shards
from nas.torch_network import resize

CHECKPOINT_FILE = "training.safetensors"
"""Name of the checkpoint of a training, in its folder."""

Backward = Callable[[ModuleT, Tensor, Tensor], Tensor]
"""Adds the gradients of a module on images and labels to those that it has; returns figures."""


class DivergedError(TrainingError):
    """The loss or the gradient is not finite."""


Figures = dict[str, float | None]
"""Figures of a step by their names in the log: loss and accuracies of its batch among them."""


class Engine(ABC, Generic[ModuleT]):
    """A module in training, with its optimizer, its batches and its schedule.

    All trainings take their steps here; a subclass adds which loss a step computes. The optimizer
    is SGD with Nesterov momentum, weight decay and adaptive gradient clipping.

    Args:
        name: what is trained, for messages.
        module: the module with initial weights.
        data: only its training split is used.
        recipe: how it is trained.
        seed: seed of the order of the images and the augmentation.
        macs: multiply-accumulates of the largest network of a step, for one image.
        weight_decay: weight decay, see `nas.supernet.optimization.parameter_groups`.
        decays_depthwise: whether weights of depthwise convolutions have it, too.
        alternating: whether an image that may be mirrored is so in every other epoch.
        resizing: share of the steps that have smaller images.
        floor: smallest learning rate after the warm-up, as a fraction of the peak.
        group: processes that train together; all of them have the same weights at any step.

    Attributes:
        module: the module in training mode.
        batches: the training images.
        schedule: number of steps, and the position of each.
        shards: the module on the shards of a batch.
        rollbacks: how often the training went back because it diverged.
        log_format: format of the lines of the training's log.
        accuracies: names of the accuracies among the figures of a step, from small to large.
        has_fixed_step: whether all steps run the same ops, so that a GPU can repeat the first one.

    Raises:
        DeviceError: this machine does not have the device of the recipe.
    """

    log_format: ClassVar[Format[Any]]
    accuracies: tuple[str, ...]
    has_fixed_step: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        module: ModuleT,
        data: ImageDataset,
        recipe: Recipe,
        seed: int,
        macs: int,
        *,
        weight_decay: float,
        decays_depthwise: bool,
        alternating: bool,
        resizing: float = 0.0,
        floor: float = 0.0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        keep_freed_memory()
        self.name, self.data, self.recipe, self.seed = name, data, recipe, seed
        self.group, self.rollbacks = group, 0
        self._resizing, self._floor = resizing, floor
        gpu = group.local_rank if group.world_size > 1 else None
        self.device = resolve_device(recipe.device, gpu)
        priors = data.log_priors
        self.log_priors = None if priors is None else torch.from_numpy(priors).to(self.device)
        self.module = module.to(self.device).train()
        groups = optimization.parameter_groups(
            self.module, weight_decay, depthwise=decays_depthwise
        )
        self._optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=True)
        # The fused step needs a momentum buffer for every parameter or for none. Subnets use some
        # parameters later than others, so all buffers are made now.
        for parameter in self.module.parameters():
            self._optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        self.batches = optimization.make_batches(
            data, recipe, seed, self.device, group, alternating=alternating
        )
        images = self.batches.batch_size // group.world_size
        self._batch_macs = images * macs
        self.shards = ShardedModule(self.module, count_shards(images, macs, self.device))
        self._captured: Callable[[Tensor, Tensor], Tensor] | None = None
        self.schedule = Schedule(
            recipe.steps(self.batches.steps_per_epoch),
            recipe.seconds,
            longest_s=recipe.longest_seconds,
            most_steps=most_steps(self.batches.steps_per_epoch),
        )

    @property
    def steps(self) -> int:
        """Number of steps of the whole training, as it was decided last."""
        return self.schedule.steps

    @property
    def epochs(self) -> float:
        """Number of epochs of these steps; those of the recipe unless the time decided."""
        if not self.schedule.decisions:
            return float(self.recipe.epochs)
        return round(self.steps / self.batches.steps_per_epoch, 3)

    @property
    def learning_rate_factor(self) -> float:
        """Factor on the learning rate of the recipe; it falls with every rollback."""
        return ROLLBACK_LEARNING_RATE_FACTOR**self.rollbacks

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        position, end = self.schedule.position(step), self.schedule.end
        rate = optimization.learning_rate(self.recipe, position, end, self._floor)
        return self.learning_rate_factor * rate

    def start(self) -> None:
        """Take the weights that a training starts from, where there is no checkpoint."""

    @abstractmethod
    def backward(self, step: int) -> Backward[ModuleT]:
        """Return what computes the gradients of a step; its figures are loss and `accuracies`."""

    def learn(
        self, compute: Callable[[], Tensor], labels: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradients of a network's loss; its exit learns from its last classifier.

        Args:
            compute: computes the output of the network, see `Classifiers.of`.
            labels: labels `N`.
            loss: computes the loss from the adjusted logits of the last classifier.

        Returns:
            The loss, the logits `N x classes`, and the accuracy, of the last classifier.
        """
        with self.recipe.autocast(self.device):
            output = compute()
        classifiers = Classifiers.of(output, len(self.data.classes), self.log_priors)
        own = loss(classifiers.last)
        classifiers.total_loss(own, labels).backward()
        logits = classifiers.last.detach()
        return own.detach(), logits, (logits.argmax(1) == labels).float().mean()

    def step(self, step: int) -> Figures:
        """Do one training step, counted from 0, and return its figures.

        Raises:
            DivergedError: the loss or the gradient is not finite; the weights were not updated.
        """
        with limit_threads(self._batch_macs):
            images, labels = self.batches.batch(step)
            position, end = self.schedule.position(step), self.schedule.end
            size = optimization.resized_image_size(
                self.data.image_size, self._resizing, position, end
            )
            compute = self._captured or partial(self.shards.step, backward=self.backward(step))
            if self.has_fixed_step and self.device.type == "cuda" and not self._captured:
                compute = self._captured = CapturedStep(compute, self.module)
            figures = compute(resize(images, (size, size)), labels)
            parameters = [p for p in self.module.parameters() if p.grad is not None]
            self.group.average([p.grad for p in parameters if p.grad is not None])
            # One transfer for all figures, because a GPU waits at each.
            figures = torch.cat([figures, torch.stack(optimization.adaptive_clip_grad(parameters))])
            self.group.average([figures])
            loss, *values, norm, clipped_share = figures.tolist()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(
                    f"Training diverged in step {step + 1} of {self.steps} of {self.name}: loss "
                    f"{loss}, gradient norm {norm}.",
                    remedy=f"Train with a lower learning_rate (it is "
                    f"{self.recipe.learning_rate}) in another folder.",
                )
            rate = self.learning_rate(step)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        accuracies = dict(zip(self.accuracies, values, strict=True))
        return {"loss": loss, **accuracies, "clipped_share": clipped_share, "learning_rate": rate}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimizer's tensors by name: what a checkpoint holds."""
        tensors = {f"weights.{name}": t for name, t in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            momentum = self._optimizer.state[parameter]["momentum_buffer"]
            tensors[f"optimizer.momentum_buffer.{name}"] = momentum
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Restore what `state_dict` returned, read from a file.

        Raises:
            CheckpointError: the tensors belong to another training.
        """
        own = self.state_dict()
        checkpoint.require_tensors(path, tensors, own)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def run_steps(
    trainer: Engine[Any],
    folder: Path | None = None,
    identity: Mapping[str, object] | None = None,
    progress: Advance | None = None,
) -> float:
    """Do all steps of a training, from its last checkpoint if there is one.

    A training that diverges goes back to its last checkpoint with half of the learning rate, which
    was usually too high for some steps: the weights of the checkpoint are still good.

    Args:
        trainer: what is trained.
        folder: folder for `training.jsonl` and the checkpoint, which stays there at the end. None
            for a training that is not resumed and does not go back.
        identity: what a checkpoint must have in common with the training, as plain data.
        progress: called after every step with the loss and the accuracies of its batch.

    Returns:
        The seconds of the training over all starts.

    Raises:
        CheckpointError: the folder has another training.
        TrainingError: the loss is not finite, even at a fraction of the learning rate if there is a
            folder; or a batch does not fit into the device's memory.
    """
    group, schedule = trainer.group, trainer.schedule
    path = (folder or Path()) / CHECKPOINT_FILE
    own = folder if group.is_main else None
    # Batch norms see the shard of one process, so the number of processes changes the training.
    common = {**(identity or {}), "processes": group.world_size}

    def store(step: int, seconds: float) -> None:
        if own is not None:
            decisions = [each.model_dump() for each in schedule.decisions]
            record = {"step": step, "seconds": seconds, "decisions": decisions}
            record["epochs"] = trainer.epochs if step == trainer.steps else None
            record["rollbacks"] = trainer.rollbacks
            checkpoint.write(path, trainer.state_dict(), {**common, **record})

    def restore() -> tuple[int, float]:
        step, seconds = 0, 0.0
        if saved := group.broadcast(own and checkpoint.read_own(path, common)):
            tensors, record = saved
            trainer.load_state_dict(tensors, path)
            trainer.rollbacks = max(trainer.rollbacks, record.rollbacks)
            schedule.decisions = record.decisions
            step, seconds = record.step, record.seconds
        else:
            trainer.start()
            store(step, seconds)
        if own is not None:
            checkpoint.truncate_log(own / TRAINING_LOG, trainer.log_format, step)
        return step, seconds

    step, spent_s = restore()
    started, stored_s = time.monotonic() - spent_s, spent_s
    while step < trainer.steps:
        is_due = spent_s - stored_s >= trainer.recipe.checkpoint_seconds
        # What the clock decided is stored before a step follows it.
        if schedule.decide(step, spent_s) or is_due:
            store(step, spent_s)
            stored_s = spent_s
        try:
            figures = trainer.step(step)
        except DivergedError as error:
            if folder is None or trainer.rollbacks == MAX_ROLLBACKS:
                raise
            trainer.rollbacks += 1
            step, stored_s = restore()
            store(step, stored_s)
            if group.is_main:
                warnings.warn(
                    f"{error.message} Going back to step {step} with "
                    f"{trainer.learning_rate_factor:g} of the learning rate.",
                    stacklevel=2,
                )
            continue
        except torch.OutOfMemoryError as error:
            size = trainer.batches.batch_size
            raise TrainingError(
                f"A batch of {size} images for {trainer.name} does not fit into the memory of the "
                f"training device ({first_line(error)}).",
                remedy=f"Train with batch_size = {size // 2} or less, or with smaller images, in "
                "another folder.",
            ) from None
        step += 1
        spent_s = group.broadcast(round(time.monotonic() - started, 3))
        if own is not None:
            line = {**figures, "seconds": spent_s}
            checkpoint.log_step(own / TRAINING_LOG, step, trainer.steps, line)
        if progress:
            values = [figures[name] for name in trainer.accuracies]
            accuracies = " ".join(f"{value:.0%}" for value in values if value is not None)
            order = "small to large " if len(values) > 1 else ""
            progress(step, trainer.steps, f"loss {figures['loss']:.3f}, {order}{accuracies}")
    store(step, spent_s)
    return spent_s


def measure_epoch(trainer: Engine[Any], *, seconds: float, fewest: int = 1) -> float:
    """Return the seconds of an epoch by the duration of some steps, to plan a training.

    All processes that train together must call this; they get the same result.

    Args:
        trainer: what is trained; its weights change.
        seconds: duration of all steps that are timed, at least. They are spread over the whole
            training, whose first steps may have smaller images. Each is done once before it is
            timed, which compiles the kernels that its networks need; or the one before it if all
            run the same ops, because a teacher remembers a batch.
        fewest: fewest steps that are timed, if the training has as many.
    """
    from scipy.stats.qmc import Halton

    group = trainer.group
    durations: list[float] = []
    # Its positions are 1/2, 1/4, 3/4, 1/8, ... after the first one, 0.
    positions = Halton(1, scramble=False).fast_forward(1)
    while len(durations) < min(fewest, trainer.steps) or (
        len(durations) < trainer.steps and group.broadcast(sum(durations)) < seconds
    ):
        step = int(positions.random()[0, 0] * trainer.steps)
        trainer.step(step)
        started = time.perf_counter()
        # A step reads its figures back from the device, so a GPU has finished too.
        trainer.step(step + trainer.has_fixed_step)
        durations.append(time.perf_counter() - started)
    return group.broadcast(mean(durations)) * trainer.batches.steps_per_epoch
