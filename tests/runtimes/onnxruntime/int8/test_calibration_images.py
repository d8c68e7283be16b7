from __future__ import annotations

import numpy as np

from nas.runtimes.onnxruntime.int8 import calibration


def test_the_images_are_digits_of_the_networks_shape() -> None:
    found = list(calibration.images((3, 24, 16)))
    assert len(found) == calibration.IMAGES
    for image in found:
        assert (image.shape, image.dtype) == ((3, 24, 16), np.float32)
        assert (image == image[:1]).all(), "all channels are alike"
    (same,) = calibration.images((1, 8, 8), count=1, start=3)
    assert same.shape == (1, 8, 8)
    assert -1 < same.min() < 0 < same.max() < 2, "of mean 0 and deviation 1"
    assert len({image.tobytes() for image in found}) == len(found)
