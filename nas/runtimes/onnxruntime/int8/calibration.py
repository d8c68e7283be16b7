"""Real images to find the ranges of a network's tensors with: scikit-learn's handwritten digits.

They come with scikit-learn, so quantising downloads nothing. For a network of other images the
ranges are rough ones, which matters to its accuracy and not to its latency.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.graph import Shape

IMAGES = 16
"""The ranges of most tensors hardly change with more; every digit is among them."""


def images(shape: Shape, count: int = IMAGES, start: int = 0) -> Iterator[NDArray[np.float32]]:
    """Digits as a network's input, `channels x height x width`, of mean 0 and deviation 1.

    Args:
        shape: of an image; all channels are alike.
        count: how many.
        start: the first of the 1797 there are.
    """
    channels, height, width = shape
    for digit in _digits()[start : start + count]:
        resized = Image.fromarray(digit).resize((width, height), Image.Resampling.BILINEAR)
        yield np.repeat(np.asarray(resized, np.float32)[None], channels, axis=0)


@cache
def _digits() -> NDArray[np.float32]:
    """`n x 8 x 8`."""
    from sklearn.datasets import load_digits

    found = load_digits().images.astype(np.float32)
    return np.asarray((found - found.mean()) / found.std(), np.float32)
