"""Learning rate, gradient clipping, batches and image size, shared by all training.

A supernet and a network that is trained standalone use the same recipe, so that their accuracies
can be compared. `nas.supernet.engine` puts the parts together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nas.data import ImageDataset
from nas.data.batches import TrainingBatches
from nas.supernet.distributed import SINGLE_PROCESS, ProcessGroup
from nas.supernet.recipe import GRADIENT_RATIO, WARMUP, Recipe


def adjusted(logits: Tensor, log_priors: np.ndarray | Tensor | None) -> Tensor:
    """Return logits in training, corrected by the shares of the classes in the training images.

    Args:
        logits: output of a network, `N x classes`.
        log_priors: see `nas.data.ImageDataset.log_priors`; None for no correction.
    """
    return logits if log_priors is None else logits + torch.as_tensor(log_priors).to(logits)


def make_batches(
    data: ImageDataset,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    alternating: bool = False,
) -> TrainingBatches:
    """Return the shuffled and augmented training images, as the recipe says.

    Args:
        data: only its training split is used.
        recipe: batch size and augmentation.
        seed: seed of the order and of the augmentation.
        device: device of the batches.
        group: processes that train together; this process gets its shard of every batch.
        alternating: whether an image that may be mirrored is so in every other epoch.
    """
    return TrainingBatches(
        data,
        batch_size=recipe.batch_size,
        seed=seed,
        shift=recipe.resolve_shift(data),
        flip=recipe.resolve_flip(data),
        alternating=alternating,
        colour=recipe.colour,
        device=device,
        rank=group.rank,
        world_size=group.world_size,
    )


def learning_rate(recipe: Recipe, step: float, steps: int, floor: float = 0.0) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay.

    The decay is that of Loshchilov and Hutter 2017, "SGDR", without restarts.

    Args:
        recipe: `learning_rate` is the peak.
        step: number of the step, from 0; or its position, see `nas.supernet.schedule`.
        steps: number of steps of the whole training.
        floor: smallest rate after the warm-up, as a fraction of the peak, where the decay ends.
    """
    warmup_steps = math.ceil(WARMUP * steps)
    if step < warmup_steps:
        return recipe.learning_rate * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return recipe.learning_rate * max(floor, (1 + math.cos(math.pi * progress)) / 2)


def resized_image_size(image_size: int, share: float, step: float, steps: int) -> int:
    """Return the size in pixels of the images of a step: smaller ones at first.

    Steps with smaller images take less time, so a time budget allows more of them (progressive
    resizing; Tan and Le 2021, "EfficientNetV2"). Of the steps with smaller images, the first half
    has half of the size, and the second half three quarters. The very first step has whole images,
    so that a training that lacks memory for them fails at once.

    Args:
        image_size: size of whole images in pixels.
        share: share of the steps with smaller images, in [0, 1).
        step: number of the step, from 0; or its position, see `nas.supernet.schedule`.
        steps: number of steps of the whole training.
    """
    end = share * steps
    if step == 0 or step >= end:
        return image_size
    return math.ceil(image_size * (1 / 2 if step < end / 2 else 3 / 4))


class ClippedGradients(NamedTuple):
    """What `adaptive_clip_grad` met.

    Attributes:
        norm: norm of all gradients together before clipping, a scalar tensor.
        share: share of the tensors whose gradient was clipped, a scalar tensor in [0, 1].
    """

    norm: Tensor
    share: Tensor


@torch.no_grad()
def adaptive_clip_grad(parameters: Iterable[Parameter]) -> ClippedGradients:
    """Clip the gradient of each tensor to `GRADIENT_RATIO` times the norm of the tensor, in place.

    Adaptive gradient clipping (Brock et al. 2021, "High-performance large-scale image recognition
    without normalization"), with one norm for a whole tensor. Clipping all gradients by their
    common norm would be decided by the linear layer behind a wide head: its gradients grow with the
    width of the head, so wide subnets would diverge at a learning rate that suits narrow ones.

    Args:
        parameters: parameters; those without a gradient are left out. The norm of a vector (a bias,
            or the scale of a batch norm) counts as at least 1, that of another tensor as at least
            0.001, so that tensors of zeros can change.
    """
    used = [p for p in parameters if p.grad is not None]
    gradients: list[Tensor] = [p.grad for p in used if p.grad is not None]
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    min_norms = torch.tensor(
        [1.0 if p.dim() == 1 else 1e-3 for p in used], device=gradient_norms.device
    )
    norms = torch.stack(torch._foreach_norm(list[Tensor](used)))
    max_gradient_norms = GRADIENT_RATIO * torch.maximum(norms, min_norms)
    factors = (max_gradient_norms / gradient_norms.clamp_min(1e-12)).clamp_max(1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
    return ClippedGradients(gradient_norms.norm(), (factors < 1).float().mean())


def parameter_groups(
    module: nn.Module, weight_decay: float, *, depthwise: bool = True
) -> list[dict[str, object]]:
    """Return two parameter groups for an optimizer: with weight decay, and without.

    Vectors (biases, and the scales and shifts of batch norms) have no weight decay.

    Args:
        module: the module.
        weight_decay: weight decay of the first group.
        depthwise: whether weights `C x 1 x K x K` have it, too: those of depthwise convolutions,
            and of the first convolution of grey images.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for parameter in module.parameters():
        decays = parameter.dim() > 1 and (depthwise or parameter.shape[1] > 1)
        groups[0 if decays else 1].append(parameter)
    return [
        {"params": groups[0], "weight_decay": weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]
