"""A training of a supernet, one step at a time, and the state to go on from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.errors import DataError, TrainingError
from nas.graph import Graph
from nas.space import SearchSpace
from nas.supernet.checkpoint import require_tensors
from nas.supernet.distributed import ALONE, Team
from nas.supernet.memory import keep_freed_memory
from nas.supernet.recipe import batches_of, clip_adaptively, learning_rate, move, optimizer_of
from nas.supernet.settings import TrainingSettings, device_called
from nas.supernet.subnets import Look, Role, subnets_for
from nas.supernet.threads import threads_for
from nas.supernet.weights import Supernet

ROLLBACK_SHARE = 0.5
"""The share of the learning rate with which a training that diverged goes on, each time."""

_LOOKED_AT = 4
"""Of a batch, one part in so many is looked at to choose among networks."""


class DivergedError(TrainingError):
    """A loss or gradient that is no number."""


class Found(NamedTuple):
    """What a step found: the first network's loss, and accuracies on its batch, as `Progress`."""

    loss: float
    accuracy_largest: float | None
    accuracy_smallest: float | None
    accuracy_random: float | None


class Trainer:
    """A supernet, its optimizer and its batches: one step at a time, and the state to resume.

    Args:
        space, data, settings, seed: as for `nas.supernet.train`.
        team: the processes that train together; all of them hold the same weights.
    """

    def __init__(
        self,
        space: SearchSpace,
        data: ImageDataset,
        settings: TrainingSettings,
        seed: int,
        team: Team = ALONE,
    ) -> None:
        wanted = {
            "image_size": data.image_size,
            "channels": data.channels,
            "classes": len(data.classes),
        }
        if space.settings != wanted:
            raise DataError(
                f"Space {space.name} is adapted to {space.settings}, the data has {wanted}.",
                remedy="Use space.adapt(...) with the data's sizes.",
            )
        keep_freed_memory()
        self.space, self.data, self.settings, self.seed = space, data, settings, seed
        self.team = team
        self.device = device_called(settings.device, team.local_rank if team.size > 1 else None)
        self.supernet = Supernet(space, torch.Generator().manual_seed(seed)).to(self.device)
        self.supernet.train()
        self.optimizer = optimizer_of(self.supernet, settings)
        self.batches = batches_of(data, settings, seed, self.device, team)
        self.steps = settings.epochs * self.batches.steps_per_epoch
        self.rollbacks = 0
        self.averages: list[Tensor] = []
        self._largest = space.largest.graph
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
        own = self.batches.batch_size // self.team.size
        with threads_for(self._largest.macs * own):
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
        self.team.average([p.grad for p in self.supernet.parameters() if p.grad is not None])
        norm = clip_adaptively(self.supernet.parameters(), self.settings.gradient_ratio)
        # Read together: a GPU waits once a step.
        answers = [
            torch.stack(each).mean() if each else torch.zeros_like(first) for each in right.values()
        ]
        read = torch.stack([first, norm, *answers])
        self.team.average([read])
        found, length, *accuracies = read.tolist()
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
            loss = self._on_labels(self._forward(graph, images[:count]), labels[:count])
            self.team.average([loss])
            return loss.item()

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

    def restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Continue from a `state`.

        Args:
            tensors: what `state` returned.
            path: the file that they were read from.

        Raises CheckpointError for tensors of another training.
        """
        parameters = dict(self.supernet.named_parameters())
        expected = {f"weights.{name}": parameter for name, parameter in parameters.items()}
        for prefix in ("average", "optimizer.momentum_buffer"):
            slots = {f"{prefix}.{name}": parameter for name, parameter in parameters.items()}
            if slots.keys() & tensors.keys():
                expected |= slots
        require_tensors(path, tensors, expected)
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
