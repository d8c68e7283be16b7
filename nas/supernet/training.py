"""Training of a supernet: the loop over the steps, its log, its checkpoints and its rollbacks."""

from __future__ import annotations

import time
import warnings
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from nas.data import ImageDataset
from nas.display.progress import Advance
from nas.errors import TrainingError, first_line
from nas.files import jsonl
from nas.files.paths import expanded
from nas.pretrained import PublishedWeights
from nas.space import SearchSpace
from nas.supernet import checkpoint
from nas.supernet.distributed import current_process_group
from nas.supernet.recipe import DivergedError
from nas.supernet.records import (
    SCHEDULE,
    SCHEDULE_LOG,
    TRAINING,
    TRAINING_LOG,
    ScheduleRow,
)
from nas.supernet.settings import TrainingSettings
from nas.supernet.trainer import Trainer
from nas.supernet.weights import SUPERNET_FILE, Supernet

CHECKPOINT_FILE = "training.safetensors"
"""Name of the checkpoint of an unfinished training, in the supernet's folder."""

MAX_ROLLBACKS = 3
"""How often a training that diverges goes back to its last checkpoint.

The learning rate is then an eighth of what was asked for; a training that still diverges has
another cause.
"""


def train(
    space: SearchSpace,
    data: ImageDataset,
    folder: str | Path,
    settings: TrainingSettings | None = None,
    *,
    seed: int,
    published: PublishedWeights | None = None,
    progress: Advance | bool | None = True,
) -> Supernet:
    """Train a supernet, or resume an interrupted training.

    Every step trains the largest subnet on the labels, then the smallest and some random
    ones on the output of the largest, and updates the weights with the sum of their gradients: the
    sandwich rule with in-place distillation (Yu and Huang 2019, "Universally slimmable networks").

    Every random draw depends on the seed and the step alone, so that on one machine a training that
    was killed and resumed ends with the same weights as an uninterrupted one. If the folder has a
    finished training, its supernet is loaded. Processes that `torchrun` started share every batch;
    see `nas.supernet.distributed`.

    Args:
        space: search space, adapted to `data`.
        data: only its training split is used.
        folder: folder for `training.jsonl`, checkpoints and finally `supernet.safetensors`.
        settings: training settings; `TrainingSettings()` by default.
        seed: seed of the weights, the order of the images, the augmentation and the subnets.
        published: weights of a published network of the space to start from, see
            `nas.read_weights`; None starts from random weights.
        progress: True shows a bar on a terminal or in a notebook, False nothing; or a function to
            call after every step with the loss and the accuracies of the step's batch.

    Returns:
        The trained supernet in evaluation mode.

    Raises:
        DataError: the space is adapted to other data.
        SpaceError: the networks of the space do not end with the classes.
        CheckpointError: the folder has a training of another space, data set, seed or settings.
        WeightsError: the published network is not in the space.
        TrainingError: the loss is not finite even at a fraction of the learning rate, or a batch
            does not fit into the device's memory.
    """
    from nas.display.console import reported

    settings = settings or TrainingSettings()
    space.require_classifier()
    folder = Path(expanded(folder))
    group = current_process_group()
    decisions = group.broadcast(_read_decisions(folder) if group.is_main else None)
    make_trainer = partial(Trainer, space, data, settings, seed, group, published=published)
    trainer = make_trainer(decisions=decisions)
    supernet_path = folder / SUPERNET_FILE
    # The main process reads for all, because the others may be on machines without this folder.
    finished = group.broadcast(
        checkpoint.read_own(supernet_path, trainer.identity()) if group.is_main else None
    )
    if finished is not None:
        tensors, _ = finished
        checkpoint.require_tensors(supernet_path, tensors, trainer.supernet.state_dict())
        trainer.supernet.load_state_dict(tensors, strict=False)
        return trainer.supernet.eval()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with reported(
                progress if group.is_main else None, f"supernet {space.name}", "step"
            ) as report:
                _run_steps(trainer, folder, report)
            break
        except DivergedError as error:
            if trainer.rollbacks == MAX_ROLLBACKS:
                raise
            trainer = make_trainer(
                decisions=trainer.schedule.decisions, rollbacks=trainer.rollbacks + 1
            )
            if group.is_main:
                _roll_back(trainer, folder, error)
        except torch.OutOfMemoryError as error:
            size = trainer.batches.batch_size
            raise TrainingError(
                f"{space.name}: a batch of {size} does not fit into the memory of the training "
                f"device ({first_line(error)}).",
                remedy=f"Train with batch_size = {size // 2} or less, or with smaller images, in "
                "another folder.",
            ) from None
    supernet = trainer.supernet.eval()
    if group.is_main:
        steps = trainer.schedule.steps
        epochs = float(settings.epochs)
        if trainer.schedule.decisions:
            epochs = round(steps / trainer.batches.steps_per_epoch, 3)
        supernet.save(folder, {**trainer.identity(), "step": steps, "epochs": epochs})
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    group.barrier()
    return supernet


def _run_steps(trainer: Trainer, folder: Path, progress: Advance | None) -> None:
    """Do all steps from the last checkpoint, or from the first, to the last one."""
    group, schedule = trainer.group, trainer.schedule
    # Batch norms see the shard of one process, so the number of processes changes the training.
    identity = {**trainer.identity(), "processes": group.world_size}
    path = folder / CHECKPOINT_FILE
    saved = group.broadcast(checkpoint.read_own(path, identity) if group.is_main else None)
    step, earlier_s = 0, 0.0
    if saved is not None:
        tensors, record = saved
        trainer.state.load_state_dict(tensors, path)
        step, earlier_s = record.step, record.seconds
        trainer.rollbacks = max(trainer.rollbacks, record.rollbacks)
    else:
        trainer.start()
    if group.is_main:
        checkpoint.truncate_log(folder / TRAINING_LOG, TRAINING, step)
    started = last_checkpoint = time.monotonic()
    while step < schedule.steps:
        if schedule.has_budget:
            spent_s = group.broadcast(round(earlier_s + time.monotonic() - started, 3))
            decision = schedule.decide(step, spent_s)
            if decision is not None and group.is_main:
                jsonl.append(folder / SCHEDULE_LOG, decision.model_dump(by_alias=True))
        result = trainer.step(step)
        rate = trainer.learning_rate(step)
        step += 1
        if not group.is_main:
            continue
        now = time.monotonic()
        figures = {**result._asdict(), "learning_rate": rate}
        log = folder / TRAINING_LOG
        checkpoint.log_step(log, step, schedule.steps, figures, seconds=now - started)
        if progress:
            progress(step, schedule.steps, result.text)
        is_due = now - last_checkpoint >= trainer.settings.checkpoint_seconds
        if is_due and step < schedule.steps:
            _write_checkpoint(folder, trainer, step, earlier_s + now - started)
            last_checkpoint = time.monotonic()


def _read_decisions(folder: Path) -> list[ScheduleRow]:
    """Return what was decided about the number of steps before; nothing for a new training."""
    path = folder / SCHEDULE_LOG
    jsonl.repair(path)
    return list(jsonl.read(path, SCHEDULE))


def _write_checkpoint(folder: Path, trainer: Trainer, step: int, seconds: float) -> None:
    record = {
        **trainer.identity(),
        "step": step,
        "seconds": round(seconds, 3),
        "rollbacks": trainer.rollbacks,
        "processes": trainer.group.world_size,
    }
    checkpoint.write(folder / CHECKPOINT_FILE, trainer.state.state_dict(), record)


def _roll_back(trainer: Trainer, folder: Path, error: DivergedError) -> None:
    """Note in the last checkpoint that a trainer continues from it with a lower learning rate.

    A training usually diverges because its learning rate was too high for some steps; the weights
    of the last checkpoint are still good.
    """
    step = 0
    if saved := checkpoint.read_own(folder / CHECKPOINT_FILE, trainer.identity()):
        tensors, record = saved
        step = record.step
        trainer.state.load_state_dict(tensors, folder / CHECKPOINT_FILE)
        _write_checkpoint(folder, trainer, step, record.seconds)
    warnings.warn(
        f"{error.message} Going back to step {step} with {trainer.learning_rate_factor:g} of the "
        "learning rate.",
        stacklevel=3,
    )


def trained_epochs(folder: Path) -> float | None:
    """Return the epochs of the finished training in a folder; None if it does not say."""
    _, record = checkpoint.read(folder / SUPERNET_FILE)
    return record.epochs


def measure_supernet_epoch(
    space: SearchSpace, data: ImageDataset, settings: TrainingSettings, *, seconds: float
) -> float:
    """Return the seconds of an epoch by the duration of some steps, to plan a training.

    All processes that train together must call this; they get the same result.

    Args:
        space: search space, adapted to `data`.
        data: only its training split is used.
        settings: training settings.
        seconds: duration of all steps that are timed, at least. They are spread over the whole
            training, whose first steps may have smaller images. Each is done once before it is
            timed, which compiles the kernels that its subnets need.
    """
    from scipy.stats.qmc import Halton

    group = current_process_group()
    trainer = Trainer(space, data, settings, 0, group)
    durations: list[float] = []
    # Its positions are 1/2, 1/4, 3/4, 1/8, ... after the first one, 0.
    positions = Halton(1, scramble=False).fast_forward(1)
    begin = time.perf_counter()
    while not durations or (
        len(durations) < trainer.schedule.steps
        and group.broadcast(time.perf_counter() - begin) < seconds
    ):
        step = int(positions.random()[0, 0] * trainer.schedule.steps)
        trainer.step(step)
        started = time.perf_counter()
        # A step reads its figures back from the device, so a GPU has finished too.
        trainer.step(step)
        durations.append(time.perf_counter() - started)
    return group.broadcast(mean(durations)) * trainer.batches.steps_per_epoch
