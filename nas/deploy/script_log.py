"""The log of a deployed model: a line for each image, with what can drift, and without the image.

The `run.py` of a model folder holds a copy of this text, so that it imports NumPy only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
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


class ImageLog:
    """The log of a model. Answers never wait for it, and do without one that cannot be written.

    Args:
        path: path of the log.
        digest: digest of the weights, which each line names.
        has_paths: whether the lines have the paths of the images.
    """

    def __init__(self, path: Path, digest: str, has_paths: bool) -> None:
        self._path, self._digest, self._has_paths = path, digest, has_paths
        self._lines: list[dict[str, object]] = []
        self._has_failed = False

    def note(
        self,
        name: str,
        pixels: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        error: str = "",
    ) -> None:
        """Note an image for `write`.

        Args:
            name: path of the image.
            pixels: its decoded pixels, `1 x height x width x channels` (uint8); None if it cannot
                be read.
            probabilities: those of the classes; None if it cannot be read.
            error: why it cannot be read.
        """
        line: dict[str, object] = {"time": round(time.time(), 3), "model": self._digest}
        if self._has_paths:
            line["image"] = name
        if error:
            line["error"] = error
        if pixels is not None and probabilities is not None:
            line["class"] = int(probabilities.argmax())
            line["confidence"] = round(float(probabilities.max()), 6)
            figures = image_figures(pixels)[0]
            line.update(
                (each, round(float(own), 6)) for each, own in zip(FIGURES, figures, strict=True)
            )
        self._lines.append(line)

    def write(self) -> None:
        """Append the lines of the images noted; say once on standard error if that fails."""
        # Whoever reads the answers may have left. Python says at the end what was not printed.
        with suppress(OSError):
            sys.stdout.flush()
        lines, self._lines = self._lines, []
        try:
            for line in lines:
                append_line(self._path, line)
        except OSError as error:
            if not self._has_failed:
                text = f"{self._path}: the log cannot be written ({error.strerror})"
                print(text, file=sys.stderr)
            self._has_failed = True


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a log, behind one that a killed process may have left unfinished."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        else:
            start = b""
        file.write(start + json.dumps(line).encode() + b"\n")
