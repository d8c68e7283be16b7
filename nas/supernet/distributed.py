"""Processes that train one supernet together: `torchrun` starts them, each has a part of a batch.

    torchrun --nproc-per-node 4 -m nas supernet train --space mobilenet --data images --epochs 60

Every process makes the same draws, so all train the same networks in a step; they differ in the
images. Norms use the statistics of a process's own part, as is usual (Goyal et al. 2017).
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
class Team:
    """The processes of a training, and which of them this one is.

    Args:
        rank: of this process; the first one, 0, writes all files.
        size: how many there are.
        local_rank: of this process on its machine: which GPU it takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, in one exchange."""
        if self.size == 1:
            return
        kept = list(tensors)
        flat = torch.cat([each.flatten() for each in kept])
        distributed.all_reduce(flat)
        flat /= self.size
        parts = flat.split([each.numel() for each in kept])
        for each, part in zip(kept, parts, strict=True):
            each.copy_(part.view_as(each))

    def told(self, value: Any) -> Any:
        """What the first process calls this with, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def meet(self) -> None:
        """Waits until all have come here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Team()


def team() -> Team:
    """The processes that `torchrun` started along with this one; `ALONE` without it."""
    if _size() == 1:
        return ALONE
    if not distributed.is_initialized():
        distributed.init_process_group()
        # Threads of gloo that run on while the interpreter ends abort the process now and then.
        atexit.register(distributed.destroy_process_group)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return Team(distributed.get_rank(), distributed.get_world_size(), local_rank)


def require_alone(what: str) -> None:
    """Raises RequestError where `torchrun` started several processes for what one should do."""
    if _size() > 1:
        raise RequestError(
            f"torchrun started {_size()} processes, and {what} is one process's work.",
            remedy="Train with torchrun and `nas supernet train`, then go on in the same folder "
            "without torchrun.",
        )


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
