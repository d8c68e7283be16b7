"""Image folders of random pixels."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write an image folder of two classes with 30 images each, of random pixels."""
    rng = np.random.default_rng(0)
    for name in ("bee", "cow"):
        (folder / name).mkdir(parents=True)
        for index in range(30):
            pixels = rng.integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
