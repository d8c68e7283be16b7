from collections import Counter

import numpy as np
from sklearn.datasets import load_digits


def test_digits_equal_those_of_scikit_learn(digits):
    bunch = load_digits()
    parts = (digits.train, digits.search, digits.holdout, digits.test)
    pixels = np.concatenate([part.pixels[..., 0] for part in parts])
    labels = np.concatenate([part.labels for part in parts])

    def multiset(images, targets):
        return Counter((i.tobytes(), t) for i, t in zip(images, targets, strict=True))

    original = np.round(bunch.images * 255 / 16).astype(np.uint8)
    assert multiset(pixels, labels) == multiset(original, bunch.target)
    assert digits.classes == tuple("0123456789")
    assert (digits.image_size, digits.channels, digits.flip_preserves_class) == (8, 1, False)
    assert digits.skipped == ()
