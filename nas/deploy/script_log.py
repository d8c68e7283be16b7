"""The log of a deployed model: a line for each image, with what can drift, and without the image.

The `run.py` of a model folder holds a copy of this text, so that it imports NumPy only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = ("brightness", "contrast", "sharpness")
"""What `image_figures` returns of an image."""


def image_figures(pixels: np.ndarray) -> np.ndarray:
    """Return brightness, contrast and sharpness of decoded images, `N x 3`.

    They are the mean and the standard deviation of the grey values, which are from 0 to 1, and the
    mean absolute difference of neighbours.

    Args:
        pixels: images `N x height x width x channels` (uint8).
    """
    grey = pixels.mean(-1, dtype=np.float32) / 255
    down, right = (np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2))
    return np.stack([grey.mean((1, 2)), grey.std((1, 2)), (down + right) / 2], axis=1)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a log, behind one that a killed process may have left unfinished."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        else:
            start = b""
        file.write(start + json.dumps(line).encode() + b"\n")
