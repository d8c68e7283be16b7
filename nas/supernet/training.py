"""Training of supernets: the loss of a step, and where a training starts and ends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.display.progress import Advance
from nas.files.paths import expanded
from nas.graph import Graph
from nas.pretrained import PublishedWeights
from nas.space import SearchSpace
from nas.supernet import checkpoint
from nas.supernet.distributed import SINGLE_PROCESS, ProcessGroup, current_process_group
from nas.supernet.engine import CHECKPOINT_FILE, Backward, Engine, run_steps
from nas.supernet.evaluation import require_adapted
from nas.supernet.pretrained import start_from
from nas.supernet.recipe import LEARNING_RATE_FLOOR, Recipe
from nas.supernet.records import TRAINING
from nas.supernet.subnets import SubnetSampler
from nas.supernet.weights import SUPERNET_FILE, Supernet


class Trainer(Engine[Supernet]):
    """A supernet in training: every step trains several subnets, see `nas.train`.

    Args:
        space: search space, adapted to `data`.
        data: only its training split is used.
        recipe: how it is trained.
        seed: seed of the weights, the order of the images, the augmentation and the subnets.
        group: processes that train together; all of them have the same weights at any step.
        published: weights of a published network to start from; None for random ones.

    Raises:
        DataError: the space is adapted to other data.
        DeviceError: this machine does not have the device of the recipe.
    """

    log_format = TRAINING

    def __init__(
        self,
        space: SearchSpace,
        data: ImageDataset,
        recipe: Recipe,
        seed: int,
        group: ProcessGroup = SINGLE_PROCESS,
        published: PublishedWeights | None = None,
    ) -> None:
        require_adapted(space, data)
        self.space, self.published = space, published
        self._subnets = SubnetSampler(space, recipe.random_subnets, seed)
        random = ["accuracy_random"] if recipe.random_subnets else []
        self.accuracies = ("accuracy_smallest", *random, "accuracy_largest")
        super().__init__(
            f"the supernet {space.name}",
            Supernet(space, torch.Generator().manual_seed(seed)),
            data,
            recipe,
            seed,
            space.largest.macs,
            weight_decay=recipe.resolve_weight_decay(),
            decays_depthwise=recipe.decays_depthwise is not False,
            alternating=recipe.alternating is True,
            resizing=recipe.resolve_progressive_resizing(space),
            floor=LEARNING_RATE_FLOOR,
            group=group,
        )

    def identity(self) -> dict[str, object]:
        """Return what a checkpoint must have in common with this training, as plain data."""
        return {
            "space": self.space.name,
            "space_digest": self.space.digest,
            "data_digest": self.data.digest,
            "training": self.recipe.identity(),
            "seed": self.seed,
            "published": None if self.published is None else self.published.digest,
        }

    def start(self) -> None:
        """Take the weights that a training starts from, where there is no checkpoint."""
        if self.published is not None:
            if self.group.is_main:
                start_from(self.module, self.published, self.data)
            # Others may compute the statistics and the classifier with other rounding.
            self.module.load_state_dict(self.group.broadcast(self.module.state_dict()))

    def backward(self, step: int) -> Backward[Supernet]:
        """Return what adds the gradients of all subnets of a step."""
        return partial(self._backward, self._subnets.sample(step))

    def _backward(
        self, subnets: Sequence[Graph], supernet: Supernet, images: Tensor, labels: Tensor
    ) -> Tensor:
        """Add the gradients of all subnets of a step on some images to those of a supernet.

        All subnets but the first, the largest one, learn from its output (in-place distillation).

        Returns:
            The loss of the largest subnet, and the accuracies of the smallest one, of the random
            ones on average, and of the largest one.
        """
        targets, smoothing = labels, self.recipe.label_smoothing
        learned: list[tuple[Tensor, Tensor]] = []
        for graph in subnets:
            loss, logits, accuracy = self.learn(
                partial(supernet, graph, images),
                labels,
                partial(F.cross_entropy, target=targets, label_smoothing=smoothing),
            )
            if not learned:
                targets, smoothing = logits.softmax(1), 0.0
            learned.append((loss, accuracy))
        largest, smallest, *random = [accuracy for _, accuracy in learned]
        means = [torch.stack(random).mean()] if random else []
        return torch.stack([learned[0][0], smallest, *means, largest])


def train(
    space: SearchSpace,
    data: ImageDataset,
    folder: str | Path,
    recipe: Recipe | None = None,
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
        recipe: how it is trained; `Recipe()` by default.
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
        CheckpointError: the folder has a training of another space, data set, seed or recipe.
        WeightsError: the published network is not in the space.
        TrainingError: the loss is not finite even at a fraction of the learning rate, or a batch
            does not fit into the device's memory.
    """
    from nas.display.console import reported

    recipe = recipe or Recipe()
    space.require_classifier()
    folder = Path(expanded(folder))
    group = current_process_group()
    trainer = Trainer(space, data, recipe, seed, group, published)
    supernet, identity, supernet_path = trainer.module, trainer.identity(), folder / SUPERNET_FILE
    # The main process reads for all, because the others may be on machines without this folder.
    if finished := group.broadcast(group.is_main and checkpoint.read_own(supernet_path, identity)):
        tensors, _ = finished
        checkpoint.require_tensors(supernet_path, tensors, supernet.state_dict())
        supernet.load_state_dict(tensors, strict=False)
        return supernet.eval()
    with reported(progress if group.is_main else None, f"supernet {space.name}", "step") as report:
        run_steps(trainer, folder, identity, report)
    if group.is_main:
        supernet.save(folder, {**identity, "step": trainer.steps, "epochs": trainer.epochs})
        (folder / CHECKPOINT_FILE).unlink()
    group.barrier()
    return supernet.eval()


def trained_epochs(folder: Path, file: str = SUPERNET_FILE) -> float | None:
    """Return the epochs of the finished training in a folder; None if it does not say."""
    return checkpoint.read(folder / file)[1].epochs
