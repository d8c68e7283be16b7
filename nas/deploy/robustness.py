"""How a model answers to images that are worse than its data, attacked, or unlike it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch.nn import functional as F  # noqa: N812

from nas.data import Images
from nas.deploy.confidence import largest_probabilities
from nas.deploy.model import TrainedModel
from nas.machine.torch_device import limit_threads
from nas.run.model_card import ConfidenceRow, RobustnessRow

MAX_IMAGES = 1000
"""Most images of a row: the standard error of an accuracy is then at most 1.6 points."""

MAX_ATTACKED_IMAGES, MIN_ATTACKED_IMAGES = 200, 50
"""Most and fewest images of an attack."""

ATTACK_MACS = 10**11
"""Multiply-accumulates of all attacks on a network, up to ten seconds of one core: a large network
is attacked with fewer images."""

ATTACK_BOUNDS = (2, 8)
"""Largest changes of a pixel value by an attack, of 255."""

ATTACK_STEPS = 10
"""Steps of an attack."""

_ATTACK_BATCH = 50
"""Images that are attacked at once. As many fit into memory as in a step of a training."""

CONFIDENT = 0.9
"""Largest softmax value above which an answer counts as confident."""

Pixels = NDArray[np.uint8]
"""Images `N x height x width x channels`."""


def measure_robustness(
    model: TrainedModel, images: Images, score: Callable[[NDArray[Any], NDArray[Any]], float]
) -> list[RobustnessRow]:
    """Return the accuracy on images with noise, blur, other brightness and JPEG artefacts.

    The changes are those of Hendrycks and Dietterich 2019, "Benchmarking neural network robustness
    to common corruptions and perturbations", at two strengths each.

    Args:
        model: the trained model.
        images: images with their labels.
        score: returns the accuracy of predicted classes, see `ImageDataset.score`.
    """
    pixels = np.asarray(images.pixels[: len(images)])
    accuracies = {
        name: score(model.pixel_logits(changed).argmax(1), images.labels)
        for name, changed in _changes(pixels)
    }
    return [RobustnessRow(change=name, accuracy=each) for name, each in accuracies.items()]


def attacked_images(macs: int) -> int:
    """Return the number of images of an attack on a network with so many multiply-accumulates."""
    # A step classifies each image, and its gradient costs twice as much.
    affordable = ATTACK_MACS // (3 * ATTACK_STEPS * len(ATTACK_BOUNDS) * macs)
    return min(MAX_ATTACKED_IMAGES, max(MIN_ATTACKED_IMAGES, affordable))


def measure_attacks(
    model: TrainedModel, images: Images, score: Callable[[NDArray[Any], NDArray[Any]], float]
) -> list[RobustnessRow]:
    """Return the accuracy without an attack, and under an attack of each of `ATTACK_BOUNDS`.

    An attack counts for images that are right without it, so it raises no accuracy.

    Args:
        model, images, score: see `measure_robustness`.
    """
    pixels, labels = np.asarray(images.pixels[: len(images)]), images.labels
    clean = model.pixel_logits(pixels).argmax(1)
    rows = [RobustnessRow(change="none", accuracy=score(clean, labels))]
    for bound in ATTACK_BOUNDS:
        classes = model.pixel_logits(attacked(model, pixels, labels, bound)).argmax(1)
        accuracy = score(np.where(clean == labels, classes, clean), labels)
        change = f"attack, each pixel value by up to {bound} of 255"
        rows.append(RobustnessRow(change=change, accuracy=accuracy))
    return rows


def attacked(model: TrainedModel, pixels: Pixels, labels: NDArray[np.int64], bound: int) -> Pixels:
    """Return images after projected gradient descent against their classes.

    This is the attack of Madry et al. 2018, "Towards deep learning models resistant to adversarial
    attacks", with one random start and steps of 2.5 times the bound over their number. Its results
    are rounded, so that image files can hold them.

    Args:
        model: the trained model, whose gradients the attack knows.
        pixels: the images.
        labels: their classes.
        bound: largest change of a pixel value, of 255.
    """
    how, starts = model.preprocessing, range(0, len(pixels), _ATTACK_BATCH)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (how.mean, how.std))
    rng, batches = np.random.default_rng(0), []
    with limit_threads(_ATTACK_BATCH * model.network.graph.macs):
        for start in starts:
            part = slice(start, start + _ATTACK_BATCH)
            x = torch.from_numpy(pixels[part].transpose(0, 3, 1, 2).astype(np.float32))
            low, high = (x - bound).clamp(min=0), (x + bound).clamp(max=255)
            noise = rng.uniform(-bound, bound, tuple(x.shape)).astype(np.float32)
            x = (x + torch.from_numpy(noise)).clamp(low, high)
            for _ in range(ATTACK_STEPS):
                logits = model.network((x.requires_grad_() / 255 - mean) / std)
                # In float32, the loss of a confident answer has no gradient.
                loss = F.cross_entropy(logits.double(), torch.tensor(labels[part]), reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                x = (x.detach() + 2.5 * bound / ATTACK_STEPS * gradient.sign()).clamp(low, high)
            batches.append(x.round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(batches)


def measure_confidence(
    model: TrainedModel, images: Images, unknown: Pixels | None = None
) -> list[ConfidenceRow]:
    """Return the confidence in the classes of images like the data and of images unlike it.

    Args:
        model: the trained model, with its threshold.
        images: images like the data.
        unknown: the user's images of no class; None without any.
    """
    threshold = model.preprocessing.min_confidence
    pixels = np.asarray(images.pixels[: len(images)])
    rng = np.random.default_rng(0)
    count, height, width, channels = pixels.shape
    positions = rng.permuted(np.tile(np.arange(height * width), (count, 1)), axis=1)
    levels = np.linspace(0, 255, count).astype(np.uint8)
    kinds = {
        "hold-out images": pixels,
        "their pixels shuffled": np.take_along_axis(
            pixels.reshape(count, -1, channels), positions[:, :, None], axis=1
        ).reshape(pixels.shape),
        "random pixels": rng.integers(0, 256, pixels.shape, np.uint8),
        "one grey level": np.broadcast_to(levels[:, None, None, None], pixels.shape),
    }
    if unknown is not None:
        kinds["images of no class, from the user"] = unknown
    rows = []
    for name, changed in kinds.items():
        confidence = largest_probabilities(model.pixel_logits(changed))
        rows.append(
            ConfidenceRow(
                images=name,
                count=len(changed),
                mean=float(confidence.mean()),
                above_90_percent=float((confidence > CONFIDENT).mean()),
                answered=None if threshold is None else float((confidence >= threshold).mean()),
            )
        )
    return rows


def as_jpeg(pixels: Pixels, quality: int) -> tuple[Pixels, list[int]]:
    """Return images after they were compressed as JPEG, and the sizes of the files in bytes."""
    sizes: list[int] = []

    def compressed(image: Image.Image) -> Image.Image:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        sizes.append(content.tell())
        return Image.open(content)

    return _each(pixels, compressed), sizes


def _changes(pixels: Pixels) -> Iterator[tuple[str, Pixels]]:
    """Yield the name of each change and the changed images."""
    rng = np.random.default_rng(0)
    yield "none", pixels
    for deviation in (0.05, 0.1):
        noise = rng.normal(0, 255 * deviation, pixels.shape)
        yield f"Gaussian noise, deviation {deviation:g} of the range", _clipped(pixels + noise)
    for divisor in (32, 16):
        radius = pixels.shape[1] / divisor
        blur = ImageFilter.GaussianBlur(radius)
        yield (
            f"Gaussian blur, radius {radius:g} pixels",
            _each(pixels, partial(Image.Image.filter, filter=blur)),
        )
    for shift in (-0.2, 0.2):
        yield f"brightness {shift:+g} of the range", _clipped(pixels + 255 * shift)
    for quality in (50, 20):
        yield f"JPEG, quality {quality}", as_jpeg(pixels, quality)[0]


def _clipped(values: NDArray[Any]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)


def _each(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Return all images after a change of each."""
    grey = pixels.shape[3] == 1
    changed = [change(Image.fromarray(each[:, :, 0] if grey else each)) for each in pixels]
    return np.stack([np.asarray(image) for image in changed]).reshape(pixels.shape)
