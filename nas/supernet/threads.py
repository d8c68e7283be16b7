"""How many CPU threads small networks run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_MACS = 100_000_000
"""Multiply-accumulates of a batch below which further threads gain nothing."""


@contextmanager
def threads_for(macs: int) -> Iterator[None]:
    """Runs a block on one thread if its batches take fewer than `SMALL_MACS`.

    A small batch gains at most a tenth from a second thread, and loses a hundredfold where another
    process has the other processor, because the threads wait for each other at every op. Depends
    on the work alone, as the number of threads can decide how sums are rounded.
    """
    before = torch.get_num_threads()
    if macs < SMALL_MACS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
