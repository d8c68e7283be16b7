"""Training images on the device: order, augmentation and normalisation of whole batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nas.supernet.data import Data, Images


def normalised(pixels: Tensor, data: Data) -> Tensor:
    """`n x height x width x channels` (uint8) to `n x channels x height x width`, standardised.

    The result has the memory format channels-last, and the mean and spread of `data.train`.
    """
    mean = torch.from_numpy(data.mean).to(pixels.device)
    std = torch.from_numpy(data.std).to(pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def in_order(
    images: Images, data: Data, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches and labels, in order, the last one smaller."""
    for start in range(0, len(images), batch_size):
        at = slice(start, start + batch_size)
        pixels = torch.from_numpy(images.pixels[at]).to(device)
        yield normalised(pixels, data), torch.from_numpy(images.labels[at]).to(device)


class TrainingBatches:
    """Shuffled, augmented batches of `data.train`; a batch is a function of seed and step alone.

    So training that resumes at a step needs no state of any random generator.

    Args:
        data: its training part is copied to `device` once.
        batch_size: images a step; the incomplete batch at the end of an epoch is dropped.
        seed: of order and augmentation.
        shift: largest shift of the random crop, in pixels; the border is repeated outwards.
        flip: whether half of the images are mirrored.
        colour: largest change of brightness, contrast and saturation, as a share; 0 for none.
        cutout: side of the square that every image loses, as a share of its own; 0 for none.
        device: where batches are made.
    """

    def __init__(
        self,
        data: Data,
        *,
        batch_size: int,
        seed: int,
        shift: int,
        flip: bool,
        colour: float = 0.0,
        cutout: float = 0.0,
        device: torch.device,
    ) -> None:
        self._data = data
        self._pixels = torch.from_numpy(data.train.pixels).to(device)
        self._labels = torch.from_numpy(data.train.labels).to(device)
        self.batch_size = min(batch_size, len(data.train))
        self._seed = seed
        self._shift = shift
        self._flip = flip
        self._colour = colour
        self._cutout = round(cutout * data.image_size)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return len(self._labels) // self.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images `batch x channels x height x width`, normalised, and labels, of one step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._labels))
        start = position * self.batch_size
        chosen = order[start : start + self.batch_size]
        rng = np.random.default_rng([self._seed, 1, step])
        size, count = self._pixels.shape[1], self.batch_size
        rows = np.arange(size) + rng.integers(-self._shift, self._shift + 1, (count, 1))
        columns = np.arange(size) + rng.integers(-self._shift, self._shift + 1, (count, 1))
        if self._flip:
            mirrored = rng.random((count, 1)) < 0.5
            columns = np.where(mirrored, columns[:, ::-1], columns)
        at, rows_at, columns_at = (
            torch.from_numpy(index).to(self._pixels.device)
            for index in (chosen, rows.clip(0, size - 1), columns.clip(0, size - 1))
        )
        pixels = self._pixels[at[:, None, None], rows_at[:, :, None], columns_at[:, None, :]]
        images = normalised(pixels, self._data)
        if self._colour:
            images = self._recoloured(images, rng)
        if self._cutout:
            images = self._cut(images, rng)
        return images, self._labels[at]

    def _recoloured(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Brightness, contrast and saturation changed by factors of their own for each image.

        In this order, on the scale of the pixels, from 0 to 1: times a factor; away from or towards
        the image's mean; away from or towards its grey version (Krizhevsky et al. 2012 and the
        augmentations that followed). Grey images have no saturation to change.
        """
        low, high = 1 - self._colour, 1 + self._colour
        drawn = rng.uniform(low, high, (3, len(images), 1, 1, 1)).astype(np.float32)
        brightness, contrast, saturation = torch.from_numpy(drawn).to(images.device)
        shape = (1, -1, 1, 1)
        mean, std = (
            torch.from_numpy(each).to(images.device).view(shape)
            for each in (self._data.mean, self._data.std)
        )
        pixels = (images * std + mean) * brightness
        level = pixels.mean((1, 2, 3), keepdim=True)
        pixels = (pixels - level) * contrast + level
        if pixels.shape[1] == 3:
            grey = pixels.mean(1, keepdim=True)
            pixels = (pixels - grey) * saturation + grey
        return (pixels.clamp(0, 1) - mean) / std

    def _cut(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """A square of each image set to the mean colour; it may lie across the edge.

        Cutout (DeVries and Taylor 2017, "Improved regularization of convolutional neural networks
        with cutout").
        """
        size = images.shape[2]
        centres = torch.from_numpy(rng.integers(0, size, (2, len(images), 1)))
        away = torch.arange(size) - centres + self._cutout // 2
        rows, columns = ((away >= 0) & (away < self._cutout)).to(images.device)
        hidden = rows[:, None, :, None] & columns[:, None, None, :]
        return images.masked_fill(hidden, 0.0)
