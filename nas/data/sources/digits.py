"""The digits dataset that scikit-learn ships."""

from __future__ import annotations

import numpy as np

from nas.data.sources.base import Sample, Source


def open_digits() -> Source:
    """Return 1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits  # Takes a second, which other sources need not spend.

    digits = load_digits()
    # The pixels have 17 levels of grey, from 0 to 16.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    samples = (
        Sample("train", f"digit {index}", image, int(label))
        for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True))
    )
    return Source(
        name="digits",
        samples=samples,
        count=len(pixels),
        classes=tuple("0123456789"),
        flip_preserves_class=False,
        image_size=8,
    )
