"""Trains a supernet: the sandwich rule, with distillation from the largest network in place."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas import files, jsonl
from nas.errors import CheckpointError, DataError, TrainingError, first_line
from nas.graph import Graph
from nas.space import SearchSpace
from nas.supernet import checkpoint
from nas.supernet.data import Data
from nas.supernet.recipe import batches_of, clip_adaptively, learning_rate, move, optimizer_of
from nas.supernet.settings import TrainingSettings, device_called
from nas.supernet.subnets import Look, Role, subnets_for
from nas.supernet.threads import threads_for
from nas.supernet.weights import FILE, Supernet

CHECKPOINT = "training.safetensors"
LOG = "training.jsonl"
LOG_SCHEMA = 1
_LOG_LINES = 200
"""About how many lines a training writes."""

_LOOKED_AT = 4
"""Of a batch, one part in so many is looked at to choose among networks."""

MOST_ROLLBACKS = 3
ROLLBACK_SHARE = 0.5
"""How often a training that diverges goes back to its last checkpoint, and the share of the
learning rate with which it goes on each time."""


class DivergedError(TrainingError):
    """A loss or gradient that is no number."""


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step; accuracies are those of the step's batch, in [0, 1].

    The loss is that of the first network that the step trains, the largest one if it is among them.
    `accuracy_random` is the mean of the random subnets; None stands for networks that a step does
    not train. `seconds` is the time spent in this process.
    """

    step: int
    steps: int
    loss: float
    accuracy_largest: float | None
    accuracy_smallest: float | None
    accuracy_random: float | None
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

    By default every step trains the largest network on the labels, then the smallest and some
    random ones on the largest's soft output, and follows the sum of their gradients: the sandwich
    rule and in-place distillation (Yu and Huang 2019, "Universally slimmable networks"); for other
    ways see `nas.supernet.subnets`. Everything random is a function of the seed and the step, so on
    one machine a training that was killed ends in the same weights as one that was not. A finished
    training is only loaded.

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
        TrainingError: the loss is no longer a number, even at a fraction of the learning rate; or
            the device's memory is too small for the batch, with one that would fit.
    """
    settings = settings or TrainingSettings()
    folder = Path(folder)
    trainer = _Trainer(space, data, settings, seed)
    if (folder / FILE).is_file():
        record = checkpoint.read(folder / FILE)[1]
        _must_match(folder / FILE, record, trainer.identity())
        return Supernet.load(folder, space).to(trainer.device)
    folder.mkdir(parents=True, exist_ok=True)
    too_large = ""
    while True:
        try:
            _train_on(trainer, folder, progress)
            break
        except DivergedError as error:
            trainer = _rolled_back(trainer, folder, error)
        except torch.OutOfMemoryError as error:
            too_large = first_line(error)
            break
    if too_large:
        # Its tensors, and those that the error holds, would be in the way of a smaller batch.
        del trainer
        raise _out_of_memory(space, data, settings, too_large)
    supernet = trainer.finished()
    supernet.save(folder, {**trainer.identity(), "step": trainer.steps})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return supernet


def _train_on(trainer: _Trainer, folder: Path, progress: Callable[[Progress], None] | None) -> None:
    """Trains from the last checkpoint, if there is one, to the last step."""
    start = 0
    identity = trainer.identity()
    if (folder / CHECKPOINT).is_file():
        tensors, record = checkpoint.read(folder / CHECKPOINT)
        _must_match(folder / CHECKPOINT, record, identity)
        trainer.restore(tensors)
        start = record["step"]
        trainer.rollbacks = max(trainer.rollbacks, record.get("rollbacks", 0))
    _forget(folder / LOG, after_step=start)
    begun = saved = time.monotonic()
    for step in range(start, trainer.steps):
        found = trainer.step(step)
        now = time.monotonic()
        rate = trainer.learning_rate(step)
        report = Progress(step + 1, trainer.steps, *found, rate, now - begun)
        if (step + 1) % max(1, trainer.steps // _LOG_LINES) == 0 or step + 1 == trainer.steps:
            jsonl.append(folder / LOG, {"schema": LOG_SCHEMA, **asdict(report)})
        if progress:
            progress(report)
        if now - saved >= trainer.settings.checkpoint_seconds and step + 1 < trainer.steps:
            kept = {**identity, "step": step + 1, "rollbacks": trainer.rollbacks}
            checkpoint.write(folder / CHECKPOINT, trainer.state(), kept)
            saved = time.monotonic()


def _rolled_back(trainer: _Trainer, folder: Path, error: DivergedError) -> _Trainer:
    """A trainer that goes on from the last checkpoint with a smaller learning rate.

    A training that diverges is almost always one whose learning rate was too high for some steps;
    what was learned before is still good. Raises the error where that was tried often enough.
    """
    if trainer.rollbacks == MOST_ROLLBACKS:
        raise error
    fresh = _Trainer(trainer.space, trainer.data, trainer.settings, trainer.seed)
    fresh.rollbacks = trainer.rollbacks + 1
    step = 0
    if (folder / CHECKPOINT).is_file():
        tensors, record = checkpoint.read(folder / CHECKPOINT)
        step = record["step"]
        kept = {**trainer.identity(), "step": step, "rollbacks": fresh.rollbacks}
        checkpoint.write(folder / CHECKPOINT, tensors, kept)
    warnings.warn(
        f"{error.message} Going back to step {step} with {fresh.share:g} of the learning rate.",
        stacklevel=3,
    )
    return fresh


def _out_of_memory(
    space: SearchSpace, data: Data, settings: TrainingSettings, reason: str
) -> TrainingError:
    """Says which batch would fit, by trying smaller ones."""
    size = min(settings.batch_size, len(data.train))
    fitting = None
    while fitting is None and size >= 4:
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            _Trainer(space, data, replace(settings, batch_size=size), seed=0).step(0)
            fitting = size
        except torch.OutOfMemoryError:
            continue
    advice = (
        f"A batch of {fitting} fits: set batch_size = {fitting}."
        if fitting
        else "Not even two images fit: use smaller images or a smaller space."
    )
    return TrainingError(
        f"{space.name}: a batch of {settings.batch_size} does not fit into the memory of the "
        f"training device ({reason}).",
        remedy=advice,
    )


class Found(NamedTuple):
    """What a step found: the first network's loss, and accuracies on its batch, as `Progress`."""

    loss: float
    accuracy_largest: float | None
    accuracy_smallest: float | None
    accuracy_random: float | None


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
        self.optimizer = optimizer_of(self.supernet, settings)
        self.batches = batches_of(data, settings, seed, self.device)
        self.steps = settings.epochs * self.batches.steps_per_epoch
        self.rollbacks = 0
        self.averages: list[Tensor] = []
        self._largest = space.lower(space.largest)
        self._subnets = subnets_for(space, settings, seed, self.steps)

    def identity(self) -> dict[str, object]:
        """What a checkpoint must have in common with this training."""
        return {
            "space": self.space.name,
            "space_digest": self.space.digest,
            "data_digest": self.data.digest,
            "training": self.settings.identity(),
            "seed": self.seed,
        }

    @property
    def share(self) -> float:
        """Of the learning rate that the settings say: less after every time it diverged."""
        return ROLLBACK_SHARE**self.rollbacks

    def learning_rate(self, step: int) -> float:
        """Of a step; see `nas.supernet.recipe.learning_rate`."""
        return self.share * learning_rate(self.settings, step, self.steps)

    def step(self, step: int) -> Found:
        """One step. Raises DivergedError, the weights as they were, if a number is none."""
        with threads_for(self._largest.macs * self.batches.batch_size):
            return self._step(step)

    def _step(self, step: int) -> Found:
        images, labels = self.batches.batch(step)
        self.optimizer.zero_grad(set_to_none=True)
        soft: Tensor | None = None
        first: Tensor | None = None
        right: dict[Role, list[Tensor]] = {"largest": [], "smallest": [], "random": []}
        for role, graph, distilled in self._subnets.of(step, self._look(images, labels)):
            logits = self._forward(graph, images)
            if distilled and soft is not None:
                loss = F.cross_entropy(logits, soft)
            else:
                loss = self._on_labels(logits, labels)
            loss.backward()
            logits = logits.detach()
            soft = logits.softmax(1) if role == "largest" else soft
            first = loss.detach() if first is None else first
            right[role].append((logits.argmax(1) == labels).float().mean())
        assert first is not None
        norm = clip_adaptively(self.supernet.parameters(), self.settings.gradient_ratio)
        # Read together: a GPU waits once a step.
        answers = [
            torch.stack(each).mean() if each else torch.zeros_like(first) for each in right.values()
        ]
        found, length, *accuracies = torch.stack([first, norm, *answers]).tolist()
        if not (math.isfinite(found) and math.isfinite(length)):
            raise DivergedError(
                f"Training {self.space.name} diverged in step {step + 1} of {self.steps}: "
                f"loss {found}, gradient norm {length}.",
                remedy=f"Lower learning_rate (it is {self.settings.learning_rate}).",
            )
        move(self.optimizer, self.learning_rate(step))
        self._average(step)
        known = [a if each else None for a, each in zip(accuracies, right.values(), strict=True)]
        return Found(found, *known)

    def _on_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)

    def _look(self, images: Tensor, labels: Tensor) -> Look:
        """See `nas.supernet.subnets.Look`."""
        count = max(2, len(images) // _LOOKED_AT)

        @torch.no_grad()
        def look(graph: Graph) -> float:
            return self._on_labels(self._forward(graph, images[:count]), labels[:count]).item()

        return look

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Moves the average of the weights; early on it forgets faster, or it would lag behind."""
        if not self.settings.average:
            return
        weights = [parameter.detach() for parameter in self.supernet.parameters()]
        if not self.averages:
            self.averages = [each.clone() for each in weights]
        kept = min(self.settings.average, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, weights, 1 - kept)

    def finished(self) -> Supernet:
        """The supernet to save: with the average of the weights, where there is one."""
        with torch.no_grad():
            for parameter, mean in zip(self.supernet.parameters(), self.averages, strict=False):
                parameter.copy_(mean)
        return self.supernet.eval()

    def _forward(self, graph: Graph, images: Tensor) -> Tensor:
        with self.settings.autocast(self.device):
            logits: Tensor = self.supernet(graph, images)
        return logits.float()

    def state(self) -> dict[str, Tensor]:
        """Weights and the optimizer's tensors, by parameter."""
        tensors = {f"weights.{name}": t for name, t in self.supernet.state_dict().items()}
        for name, parameter in self.supernet.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        names = [name for name, _ in self.supernet.named_parameters()]
        tensors |= {f"average.{n}": t for n, t in zip(names, self.averages, strict=False)}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continues from a `state`."""
        self.averages = [
            torch.empty_like(parameter).copy_(tensors[f"average.{name}"])
            for name, parameter in self.supernet.named_parameters()
            if f"average.{name}" in tensors
        ]
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
