"""Data-parallel training: several processes, started by `torchrun`, train one supernet.

    torchrun --nproc-per-node 4 -m nas supernet train --space mobilenet --data images --epochs 60

Each process computes gradients on its own shard of every batch, and the gradients are averaged.
All processes draw the same subnets, because the draws depend on the seed and the step alone. Batch
norms use the statistics of a process's own shard, as is usual (Goyal et al. 2017, "Accurate, large
minibatch SGD").
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from nas.errors import RequestError


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: number of this process; the process with rank 0 writes all files.
        world_size: number of processes.
        local_rank: number of this process on its machine, which selects the GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files, rank 0."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor in place by its mean over the processes, in one all-reduce."""
        if self.world_size == 1:
            return
        targets = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in targets])
        distributed.all_reduce(flat)
        flat /= self.world_size
        means = flat.split([tensor.numel() for tensor in targets])
        for tensor, mean in zip(targets, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def broadcast(self, value: Any) -> Any:
        """Return the `value` of the main process in every process."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.world_size > 1:
            distributed.barrier()


SINGLE_PROCESS = ProcessGroup()
"""The group of a process that was not started by `torchrun`."""


def current_process_group() -> ProcessGroup:
    """Return the group that `torchrun` started this process in; `SINGLE_PROCESS` without it.

    The first call connects the processes.
    """
    if _world_size() == 1:
        return SINGLE_PROCESS
    if not distributed.is_initialized():
        distributed.init_process_group()
        # Gloo's threads sometimes abort the process if they still run when the interpreter ends.
        atexit.register(distributed.destroy_process_group)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), local_rank)


def require_single_process(task: str) -> None:
    """Raise RequestError where `torchrun` started several processes.

    Args:
        task: name of the task that only one process can do, such as "a search".
    """
    if _world_size() > 1:
        raise RequestError(
            f"torchrun started {_world_size()} processes, but {task} runs in one process.",
            remedy="Train with torchrun and `nas supernet train`, then go on in the same folder "
            "without torchrun.",
        )


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
