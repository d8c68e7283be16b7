"""Standalone training: one network with weights of its own, trained with a supernet's recipe."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.errors import TrainingError
from nas.graph import Graph
from nas.supernet.device import keep_freed_memory, limit_threads, resolve_device
from nas.supernet.recipe import (
    adaptive_clip_grad,
    learning_rate,
    make_batches,
    make_optimizer,
    optimizer_step,
)
from nas.supernet.settings import TrainingSettings
from nas.torch_network import Network, to_torch


def train_standalone(
    graph: Graph,
    data: ImageDataset,
    settings: TrainingSettings | None = None,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Network:
    """Train a network from scratch on the labels of the training images.

    Optimizer, learning rate, augmentation and label smoothing are those of `nas.supernet.train`
    with the same settings; the settings that choose and teach subnets are ignored. The same
    arguments give the same weights on the same machine.

    Args:
        graph: network for images and classes like those of `data`.
        data: only its training split is used.
        settings: training settings; `TrainingSettings()` by default.
        seed: seed of the weights, the order of the images and the augmentation.
        progress: called after every step with the number of steps done and of all steps.

    Returns:
        The trained network in evaluation mode.

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    settings = settings or TrainingSettings()
    keep_freed_memory()
    device = resolve_device(settings.device)
    network = to_torch(graph, seed=seed).to(device).train()
    optimizer = make_optimizer(network, settings)
    batches = make_batches(data, settings, seed, device)
    steps = settings.epochs * batches.steps_per_epoch
    with limit_threads(graph.macs * batches.batch_size):
        for step in range(steps):
            images, labels = batches.batch(step)
            optimizer.zero_grad(set_to_none=True)
            with settings.autocast(device):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
            loss.backward()
            gradient_norm = adaptive_clip_grad(network.parameters(), settings.gradient_ratio)
            # One transfer, because a GPU waits at each.
            loss_value, norm_value = torch.stack([loss.detach(), gradient_norm]).tolist()
            if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
                raise TrainingError(
                    f"Standalone training diverged in step {step + 1} of {steps}: "
                    f"loss {loss_value}, gradient norm {norm_value}.",
                    remedy=f"Lower learning_rate (it is {settings.learning_rate}).",
                )
            optimizer_step(optimizer, learning_rate(settings, step, steps))
            if progress:
                progress(step + 1, steps)
    return network.eval()
