"""The digits dataset that ships with scikit-learn."""

from __future__ import annotations

import numpy as np

from nas.data.sources.base import Sample, Source


def open_digits() -> Source:
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Sixteen levels of grey, spread over a byte.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    samples = (
        Sample("train", f"digit {index}", image, int(label))
        for index, (image, label) in enumerate(zip(pixels, bunch.target, strict=True))
    )
    classes = tuple("0123456789")
    return Source("digits", samples, len(pixels), classes, natural=False, image_size=8)
