"""Trains a supernet: the sandwich rule, with distillation from the largest network in place."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from nas import files, jsonl
from nas.data import ImageDataset
from nas.errors import CheckpointError, TrainingError, first_line
from nas.records import SCHEMA, TRAINING, TRAINING_LOG, CheckpointRecord
from nas.space import SearchSpace
from nas.supernet import checkpoint
from nas.supernet.distributed import Team, team
from nas.supernet.settings import TrainingSettings
from nas.supernet.trainer import DivergedError, Trainer
from nas.supernet.weights import FILE, Supernet

CHECKPOINT = "training.safetensors"
_LOG_LINES = 200
"""About how many lines a training writes."""

MOST_ROLLBACKS = 3
"""How often a training that diverges goes back to its last checkpoint."""


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
    data: ImageDataset,
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
    training is only loaded. Processes that `torchrun` started share every batch; see
    `nas.supernet.distributed`.

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
    together = team()
    trainer = Trainer(space, data, settings, seed, together)
    if together.told((folder / FILE).is_file()):
        tensors, record = together.told(checkpoint.read(folder / FILE) if together.leads else None)
        _must_match(folder / FILE, record, trainer.identity())
        checkpoint.require_tensors(folder / FILE, tensors, trainer.supernet.state_dict())
        trainer.supernet.load_state_dict(tensors, strict=False)
        return trainer.supernet.eval()
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
    if trainer.team.leads:
        supernet.save(folder, {**trainer.identity(), "step": trainer.steps})
        (folder / CHECKPOINT).unlink(missing_ok=True)
    trainer.team.meet()
    return supernet


def _train_on(trainer: Trainer, folder: Path, progress: Callable[[Progress], None] | None) -> None:
    """Trains from the last checkpoint, if there is one, to the last step."""
    team = trainer.team
    identity = trainer.identity()
    # Read by the first process alone: the others may be on machines without this folder.
    kept = team.told(_checkpoint(folder, identity, team) if team.leads else None)
    start = 0
    if kept is not None:
        tensors, record = kept
        trainer.restore(tensors, folder / CHECKPOINT)
        start = record.step
        trainer.rollbacks = max(trainer.rollbacks, record.rollbacks)
    if team.leads:
        _forget(folder / TRAINING_LOG, after_step=start)
    begun = saved = time.monotonic()
    for step in range(start, trainer.steps):
        found = trainer.step(step)
        if not team.leads:
            continue
        now = time.monotonic()
        rate = trainer.learning_rate(step)
        report = Progress(step + 1, trainer.steps, *found, rate, now - begun)
        if (step + 1) % max(1, trainer.steps // _LOG_LINES) == 0 or step + 1 == trainer.steps:
            jsonl.append(folder / TRAINING_LOG, {"schema": SCHEMA, **asdict(report)})
        if progress:
            progress(report)
        if now - saved >= trainer.settings.checkpoint_seconds and step + 1 < trainer.steps:
            _write_checkpoint(folder, trainer, step + 1)
            saved = time.monotonic()


def _checkpoint(
    folder: Path, identity: dict[str, object], team: Team
) -> tuple[dict[str, Tensor], CheckpointRecord] | None:
    """The last checkpoint of this training in a folder; None where there is none."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    tensors, record = checkpoint.read(path)
    # Norms see a process's part of a batch: another number of them is another training.
    _must_match(path, record, {**identity, "processes": team.size})
    return tensors, record


def _write_checkpoint(folder: Path, trainer: Trainer, step: int) -> None:
    state = {"step": step, "rollbacks": trainer.rollbacks, "processes": trainer.team.size}
    checkpoint.write(folder / CHECKPOINT, trainer.state(), {**trainer.identity(), **state})


def _rolled_back(trainer: Trainer, folder: Path, error: DivergedError) -> Trainer:
    """A trainer that goes on from the last checkpoint with a smaller learning rate.

    A training that diverges is almost always one whose learning rate was too high for some steps;
    what was learned before is still good. Raises the error where that was tried often enough.
    """
    if trainer.rollbacks == MOST_ROLLBACKS:
        raise error
    fresh = Trainer(trainer.space, trainer.data, trainer.settings, trainer.seed, trainer.team)
    fresh.rollbacks = trainer.rollbacks + 1
    if not trainer.team.leads:
        return fresh
    step = 0
    if (folder / CHECKPOINT).is_file():
        tensors, record = checkpoint.read(folder / CHECKPOINT)
        step = record.step
        fresh.restore(tensors, folder / CHECKPOINT)
        _write_checkpoint(folder, fresh, step)
    warnings.warn(
        f"{error.message} Going back to step {step} with {fresh.share:g} of the learning rate.",
        stacklevel=3,
    )
    return fresh


def _out_of_memory(
    space: SearchSpace, data: ImageDataset, settings: TrainingSettings, reason: str
) -> TrainingError:
    """Says which batch would fit, by trying smaller ones in this process."""
    size = min(settings.batch_size, len(data.train))
    fitting = None
    while fitting is None and size >= 4:
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            Trainer(space, data, replace(settings, batch_size=size), seed=0).step(0)
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


class StepTime(NamedTuple):
    """What one training step takes, and how many there are."""

    seconds: float
    steps_per_epoch: int

    def epochs_within(self, seconds: float) -> int:
        """Whole epochs that fit into a budget, at least one."""
        return max(1, int(seconds / (self.seconds * self.steps_per_epoch)))


def measure_step(
    space: SearchSpace,
    data: ImageDataset,
    settings: TrainingSettings | None = None,
    *,
    steps: int = 3,
) -> StepTime:
    """Times some training steps (median, after one that is not counted), for planning.

    Processes that train together all call this, and get the same answer.
    """
    together = team()
    trainer = Trainer(space, data, settings or TrainingSettings(), 0, together)
    samples = []
    for step in range(steps + 1):
        begun = time.perf_counter()
        trainer.step(step)  # its result is read back, so a GPU has finished too
        samples.append(time.perf_counter() - begun)
    return StepTime(together.told(median(samples[1:])), trainer.batches.steps_per_epoch)


def _forget(log: Path, *, after_step: int) -> None:
    """Drops the lines that a resumed training writes again."""
    rows = [row for row in jsonl.read(log, TRAINING) if row.step <= after_step]
    lines = [row.model_dump_json(by_alias=True) + "\n" for row in rows]
    files.replace(log, "".join(lines))


def _must_match(path: Path, record: CheckpointRecord, identity: dict[str, object]) -> None:
    for key, wanted in identity.items():
        stored = getattr(record, key)
        if stored != wanted:
            raise CheckpointError(
                f"{path} holds a training with {key} = {stored}, not {wanted}.",
                remedy="Train in another folder, or delete this one.",
            )
