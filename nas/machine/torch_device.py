"""Where training and evaluation run: the torch device, CPU threads and the memory allocator."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from nas.errors import DeviceError
from nas.machine import this_machine

MULTITHREADING_MIN_MACS = 100_000_000
"""Multiply-accumulates of a batch below which a second CPU thread gains next to nothing."""

T = TypeVar("T")
Batch = TypeVar("Batch")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of `mallopt`, from malloc.h of the GNU C library."""


def resolve_device(name: str, index: int | None = None) -> torch.device:
    """Return the torch device that a setting names.

    Args:
        name: "cpu", "cuda", another name that torch knows, or "auto": a GPU if there is one.
        index: number of the GPU if `name` does not have one; torch's current GPU by default.

    Raises:
        DeviceError: this machine does not have the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and index is not None:
        name = f"cuda:{index}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"Torch cannot use the device {name!r}: {str(error).splitlines()[0]}",
            remedy='Use "cpu", "cuda" or "auto".',
        ) from error
    return device


@contextmanager
def limit_threads(batch_macs: int) -> Iterator[None]:
    """Run a block on one CPU thread if its batches take few multiply-accumulates.

    Below `MULTITHREADING_MIN_MACS` a second thread gains a tenth at most. It makes a batch up to a
    hundred times slower if another process keeps that core busy, because the threads wait for each
    other at every op. The choice depends on the work alone, because the number of threads can
    change how sums are rounded. Larger batches have as many threads as torch has, but no more than
    this process may use cores: torch does not know of CPU quotas.

    Args:
        batch_macs: multiply-accumulates of one forward pass of a batch.
    """
    previous = torch.get_num_threads()
    is_small = batch_macs < MULTITHREADING_MIN_MACS
    torch.set_num_threads(1 if is_small else min(previous, this_machine.allowed_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def map_batches(
    function: Callable[[Batch], T], batches: Iterable[Batch], batch_macs: int, device: torch.device
) -> list[T]:
    """Return the results of a function for some batches, in order.

    On a CPU, threads take whole batches, and each op has one thread. Threads that share an op wait
    for each other at its end: that is slower, and many times slower beside another busy process.
    Results do not depend on the number of threads.

    Args:
        function: called with each batch, in any thread; torch's grad mode is a thread's own.
        batches: the batches, or what stands for them.
        batch_macs: multiply-accumulates of one batch. Small batches are not worth a thread.
        device: device that computes.
    """
    keep_freed_memory()
    threads = min(torch.get_num_threads(), this_machine.allowed_cores())
    if device.type != "cpu" or batch_macs < MULTITHREADING_MIN_MACS or threads == 1:
        with limit_threads(0):
            return [function(batch) for batch in batches]
    with ThreadPoolExecutor(threads, "batches", torch.set_num_threads, (1,)) as pool:
        return list(pool.map(function, batches))


@cache
def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for as long as this process lives.

    A training step frees all activations, and the next step allocates as much again. By default
    the C library returns large blocks to the operating system, which then has to provide and clear
    every page anew. On a CPU that took a sixth of a step's time.

    Returns:
        Whether the C library supports it; only the GNU C library does.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
