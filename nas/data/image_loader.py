"""Where training takes its images from: all of them on the device, or batch by batch from disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from nas.data.dataset import Images

GPU_SHARE = 0.5
"""Of a GPU's free memory: larger data sets are not kept there."""

Chosen = Callable[[int], np.ndarray]
"""Positions, among the training images, of those of a step."""


def stock_of(images: Images, device: torch.device, chosen: Chosen) -> Resident | Streamed:
    """On the device where there is room, streamed where not, and where images lie on disk."""
    in_memory = isinstance(images.pixels, np.ndarray)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if in_memory and (free is None or images.pixels.nbytes <= GPU_SHARE * free):
        return Resident(images, device, chosen)
    return Streamed(images, device, chosen)


class Resident:
    """All images on the device, copied there once."""

    def __init__(self, images: Images, device: torch.device, chosen: Chosen) -> None:
        self._pixels = torch.from_numpy(np.asarray(images.pixels)).to(device)
        self._chosen = chosen

    def of(self, step: int) -> tuple[Tensor, np.ndarray]:
        """Pixels on the device, and where among them the images of a step are."""
        return self._pixels, self._chosen(step)


class Streamed:
    """The images of one step at a time; while a step is trained, those of the next are read."""

    def __init__(self, images: Images, device: torch.device, chosen: Chosen) -> None:
        self._images, self._device, self._chosen = images, device, chosen
        self._reader = ThreadPoolExecutor(1, "images")
        self._coming: dict[int, Future[Tensor]] = {}

    def of(self, step: int) -> tuple[Tensor, np.ndarray]:
        """As `Resident.of`."""
        coming = self._coming.pop(step, None) or self._reader.submit(self._read, step)
        self._coming = {step + 1: self._reader.submit(self._read, step + 1)}
        pixels = coming.result().to(self._device, non_blocking=True)
        return pixels, np.arange(len(pixels))

    def _read(self, step: int) -> Tensor:
        found = torch.from_numpy(self._images.pixels[self._chosen(step)])
        return found.pin_memory() if self._device.type == "cuda" else found
