"""Times a cascade end to end on a mix of images, in the process that runs its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats import ModelFormat
from nas.latency import timing

ROUNDS = 5
"""Rounds in which every image is timed: the median of an image stands two disturbed ones."""


def confidence(logits: NDArray[np.float32]) -> float:
    """Return the largest probability of the logits of an image."""
    return float(1 / np.exp(logits - logits.max()).sum())


def time_images(
    files: Sequence[tuple[ModelFormat, Path]],
    threads: int,
    thresholds: Sequence[float],
    inputs: Sequence[NDArray[np.float32]],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Time a cascade and each of its networks alone, image by image in turns.

    The time of a cascade is that of its networks and of the decisions between them, in Python.

    Args:
        files: format and file of each network, and of further ones that are timed alone.
        threads: number of threads that the runtime may use.
        thresholds: smallest confidence of an answer of each network but the last.
        inputs: for each file, the images `n x C x H x W`.

    Returns:
        Which network answers each image, `n`; the seconds of the cascade for each, `n`; and those
        of each file alone, `n x files`. Seconds are medians of `ROUNDS`.
    """
    with timing.pinned(threads):
        loaded = [model_file.open(path, threads) for model_file, path in files]
        logits = [
            [model.logits(image[None])[0] for image in images]
            for model, images in zip(loaded, inputs, strict=True)
        ]
        seconds = np.zeros((ROUNDS, len(inputs[0]), 1 + len(files)))
        stages = np.zeros(len(inputs[0]), int)
        for round_seconds in seconds:
            for at, images in enumerate(zip(*inputs, strict=True)):
                runners = [
                    model.runner(image[None]) for model, image in zip(loaded, images, strict=True)
                ]
                own = [each[at] for each in logits]
                stages[at] = _answer(runners, own, thresholds)  # The first call is not timed.
                times = [time.perf_counter()]
                _answer(runners, own, thresholds)
                times.append(time.perf_counter())
                for runner in runners:
                    runner()
                    times.append(time.perf_counter())
                round_seconds[at] = np.diff(times)
    medians = np.median(seconds, axis=0)
    return stages, medians[:, 0], medians[:, 1:]


def _answer(
    runners: Sequence[Callable[[], object]],
    logits: Sequence[NDArray[np.float32]],
    thresholds: Sequence[float],
) -> int:
    """Run networks until one is sure of its answer, whose logits are known; return which."""
    for at, threshold in enumerate(thresholds):
        runners[at]()
        if confidence(logits[at]) >= threshold:
            return at
    runners[len(thresholds)]()
    return len(thresholds)
