"""Shards of a batch, whose gradients threads of one process compute at the same time.

The threads of a torch op share its work and wait for each other at its end. In the small ops of
these networks that gains little, and beside another program that uses a core, every op takes as
long as its slowest thread. Here, each thread runs the whole network on a shard of the batch, and
the threads wait for each other once in a step.

Batch norms use the statistics of a shard, as those of several processes do (Goyal et al. 2017,
"Accurate, large minibatch SGD"). So the number of shards is a matter of the batch, not of the
machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from nas.machine.torch_device import MULTITHREADING_MIN_MACS

IMAGES_PER_SHARD = 32
"""Fewest images in a shard."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def count_shards(images: int, macs: int, device: torch.device) -> int:
    """Return the number of shards of a batch; all shards have equally many images.

    Args:
        images: images in the batch.
        macs: multiply-accumulates of the largest network for one image. A batch that takes few of
            them is one shard.
        device: device that trains; a GPU has one shard.
    """
    if device.type != "cpu" or images * macs < MULTITHREADING_MIN_MACS:
        return 1
    most = max(1, images // IMAGES_PER_SHARD)
    return next(count for count in range(most, 0, -1) if images % count == 0)


class ShardedModule(Generic[ModuleT]):
    """A module with a twin for each further shard of a batch.

    The twins share the parameters of the module, but not their gradients, and have buffers of their
    own.

    Args:
        module: the module, in training mode.
        shards: number of shards.
    """

    def __init__(self, module: ModuleT, shards: int) -> None:
        self._modules = [module, *(_twin(module) for _ in range(shards - 1))]
        cores = torch.get_num_threads()
        threads = min(shards, cores)
        self._pool: ThreadPoolExecutor | None = None
        if threads > 1:
            # The number of threads that share an op is a setting of the thread that starts it.
            self._pool = ThreadPoolExecutor(
                threads, "shard", torch.set_num_threads, (cores // threads,)
            )

    def step(
        self,
        images: Tensor,
        labels: Tensor,
        backward: Callable[[ModuleT, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Compute the mean gradients and the mean figures of all shards of a batch.

        The gradients are those of the module's parameters afterwards, and its buffers have the mean
        of what they would be after each shard.

        Args:
            images: images `N x C x H x W`.
            labels: labels `N`.
            backward: computes the gradients of the parameters of a module on some images and their
                labels, and returns figures.
        """
        main, *twins = self._modules
        buffers = list(main.buffers())
        for module in self._modules:
            module.zero_grad(set_to_none=True)
        for twin in twins:
            for own, value in zip(twin.buffers(), buffers, strict=True):
                own.copy_(value)
        count = len(self._modules)
        shards = self._modules, images.chunk(count), labels.chunk(count)
        run = self._pool.map if self._pool else map
        figures = torch.stack(list(run(backward, *shards)))
        if not twins:
            return figures[0]
        _average_into(buffers, [list(twin.buffers()) for twin in twins])
        gradients = [[p.grad for p in module.parameters()] for module in self._modules]
        used = [[each for each in shard if each is not None] for shard in gradients]
        _average_into(used[0], used[1:])
        return figures.mean(0)


@torch.no_grad()
def _average_into(tensors: list[Tensor], others: list[list[Tensor]]) -> None:
    """Replace tensors in place by their mean with others."""
    if tensors:
        for other in others:
            torch._foreach_add_(tensors, other)
        torch._foreach_div_(tensors, len(others) + 1)


def _twin(module: ModuleT) -> ModuleT:
    """Return a copy of a module that shares its parameters, and whatever is neither a parameter nor
    a buffer."""
    shared: dict[int, object] = {
        id(value): value for name, value in vars(module).items() if not name.startswith("_")
    }
    for parameter in module.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach())
    return copy.deepcopy(module, shared)
