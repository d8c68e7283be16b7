"""Trains a supernet: the sandwich rule, with distillation from the largest network in place."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F  # noqa: N812

from nas import files, jsonl
from nas.errors import CheckpointError, DataError, TrainingError
from nas.graph import Graph
from nas.space import SearchSpace
from nas.supernet import checkpoint
from nas.supernet.batches import TrainingBatches
from nas.supernet.data import Data
from nas.supernet.settings import TrainingSettings, device_called
from nas.supernet.threads import threads_for
from nas.supernet.weights import FILE, Supernet, parameter_groups

CHECKPOINT = "training.safetensors"
LOG = "training.jsonl"
LOG_SCHEMA = 1
_LOG_LINES = 200
"""About how many lines a training writes."""


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step; accuracies are those of the step's batch, in [0, 1].

    `seconds` is the time spent in this process.
    """

    step: int
    steps: int
    loss: float
    accuracy_largest: float
    accuracy_smallest: float
    learning_rate: float
    seconds: float


def train(
    space: SearchSpace,
    data: Data,
    folder: str | Path,
    settings: TrainingSettings | None = None,
    *,
    seed: int,
    progress: Callable[[Progress], None] | None = None,
) -> Supernet:
    """Trains a supernet in `folder`, or goes on where an interrupted training stopped.

    Every step trains the largest network on the labels, then the smallest and some random ones on
    the largest's soft output, and follows the sum of their gradients: the sandwich rule and
    in-place distillation (Yu and Huang 2019, "Universally slimmable networks"). Everything random
    is a function of the seed and the step, so on one machine a training that was killed ends in the
    same weights as one that was not. A finished training is only loaded.

    Args:
        space: adapted to `data`.
        data: only its training part is read.
        folder: gets `training.jsonl`, checkpoints, and at the end `supernet.safetensors`.
        settings: how to train; by default `TrainingSettings()`.
        seed: of weights, order, augmentation and sampled networks.
        progress: called after every step.

    Raises:
        DataError: the space is adapted to other data.
        CheckpointError: the folder holds a training of another space, data set, seed or settings.
        TrainingError: the loss is no longer a number.
    """
    settings = settings or TrainingSettings()
    folder = Path(folder)
    trainer = _Trainer(space, data, settings, seed)
    identity = trainer.identity()
    if (folder / FILE).is_file():
        record = checkpoint.read(folder / FILE)[1]
        _must_match(folder / FILE, record, identity)
        return Supernet.load(folder, space).to(trainer.device)
    start = 0
    if (folder / CHECKPOINT).is_file():
        tensors, record = checkpoint.read(folder / CHECKPOINT)
        _must_match(folder / CHECKPOINT, record, identity)
        trainer.restore(tensors)
        start = record["step"]
    folder.mkdir(parents=True, exist_ok=True)
    _forget(folder / LOG, after_step=start)
    begun = saved = time.monotonic()
    for step in range(start, trainer.steps):
        loss, largest, smallest = trainer.step(step)
        now = time.monotonic()
        rate = trainer.learning_rate(step)
        report = Progress(step + 1, trainer.steps, loss, largest, smallest, rate, now - begun)
        if (step + 1) % max(1, trainer.steps // _LOG_LINES) == 0 or step + 1 == trainer.steps:
            jsonl.append(folder / LOG, {"schema": LOG_SCHEMA, **asdict(report)})
        if progress:
            progress(report)
        if now - saved >= settings.checkpoint_seconds and step + 1 < trainer.steps:
            checkpoint.write(folder / CHECKPOINT, trainer.state(), {**identity, "step": step + 1})
            saved = time.monotonic()
    trainer.supernet.save(folder, {**identity, "step": trainer.steps})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return trainer.supernet.eval()


class StepTime(NamedTuple):
    """What one training step takes, and how many there are."""

    seconds: float
    steps_per_epoch: int

    def epochs_within(self, seconds: float) -> int:
        """Whole epochs that fit into a budget, at least one."""
        return max(1, int(seconds / (self.seconds * self.steps_per_epoch)))


def measure_step(
    space: SearchSpace, data: Data, settings: TrainingSettings | None = None, *, steps: int = 3
) -> StepTime:
    """Times some training steps (median, after one that is not counted), for planning."""
    trainer = _Trainer(space, data, settings or TrainingSettings(), seed=0)
    samples = []
    for step in range(steps + 1):
        begun = time.perf_counter()
        trainer.step(step)  # its result is read back, so a GPU has finished too
        samples.append(time.perf_counter() - begun)
    return StepTime(median(samples[1:]), trainer.batches.steps_per_epoch)


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Parameter], ratio: float) -> Tensor:
    """Shortens each tensor's gradient to at most `ratio` times the tensor's own norm.

    Adaptive gradient clipping (Brock et al. 2021, "High-performance large-scale image recognition
    without normalization"), for whole tensors. With one limit for all of them the linear layer
    behind a wide head decides: its gradients grow with the head's width, so a learning rate that
    suits narrow networks lets wide ones diverge. Vectors count as having a norm of at least one.

    Returns the norm of all gradients together, before, as a tensor without dimensions.
    """
    used = [p for p in parameters if p.grad is not None]
    gradients: list[Tensor] = [p.grad for p in used if p.grad is not None]
    length = torch.stack(torch._foreach_norm(gradients))
    least = torch.tensor([1.0 if p.dim() == 1 else 1e-3 for p in used], device=length.device)
    limit = ratio * torch.maximum(torch.stack(torch._foreach_norm(list[Tensor](used))), least)
    shorter = (limit / length.clamp_min(1e-12)).clamp_max(1.0)
    torch._foreach_mul_(gradients, list(shorter.unbind()))
    norm: Tensor = length.norm()
    return norm


class _Trainer:
    """A supernet, its optimizer and its batches: one step at a time, and the state to resume."""

    def __init__(
        self, space: SearchSpace, data: Data, settings: TrainingSettings, seed: int
    ) -> None:
        wanted = {
            "image_size": data.image_size,
            "channels": data.channels,
            "classes": len(data.classes),
        }
        if space.settings != wanted:
            raise DataError(
                f"Space {space.name} is adapted to {space.settings}, the data has {wanted}.",
                remedy="Use space.on(...) with the data's sizes.",
            )
        self.space, self.data, self.settings, self.seed = space, data, settings, seed
        self.device = device_called(settings.device)
        self.supernet = Supernet(space, torch.Generator().manual_seed(seed)).to(self.device)
        self.supernet.train()
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.supernet, settings.weight_decay),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
        self.batches = TrainingBatches(
            data,
            batch_size=settings.batch_size,
            seed=seed,
            shift=settings.shift_for(data),
            flip=settings.flip_for(data),
            device=self.device,
        )
        self.steps = settings.epochs * self.batches.steps_per_epoch
        self._largest = space.lower(space.largest)
        self._smallest = space.lower(space.smallest)

    def identity(self) -> dict[str, object]:
        """What a checkpoint must have in common with this training."""
        return {
            "space": self.space.name,
            "space_digest": self.space.digest,
            "data_digest": self.data.digest,
            "training": self.settings.identity(),
            "seed": self.seed,
        }

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2017)."""
        warm = math.ceil(self.settings.warmup * self.steps)
        if step < warm:
            return self.settings.learning_rate * (step + 1) / (warm + 1)
        done = (step - warm) / max(1, self.steps - warm)
        return self.settings.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def step(self, step: int) -> tuple[float, float, float]:
        """One step; the largest's loss, and the batch accuracies of largest and smallest."""
        with threads_for(self._largest.macs * self.batches.batch_size):
            return self._step(step)

    def _step(self, step: int) -> tuple[float, float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        images, labels = self.batches.batch(step)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._forward(self._largest, images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        loss.backward()
        soft = logits.detach().softmax(1)
        smallest = self._distil(self._smallest, images, soft)
        rng = np.random.default_rng([self.seed, 2, step])
        for _ in range(self.settings.random_subnets):
            self._distil(self.space.lower(self.space.sample_choices(rng)), images, soft)
        norm = clip_adaptively(self.supernet.parameters(), self.settings.gradient_ratio)
        results = (
            loss.detach(),
            (logits.argmax(1) == labels).float().mean(),
            (smallest.argmax(1) == labels).float().mean(),
            norm,
        )
        found, largest_accuracy, smallest_accuracy, length = torch.stack(results).tolist()
        if not (math.isfinite(found) and math.isfinite(length)):
            raise TrainingError(
                f"Training {self.space.name} diverged in step {step + 1} of {self.steps}: "
                f"loss {found}, gradient norm {length}.",
                remedy=f"Lower learning_rate (it is {self.settings.learning_rate}).",
            )
        self.optimizer.step()
        return found, largest_accuracy, smallest_accuracy

    def _forward(self, graph: Graph, images: Tensor) -> Tensor:
        with self.settings.autocast(self.device):
            logits: Tensor = self.supernet(graph, images)
        return logits.float()

    def _distil(self, graph: Graph, images: Tensor, soft: Tensor) -> Tensor:
        logits = self._forward(graph, images)
        F.cross_entropy(logits, soft).backward()
        return logits.detach()

    def state(self) -> dict[str, Tensor]:
        """Weights and the optimizer's tensors, by parameter."""
        tensors = {f"weights.{name}": t for name, t in self.supernet.state_dict().items()}
        for name, parameter in self.supernet.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continues from a `state`."""
        for name, parameter in self.supernet.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"weights.{name}"])
            momentum = tensors.get(f"optimizer.momentum_buffer.{name}")
            if momentum is not None:
                # `copy_` keeps the parameter's memory format, which decides the rounding.
                kept = torch.empty_like(parameter).copy_(momentum)
                self.optimizer.state[parameter] = {"momentum_buffer": kept}


def _forget(log: Path, *, after_step: int) -> None:
    """Drops the lines that a resumed training writes again."""
    kept = [row for row in jsonl.read(log) if row["step"] <= after_step]
    files.replace(log, "".join(json.dumps(row) + "\n" for row in kept))


def _must_match(path: Path, record: dict[str, object], identity: dict[str, object]) -> None:
    for key, wanted in identity.items():
        if record.get(key) != wanted:
            raise CheckpointError(
                f"{path} holds a training with {key} = {record.get(key)}, not {wanted}.",
                remedy="Train in another folder, or delete this one.",
            )
