"""Trains one network by itself, with the recipe of a supernet."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.errors import TrainingError
from nas.graph import Graph
from nas.supernet.memory import keep_freed_memory
from nas.supernet.recipe import batches_of, clip_adaptively, learning_rate, move, optimizer_of
from nas.supernet.settings import TrainingSettings, device_called
from nas.supernet.threads import threads_for
from nas.torch_network import Network


def train_alone(
    graph: Graph,
    data: ImageDataset,
    settings: TrainingSettings | None = None,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Network:
    """A network of `graph` with weights of its own, trained on the labels of `data.train`.

    Optimizer, schedule, augmentation and label smoothing are those of `nas.supernet.train` with the
    same settings; only what makes a supernet of it is left out. A function of its arguments.

    Args:
        graph: for the images of `data`.
        data: only its training part is read.
        settings: how to train; by default `TrainingSettings()`.
        seed: of weights, order and augmentation.
        progress: called after every step with (steps done, steps in all).

    Raises TrainingError if the loss is no longer a number.
    """
    settings = settings or TrainingSettings()
    keep_freed_memory()
    device = device_called(settings.device)
    network = Network(graph, torch.Generator().manual_seed(seed)).to(device).train()
    optimizer = optimizer_of(network, settings)
    batches = batches_of(data, settings, seed, device)
    steps = settings.epochs * batches.steps_per_epoch
    with threads_for(graph.macs * batches.batch_size):
        for step in range(steps):
            images, labels = batches.batch(step)
            optimizer.zero_grad(set_to_none=True)
            with settings.autocast(device):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
            loss.backward()
            norm = clip_adaptively(network.parameters(), settings.gradient_ratio)
            found, length = torch.stack([loss.detach(), norm]).tolist()
            if not (math.isfinite(found) and math.isfinite(length)):
                raise TrainingError(
                    f"A network trained alone diverged in step {step + 1} of {steps}: "
                    f"loss {found}, gradient norm {length}.",
                    remedy=f"Lower learning_rate (it is {settings.learning_rate}).",
                )
            move(optimizer, learning_rate(settings, step, steps))
            if progress:
                progress(step + 1, steps)
    return network.eval()
