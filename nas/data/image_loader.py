"""Loaders that bring the pixels of each training step to the device.

`ResidentLoader` holds all images on the device. `PrefetchLoader` reads the images of one step at a
time and reads the next step in a thread meanwhile. torch's `DataLoader` does not replace it: it
was slower. With worker processes it delivered less than a quarter of the images per second from a
warm page cache, because each batch crosses a process boundary. Without worker processes it does not
prefetch, and delivered 77 to 90% of the images per second from disk while a device was busy.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from nas.data.dataset import Images

MAX_FREE_GPU_MEMORY_FRACTION = 0.5
"""Images that need a larger part of a GPU's free memory are streamed. The rest is for training."""

BatchIndices = Callable[[int], np.ndarray]
"""Returns the positions, among the training images, of the images of a step."""


def make_loader(
    images: Images, device: torch.device, batch_indices: BatchIndices
) -> ResidentLoader | PrefetchLoader:
    """Return a `ResidentLoader` if the images fit on the device, else a `PrefetchLoader`.

    Images on disk do not fit.
    """
    in_memory = isinstance(images.pixels, np.ndarray)
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if in_memory and (
        free_bytes is None or images.pixels.nbytes <= MAX_FREE_GPU_MEMORY_FRACTION * free_bytes
    ):
        return ResidentLoader(images, device, batch_indices)
    return PrefetchLoader(images, device, batch_indices)


class ResidentLoader:
    """Holds all images on the device, where they are copied once."""

    def __init__(self, images: Images, device: torch.device, batch_indices: BatchIndices) -> None:
        self._pixels = torch.from_numpy(np.asarray(images.pixels)).to(device)
        self._batch_indices = batch_indices

    def load(self, step: int) -> tuple[Tensor, np.ndarray]:
        """Return pixels on the device, and the positions of the step's images among them.

        Returns:
            Pixels `m x height x width x channels` (uint8) and positions `batch` in [0, m).
        """
        return self._pixels, self._batch_indices(step)


class PrefetchLoader:
    """Reads the images of one step, and meanwhile those of the step after it in a thread."""

    def __init__(self, images: Images, device: torch.device, batch_indices: BatchIndices) -> None:
        self._images, self._device, self._batch_indices = images, device, batch_indices
        self._thread = ThreadPoolExecutor(1, "images")
        self._prefetched: dict[int, Future[Tensor]] = {}

    def load(self, step: int) -> tuple[Tensor, np.ndarray]:
        """Return what `ResidentLoader.load` returns; here the pixels are those of the step only."""
        batch = self._prefetched.pop(step, None) or self._thread.submit(self._read, step)
        self._prefetched = {step + 1: self._thread.submit(self._read, step + 1)}
        pixels = batch.result().to(self._device, non_blocking=True)
        return pixels, np.arange(len(pixels))

    def _read(self, step: int) -> Tensor:
        pixels = torch.from_numpy(self._images.pixels[self._batch_indices(step)])
        return pixels.pin_memory() if self._device.type == "cuda" else pixels
