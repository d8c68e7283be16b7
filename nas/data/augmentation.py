"""Changes to training images, whole batches at a time, on the device that they are on.

All functions take images `n x channels x height x width` whose pixels lie in [0, 1], and numbers
drawn by the caller, one for each image. Where they change tones, what they give may lie outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_GREY = (0.299, 0.587, 0.114)
"""What red, green and blue are worth to the eye (ITU-R BT.601)."""


def blended(images: Tensor, plain: Tensor, factors: Tensor) -> Tensor:
    """Away from a plainer version of each image, or, with a factor below 1, towards it."""
    return plain + factors[:, None, None, None] * (images - plain)


def brightened(images: Tensor, factors: Tensor) -> Tensor:
    """Pixels times a factor."""
    return blended(images, torch.zeros_like(images), factors)


def contrasted(images: Tensor, factors: Tensor) -> Tensor:
    """Away from, or towards, the image's mean brightness."""
    level = grey(images).mean((1, 2, 3), keepdim=True)
    return blended(images, level.expand_as(images), factors)


def saturated(images: Tensor, factors: Tensor) -> Tensor:
    """Away from, or towards, the image without its colours; a grey image stays as it is."""
    return blended(images, grey(images).expand_as(images), factors)


def sharpened(images: Tensor, factors: Tensor) -> Tensor:
    """Away from, or towards, a smoothed image, whose border pixels are not smoothed."""
    kernel = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    channels = images.shape[1]
    inner = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = inner
    return blended(images, smooth, factors)


def grey(images: Tensor) -> Tensor:
    """One channel with the images' brightness."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(_GREY)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def posterised(images: Tensor, bits: Tensor) -> Tensor:
    """Of each pixel's eight bits the upper `bits`."""
    levels = (images * 255).round().to(torch.int32)
    kept = (0xFF << (8 - bits.to(torch.int32))) & 0xFF
    return (levels & kept[:, None, None, None]).to(images.dtype) / 255


def solarised(images: Tensor, thresholds: Tensor) -> Tensor:
    """Pixels at a threshold and above it inverted."""
    return torch.where(images < thresholds[:, None, None, None], images, 1 - images)


def stretched(images: Tensor) -> Tensor:
    """Every channel from its darkest to its lightest pixel spread over the whole range."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = (images - low) / (high - low).clamp_min(1e-6)
    return torch.where(high > low, spread, images)


def equalised(images: Tensor) -> Tensor:
    """Every channel's histogram made level, as Pillow's `ImageOps.equalize` does it."""
    n, channels, height, width = images.shape
    levels = (images * 255).round().long().reshape(n * channels, height * width)
    counts = torch.zeros(n * channels, 256, device=images.device, dtype=torch.long)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    lightest = levels.amax(1, keepdim=True)
    step = (height * width - counts.gather(1, lightest)) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    found = torch.where(step > 0, table.gather(1, levels), levels)
    return (found.to(images.dtype) / 255).reshape(images.shape)


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Turned about the middle, anticlockwise, by radians."""
    maps = _in_place(images)
    maps[:, 0, 0] = maps[:, 1, 1] = angles.cos()
    maps[:, 1, 0] = angles.sin()
    maps[:, 0, 1] = -maps[:, 1, 0]
    return _seen_through(maps, images)


def sheared(images: Tensor, tangents: Tensor, axis: int) -> Tensor:
    """Every line moved along `axis` (0 across, 1 down) by its distance from the middle."""
    maps = _in_place(images)
    maps[:, axis, 1 - axis] = tangents
    return _seen_through(maps, images)


def shifted(images: Tensor, shares: Tensor, axis: int) -> Tensor:
    """Moved along `axis` (0 leftwards, 1 upwards) by a share of the image's side."""
    maps = _in_place(images)
    maps[:, axis, 2] = 2 * shares
    return _seen_through(maps, images)


def _in_place(images: Tensor) -> Tensor:
    return torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)


def _seen_through(maps: Tensor, images: Tensor) -> Tensor:
    """Affine maps `n x 2 x 3` from places in the result to places in the image, from -1 to 1.

    Beyond the border its pixels are repeated.
    """
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


Operation = Callable[[Tensor, Tensor], Tensor]
"""Changes images by magnitudes from -1 to 1, one each."""


def _toned(change: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda images, sizes: change(images, 1 + 0.9 * sizes)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, sizes: images,
    "brightness": _toned(brightened),
    "contrast": _toned(contrasted),
    "colour": _toned(saturated),
    "sharpness": _toned(sharpened),
    "posterise": lambda images, sizes: posterised(images, 8 - (4 * sizes.abs()).round()),
    "solarise": lambda images, sizes: solarised(images, 1 - sizes.abs()),
    "autocontrast": lambda images, sizes: stretched(images),
    "equalise": lambda images, sizes: equalised(images),
    "turn": lambda images, sizes: turned(images, math.radians(30) * sizes),
    "shear across": lambda images, sizes: sheared(images, 0.3 * sizes, 0),
    "shear down": lambda images, sizes: sheared(images, 0.3 * sizes, 1),
    "shift across": lambda images, sizes: shifted(images, 0.45 * sizes, 0),
    "shift down": lambda images, sizes: shifted(images, 0.45 * sizes, 1),
}
"""Those of RandAugment, with the same ranges."""


def changed(images: Tensor, drawn: Tensor, sizes: Tensor) -> Tensor:
    """Every image after the operations that were drawn for it, one after the other.

    RandAugment (Cubuk et al. 2020): all operations equally likely, one magnitude for all of them.
    Here all images that drew an operation go through it together.

    Args:
        images: `n x channels x height x width`, from 0 to 1.
        drawn: `operations x n`, numbers of `OPERATIONS`; on the CPU, so that nothing waits for a
            GPU.
        sizes: `operations x n`, magnitudes from -1 to 1.
    """
    for own, magnitudes in zip(drawn, sizes, strict=True):
        found = images.clone()
        for number, operation in enumerate(OPERATIONS.values()):
            at = (own == number).nonzero().flatten().to(images.device, non_blocking=True)
            if number and len(at):
                found[at] = operation(images[at], magnitudes[at]).clamp(0, 1)
        images = found
    return images
