"""Batches of images on the training device: order, augmentation and normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nas.data.dataset import ImageDataset, Images
from nas.data.image_loader import make_loader
from nas.errors import RequestError

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


def normalize(images: Tensor, data: ImageDataset) -> Tensor:
    """Subtract the mean of `data.train` from images and divide them by its standard deviation.

    Args:
        images: Pixels, `n x height x width x channels`: uint8, or floats in [0, 1].
        data: Dataset whose training images give mean and standard deviation by channel.

    Returns:
        Images `n x channels x height x width` (float32) in the memory format channels-last.
    """
    if images.dtype == torch.uint8:
        images = images.float() / 255
    mean = torch.from_numpy(data.mean).to(images.device)
    std = torch.from_numpy(data.std).to(images.device)
    return ((images - mean) / std).permute(0, 3, 1, 2)


def sequential_batches(
    images: Images, data: ImageDataset, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised batches and their labels, in order; the last batch may be smaller."""
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        pixels = torch.from_numpy(images.pixels[batch]).to(device)
        yield normalize(pixels, data), torch.from_numpy(images.labels[batch]).to(device)


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
    """Shuffled and augmented batches of the training images.

    Every epoch has each image once, in a random order. The batches are cut from one epoch after the
    other: one that an epoch cannot fill begins with its last images and ends with the first ones of
    the next epoch, so that all batches have the same size and no image is left out.

    A batch depends on the seed and the step alone, so that training resumes at any step without the
    state of a random generator.

    Args:
        data: Dataset whose part `train` is used. It is copied to the device once, or streamed; see
            `nas.data.image_loader`.
        batch_size: Images of a step, over all processes; all images if there are fewer.
        seed: Seed of the order and the augmentation.
        shift: Largest shift of the random crop, in pixels; the border is repeated outwards.
        flip: Whether half of the images are mirrored.
        alternating: Whether these are those that were not in the epoch before, instead of random
            ones (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU").
        colour: Largest relative change of brightness, contrast and saturation; 0 for none.
        device: Device on which the batches are made.
        rank: Number of this process among those that train together.
        world_size: Number of processes that train together. Each makes its share of every batch,
            and the whole batch does not depend on the number of processes.

    Raises:
        RequestError: The processes cannot share a batch equally.
    """

    def __init__(
        self,
        data: ImageDataset,
        *,
        batch_size: int,
        seed: int,
        shift: int,
        flip: bool,
        alternating: bool = False,
        colour: float = 0.0,
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
        self._mirrored_first: np.ndarray | None = None
        if alternating:
            self._mirrored_first = np.random.default_rng([seed, 2]).random(len(data.train)) < 0.5
        self._colour = colour
        self._share = share_of_batch(self.batch_size, rank, world_size)
        # The loader asks for the next batch, and so for the next epoch, while this one is in use.
        self._order = lru_cache(2)(self._permutation)
        self._loader = make_loader(data.train, device, self._batch_indices)

    @property
    def steps_per_epoch(self) -> float:
        """Number of batches in an epoch, which need not be whole."""
        return len(self._labels) / self.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a step, or this process's share of them.

        Returns:
            Normalised images `n x channels x height x width` and labels `n`, on the device.
        """
        # Random numbers are drawn for the whole batch, so that each process draws the same ones.
        rng = np.random.default_rng([self._seed, 1, step])
        size, count = self._data.image_size, self.batch_size
        rows = np.arange(size) + rng.integers(-self._shift, self._shift + 1, (count, 1))
        columns = np.arange(size) + rng.integers(-self._shift, self._shift + 1, (count, 1))
        if self._flip:
            columns = np.where(self._mirrored(step, rng), columns[:, ::-1], columns)
        rows, columns = (axis.clip(0, size - 1)[self._share] for axis in (rows, columns))
        loaded, positions = self._loader.load(step)
        pixels = loaded[
            self._to_device(positions)[:, None, None],
            self._to_device(rows)[:, :, None],
            self._to_device(columns)[:, None, :],
        ]
        if self._colour:
            images = (pixels.float() / 255).permute(0, 3, 1, 2)
            pixels = self._jitter_colours(images, rng).permute(0, 2, 3, 1)
        images = normalize(pixels, self._data)
        return images, self._labels[self._to_device(self._batch_indices(step))]

    def _mirrored(self, step: int, rng: np.random.Generator) -> np.ndarray:
        """Return which images of a whole batch are mirrored, as a column."""
        if self._mirrored_first is None:
            return rng.random((self.batch_size, 1)) < 0.5
        epochs = (step * self.batch_size + np.arange(self.batch_size)) // len(self._labels)
        return (self._mirrored_first[self._whole_batch(step)] ^ (epochs % 2 == 1))[:, None]

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _batch_indices(self, step: int) -> np.ndarray:
        """Return the positions, among the training images, of this process's images of a step."""
        return self._whole_batch(step)[self._share]

    def _whole_batch(self, step: int) -> np.ndarray:
        """Return the positions, among the training images, of all images of a step."""
        epoch, start = divmod(step * self.batch_size, len(self._labels))
        batch = self._order(epoch)[start : start + self.batch_size]
        if len(batch) < self.batch_size:
            rest = self._order(epoch + 1)[: self.batch_size - len(batch)]
            batch = np.concatenate([batch, rest])
        return batch

    def _permutation(self, epoch: int) -> np.ndarray:
        """Return the order of the training images in an epoch."""
        return np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._labels))

    def _jitter_colours(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Change brightness, contrast and saturation of each image by random factors."""
        low, high = 1 - self._colour, 1 + self._colour
        factors = rng.uniform(low, high, (3, self.batch_size)).astype(np.float32)
        on_device = torch.from_numpy(factors[:, self._share]).to(images.device)
        adjustments = (adjust_brightness, adjust_contrast, adjust_saturation)
        for adjust, own_factors in zip(adjustments, on_device, strict=True):
            images = adjust(images, own_factors)
        return images.clamp(0, 1)


def blend(images: Tensor, base: Tensor, factors: Tensor) -> Tensor:
    """Interpolate between `base` (factor 0) and `images` (factor 1); above 1, extrapolate."""
    return base + factors[:, None, None, None] * (images - base)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the pixels of each image by a factor."""
    return blend(images, torch.zeros_like(images), factors)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance of the pixels from the image's mean brightness by a factor."""
    mean = rgb_to_grayscale(images).mean((1, 2, 3), keepdim=True)
    return blend(images, mean.expand_as(images), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance of the pixels from the grey image; a grey image does not change."""
    return blend(images, rgb_to_grayscale(images).expand_as(images), factors)


def rgb_to_grayscale(images: Tensor) -> Tensor:
    """Return the brightness of the images as one channel."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(_LUMA_WEIGHTS)[:, None, None]
    return (images * weights).sum(1, keepdim=True)
