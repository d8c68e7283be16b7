"""What a supernet and a network that is trained alone have in common: how weights are moved."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nas.data import ImageDataset
from nas.data.batches import TrainingBatches
from nas.supernet.distributed import ALONE, Team
from nas.supernet.settings import TrainingSettings


def optimizer_of(module: nn.Module, settings: TrainingSettings) -> torch.optim.SGD:
    """Stochastic gradient descent with Nesterov's momentum, all tensors in one pass."""
    optimizer = torch.optim.SGD(
        parameter_groups(module, settings.weight_decay),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )
    if settings.momentum:
        # Torch moves in one pass only what all has a momentum; networks that come late have none.
        for parameter in module.parameters():
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
    return optimizer


def batches_of(
    data: ImageDataset,
    settings: TrainingSettings,
    seed: int,
    device: torch.device,
    team: Team = ALONE,
) -> TrainingBatches:
    """The training images on `device`, augmented as the settings say; of a team, this one's."""
    return TrainingBatches(
        data,
        batch_size=settings.batch_size,
        seed=seed,
        shift=settings.shift_for(data),
        flip=settings.flip_for(data),
        colour=settings.colour,
        randaugment=settings.randaugment,
        magnitude=settings.magnitude,
        cutout=settings.cutout,
        device=device,
        rank=team.rank,
        world_size=team.size,
    )


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2017)."""
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2


def move(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Takes a step of the optimizer at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


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


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters for an optimizer: norms and biases (vectors) are not decayed."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
