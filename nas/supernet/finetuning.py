"""Training of one architecture to the end: resumable, from a supernet's weights, with a teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from nas import jsonl
from nas.data import ImageDataset
from nas.records import NETWORK_TRAINING, SCHEMA, TRAINING_LOG
from nas.space import Architecture
from nas.supernet import checkpoint
from nas.supernet.distillation import Teacher, parameters_digest
from nas.supernet.settings import TrainingSettings
from nas.supernet.standalone import NetworkTrainer
from nas.supernet.training import CHECKPOINT_FILE, LOG_LINES
from nas.torch_network import Network


@dataclass(frozen=True)
class NetworkProgress:
    """Progress of the training of one network after a step.

    Attributes:
        step: number of steps done.
        steps: number of steps of the whole training.
        loss: loss on the step's batch.
        accuracy: accuracy on the step's batch, in [0, 1].
        clipped_share: share of the weight tensors whose gradient the step clipped, in [0, 1].
        learning_rate: learning rate of the step.
        seconds: duration of the training, over all starts but for what a kill undid.
    """

    step: int
    steps: int
    loss: float
    accuracy: float
    clipped_share: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that was trained to the end.

    Attributes:
        network: the network in evaluation mode.
        seconds: duration of the training, over all starts.
    """

    network: Network
    seconds: float


def train_network(
    architecture: Architecture,
    data: ImageDataset,
    folder: Path,
    settings: TrainingSettings,
    *,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    progress: Callable[[NetworkProgress], None] | None = None,
) -> TrainedNetwork:
    """Train the network of an architecture, or resume an interrupted training.

    On one machine, a training that was killed and resumed ends with the same weights as an
    uninterrupted one.

    Args:
        architecture: the architecture, of a space that is adapted to `data`.
        data: only its training split is used.
        folder: folder for `training.jsonl` and the checkpoint, which stays there at the end.
        settings: training settings; those that choose and teach subnets are ignored.
        seed: seed of the order of the images, the augmentation and newly drawn weights.
        start: initial weights, see `nas.supernet.evaluation.calibrated_state`; newly drawn ones by
            default.
        teacher: network to learn from, beside the labels.
        progress: called after every step.

    Raises:
        CheckpointError: the folder has a training of another network, data set, seed or settings,
            or from other weights.
        TrainingError: the loss or the gradient is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = NetworkTrainer(architecture.graph, data, settings, seed, start, teacher)
    identity = {
        "space": architecture.space.name,
        "space_digest": architecture.space.digest,
        "network": architecture.digest,
        "data_digest": data.digest,
        "seed": seed,
        "training": {
            **settings.identity(),
            "start": None if start is None else parameters_digest(start),
            "teacher": None if teacher is None else teacher.digest,
        },
    }
    path, log = folder / CHECKPOINT_FILE, folder / TRAINING_LOG
    first_step = 0
    if path.is_file():
        tensors, record = checkpoint.read(path)
        checkpoint.require_match(path, record, identity)
        trainer.state.load_state_dict(tensors, path)
        first_step = record.step
    rows = checkpoint.truncate_log(log, NETWORK_TRAINING, first_step)
    earlier_s = rows[-1].seconds if rows else 0.0
    started = last_checkpoint = time.monotonic()
    log_interval = max(1, trainer.steps // LOG_LINES)
    for step in range(first_step, trainer.steps):
        result = trainer.step(step)
        now = time.monotonic()
        state = NetworkProgress(
            step + 1,
            trainer.steps,
            result.loss,
            result.accuracy,
            result.clipped_share,
            trainer.learning_rate(step),
            round(earlier_s + now - started, 3),
        )
        is_last = step + 1 == trainer.steps
        if (step + 1) % log_interval == 0 or is_last:
            jsonl.append(log, {"schema": SCHEMA, **asdict(state)})
        if is_last or now - last_checkpoint >= settings.checkpoint_seconds:
            checkpoint.write(path, trainer.state.state_dict(), {**identity, "step": step + 1})
            last_checkpoint = time.monotonic()
        if progress:
            progress(state)
    seconds = round(earlier_s + time.monotonic() - started, 3)
    return TrainedNetwork(trainer.finish(), seconds)
