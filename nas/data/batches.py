"""Training images on the device: order, augmentation and normalisation of whole batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nas.data.augmentation import OPERATIONS, brightened, changed, contrasted, saturated
from nas.data.dataset import ImageDataset, Images
from nas.data.image_loader import stock_of
from nas.errors import RequestError


def normalised(pixels: Tensor, data: ImageDataset) -> Tensor:
    """`n x height x width x channels` (uint8) to `n x channels x height x width`, standardised.

    The result has the memory format channels-last, and the mean and spread of `data.train`.
    """
    return standardised(pixels.float() / 255, data)


def standardised(pixels: Tensor, data: ImageDataset) -> Tensor:
    """As `normalised`, of pixels from 0 to 1."""
    mean = torch.from_numpy(data.mean).to(pixels.device)
    std = torch.from_numpy(data.std).to(pixels.device)
    return ((pixels - mean) / std).permute(0, 3, 1, 2)


def in_order(
    images: Images, data: ImageDataset, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches and labels, in order, the last one smaller."""
    for start in range(0, len(images), batch_size):
        at = slice(start, start + batch_size)
        pixels = torch.from_numpy(images.pixels[at]).to(device)
        yield normalised(pixels, data), torch.from_numpy(images.labels[at]).to(device)


def share_of_batch(batch_size: int, rank: int, world_size: int) -> slice:
    """Return which images of a batch belong to one of the processes that train together.

    Args:
        batch_size: Images of the batch, over all processes.
        rank: Number of the process, from 0.
        world_size: Number of processes.

    Raises:
        RequestError: The batch cannot be shared equally, with two images or more for each process.
    """
    share, rest = divmod(batch_size, world_size)
    if world_size > 1 and (rest or share < 2):
        raise RequestError(
            f"A batch of {batch_size} images cannot be shared by {world_size} processes.",
            remedy=f"Use a batch size that is a multiple of {world_size}, two images or more "
            "for each process.",
        )
    return slice(rank * share, (rank + 1) * share)


class TrainingBatches:
    """Shuffled, augmented batches of `data.train`; a batch is a function of seed and step alone.

    So training that resumes at a step needs no state of any random generator.

    Args:
        data: its training part is copied to `device` once, or streamed; see
            `nas.data.image_loader`.
        batch_size: images a step; the incomplete batch at the end of an epoch is dropped.
        seed: of order and augmentation.
        shift: largest shift of the random crop, in pixels; the border is repeated outwards.
        flip: whether half of the images are mirrored.
        colour: largest change of brightness, contrast and saturation, as a share; 0 for none.
        randaugment: operations on each image; see `nas.data.augmentation.changed`.
        magnitude: of these, from 0 to 1.
        cutout: side of the square that every image loses, as a share of its own; 0 for none.
        device: where batches are made.
        rank, world_size: which of the processes that train together this is, and how many there
            are. Each makes its share of every batch; the batch does not depend on their number.
    """

    def __init__(
        self,
        data: ImageDataset,
        *,
        batch_size: int,
        seed: int,
        shift: int,
        flip: bool,
        colour: float = 0.0,
        randaugment: int = 0,
        magnitude: float = 0.0,
        cutout: float = 0.0,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._data = data
        self._device = device
        self._labels = torch.from_numpy(data.train.labels).to(device)
        self.batch_size = min(batch_size, len(data.train))
        self._seed = seed
        self._shift = shift
        self._flip = flip
        self._colour = colour
        self._operations = randaugment
        self._magnitude = magnitude
        self._cutout = round(cutout * data.image_size)
        self._own = share_of_batch(self.batch_size, rank, world_size)
        self._orders: tuple[tuple[int, np.ndarray], ...] = ()
        self._stock = stock_of(data.train, device, self._chosen)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return len(self._labels) // self.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's images `n x channels x height x width`, normalised, and labels."""
        rng = np.random.default_rng([self._seed, 1, step])
        size, count = self._data.image_size, self.batch_size
        rows = np.arange(size) + rng.integers(-self._shift, self._shift + 1, (count, 1))
        columns = np.arange(size) + rng.integers(-self._shift, self._shift + 1, (count, 1))
        if self._flip:
            mirrored = rng.random((count, 1)) < 0.5
            columns = np.where(mirrored, columns[:, ::-1], columns)
        rows, columns = (each.clip(0, size - 1)[self._own] for each in (rows, columns))
        stock, places = self._stock.of(step)
        at, rows_at, columns_at, chosen = (
            torch.from_numpy(index).to(self._device)
            for index in (places, rows, columns, self._chosen(step))
        )
        pixels = stock[at[:, None, None], rows_at[:, :, None], columns_at[:, None, :]]
        if self._colour or self._operations:
            scaled = (pixels.float() / 255).permute(0, 3, 1, 2)
            scaled = self._changed(self._recoloured(scaled, rng), rng)
            images = standardised(scaled.permute(0, 2, 3, 1), self._data)
        else:
            images = normalised(pixels, self._data)
        if self._cutout:
            images = self._cut(images, rng)
        return images, self._labels[chosen]

    def _chosen(self, step: int) -> np.ndarray:
        """Positions of a step's images; of a team, this process's."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return self._order(epoch)[start : start + self.batch_size][self._own]

    def _order(self, epoch: int) -> np.ndarray:
        # A reader may ask for the next epoch's while this one's is still in use.
        for known, order in self._orders:
            if known == epoch:
                return order
        order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._labels))
        self._orders = (*self._orders[-1:], (epoch, order))
        return order

    def _recoloured(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Brightness, contrast and saturation changed by factors of their own for each image."""
        if not self._colour:
            return images
        low, high = 1 - self._colour, 1 + self._colour
        drawn = rng.uniform(low, high, (3, self.batch_size)).astype(np.float32)
        factors = torch.from_numpy(drawn[:, self._own]).to(images.device)
        for change, own in zip((brightened, contrasted, saturated), factors, strict=True):
            images = change(images, own)
        return images.clamp(0, 1)

    def _changed(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Some operations on each image; see `nas.data.augmentation.changed`."""
        if not self._operations:
            return images
        shape = (self._operations, self.batch_size)
        drawn = rng.integers(len(OPERATIONS), size=shape)
        sizes = np.where(rng.random(shape) < 0.5, -self._magnitude, self._magnitude)
        return changed(
            images,
            torch.from_numpy(drawn[:, self._own]),
            torch.from_numpy(sizes[:, self._own]).to(images),
        )

    def _cut(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """A square of each image set to the mean colour; it may lie across the edge.

        Cutout (DeVries and Taylor 2017, "Improved regularization of convolutional neural networks
        with cutout").
        """
        size = images.shape[2]
        drawn = rng.integers(0, size, (2, self.batch_size, 1))
        centres = torch.from_numpy(drawn[:, self._own])
        away = torch.arange(size) - centres + self._cutout // 2
        rows, columns = ((away >= 0) & (away < self._cutout)).to(images.device)
        hidden = rows[:, None, :, None] & columns[:, None, None, :]
        return images.masked_fill(hidden, 0.0)
