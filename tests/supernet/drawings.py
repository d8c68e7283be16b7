"""Drawings of arrows, rings and discs, of which only arrows change when they are mirrored."""

import numpy as np

from nas.data import ImageDataset, Images


def draw(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Return an arrow, a ring or a disc at a random place on a noisy ground, grey."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    y, x = y - rng.uniform(-size / 8, size / 8), x - rng.uniform(-size / 8, size / 8)
    if name in ("left", "right"):
        x = x if name == "left" else -x
        tip, shaft = (abs(y) < x + size / 4) & (x < 0), (abs(y) < size / 12) & (x < size / 3)
        shape = tip | (shaft & (x >= 0))
    else:
        radius = np.hypot(x, y)
        shape = (radius < size / 3) & (radius > (size / 5 if name == "ring" else -1))
    pixels = np.where(shape, 60, 180) + rng.normal(0, 10, (size, size))
    return pixels.clip(0, 255).astype(np.uint8)[..., None]


def make_data(classes: tuple[str, ...], images: int, size: int = 16, seed: int = 0) -> ImageDataset:
    """Return a dataset of drawings of classes in turn; all are training images."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % len(classes)
    pixels = np.stack([draw(classes[label], rng, size) for label in labels])
    train = Images(pixels, labels)
    none = train.take(slice(0, 0))
    return ImageDataset("drawings", classes, train, none, none, none, None)
