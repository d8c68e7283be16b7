"""Augmentation of whole batches of training images, on the device that holds them.

Names and ranges follow torchvision and RandAugment. torchvision applies one magnitude to a whole
batch; the functions here take one for each image.

All functions take images of shape `n x channels x height x width` with pixels in [0, 1], and random
numbers that the caller drew, one for each image. The functions that change tones may return pixels
outside [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


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


def adjust_sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance of the pixels from a smoothed image; border pixels do not change."""
    kernel = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    channels = images.shape[1]
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    return blend(images, smoothed, factors)


def rgb_to_grayscale(images: Tensor) -> Tensor:
    """Return the brightness of the images as one channel."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(_LUMA_WEIGHTS)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` of the eight bits of each pixel."""
    levels = (images * 255).round().to(torch.int32)
    masks = (0xFF << (8 - bits.to(torch.int32))) & 0xFF
    return (levels & masks[:, None, None, None]).to(images.dtype) / 255


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the pixels that are not below a threshold."""
    return torch.where(images < thresholds[:, None, None, None], images, 1 - images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel so that its darkest pixel becomes 0 and its lightest 1."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) / (high - low).clamp_min(1e-6)
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """Equalise the histogram of each channel, as Pillow's `ImageOps.equalize` does."""
    n, channels, height, width = images.shape
    levels = (images * 255).round().long().reshape(n * channels, height * width)
    counts = torch.zeros(n * channels, 256, device=images.device, dtype=torch.long)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    lightest = levels.amax(1, keepdim=True)
    step = (height * width - counts.gather(1, lightest)) // 255
    darker = counts.cumsum(1) - counts
    lookup = ((darker + step // 2) // step.clamp_min(1)).clamp_max(255)
    equalized = torch.where(step > 0, lookup.gather(1, levels), levels)
    return (equalized.to(images.dtype) / 255).reshape(images.shape)


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate each image about its centre, anticlockwise, by an angle in radians."""
    matrices = _identity_matrices(images)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
    matrices[:, 1, 0] = angles.sin()
    matrices[:, 0, 1] = -matrices[:, 1, 0]
    return _apply_affine(images, matrices)


def shear(images: Tensor, tangents: Tensor, axis: int) -> Tensor:
    """Shear each image along `axis` (0 is horizontal, 1 vertical) by the tangent of an angle."""
    matrices = _identity_matrices(images)
    matrices[:, axis, 1 - axis] = tangents
    return _apply_affine(images, matrices)


def translate(images: Tensor, fractions: Tensor, axis: int) -> Tensor:
    """Move each image along `axis` (0 is to the left, 1 upwards) by a fraction of its side."""
    matrices = _identity_matrices(images)
    matrices[:, axis, 2] = 2 * fractions
    return _apply_affine(images, matrices)


def _identity_matrices(images: Tensor) -> Tensor:
    return torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)


def _apply_affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample images; outside an image, its border pixels are repeated.

    Args:
        images: Images, `n x channels x height x width`.
        matrices: Affine maps, `n x 2 x 3`, from positions in the result to positions in the image.
            Positions run from -1 to 1 along each side.
    """
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


Operation = Callable[[Tensor, Tensor], Tensor]
"""Changes images by magnitudes in [-1, 1], one for each image."""


def _by_factor(adjust: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda images, magnitudes: adjust(images, 1 + 0.9 * magnitudes)


RANDAUGMENT_OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, magnitudes: images,
    "brightness": _by_factor(adjust_brightness),
    "contrast": _by_factor(adjust_contrast),
    "color": _by_factor(adjust_saturation),
    "sharpness": _by_factor(adjust_sharpness),
    "posterize": lambda images, magnitudes: posterize(images, 8 - (4 * magnitudes.abs()).round()),
    "solarize": lambda images, magnitudes: solarize(images, 1 - magnitudes.abs()),
    "autocontrast": lambda images, magnitudes: autocontrast(images),
    "equalize": lambda images, magnitudes: equalize(images),
    "rotate": lambda images, magnitudes: rotate(images, math.radians(30) * magnitudes),
    "shear_x": lambda images, magnitudes: shear(images, 0.3 * magnitudes, 0),
    "shear_y": lambda images, magnitudes: shear(images, 0.3 * magnitudes, 1),
    "translate_x": lambda images, magnitudes: translate(images, 0.45 * magnitudes, 0),
    "translate_y": lambda images, magnitudes: translate(images, 0.45 * magnitudes, 1),
}
"""The operations of RandAugment with its ranges. Their order decides which one a number draws."""


def apply_randaugment(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply to each image the operations that were drawn for it, one after the other.

    RandAugment (Cubuk et al. 2020) draws each operation with equal probability and uses one
    magnitude for all. All images that drew an operation go through it together.

    Args:
        images: Images with pixels in [0, 1], `n x channels x height x width`.
        operations: Positions in `RANDAUGMENT_OPERATIONS`, `rounds x n`; on the CPU, so that no step
            waits for a GPU.
        magnitudes: Magnitudes in [-1, 1], `rounds x n`, on the device of the images.

    Returns:
        Images with pixels in [0, 1], `n x channels x height x width`.
    """
    for drawn, strengths in zip(operations, magnitudes, strict=True):
        changed = images.clone()
        for number, operation in enumerate(RANDAUGMENT_OPERATIONS.values()):
            indices = (drawn == number).nonzero().flatten().to(images.device, non_blocking=True)
            if number and len(indices):
                changed[indices] = operation(images[indices], strengths[indices]).clamp(0, 1)
        images = changed
    return images
