"""The choice between a training from published weights and a linear probe on them.

It is made by cross-validation on training images, so that the images that judge the chosen weights
have no part in it. A supernet has learned all training images: nothing here starts from one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nas.data import ImageDataset
from nas.display.progress import Advance, part_of
from nas.pretrained import PublishedWeights
from nas.space import Architecture
from nas.supernet.evaluation import predict_network
from nas.supernet.pretrained import probed_network, published_state
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_standalone

FOLDS = 2
"""Parts of the training images. Both trainings together take the time of one with all images; three
parts would take twice as long, of a budget that also trains what is shipped."""


def is_probe_better(
    architecture: Architecture,
    published: PublishedWeights,
    data: ImageDataset,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    progress: Advance | None = None,
) -> bool:
    """Return whether a linear probe is right on more training images than a training.

    Both learn a part of the training images, and classify the others.

    Args:
        architecture: the published network, or a part of it.
        published: the weights from which both start.
        data: only its training split is used.
        recipe: recipe of a training with a part of the images.
        seed: seed of what the published network lacks, and of the trainings.
        device: where the statistics are computed.
        progress: called after every step of a training.
    """
    images = data.train
    folds = images.folds(FOLDS, np.random.default_rng(seed))
    by_probe, by_training = np.zeros((2, len(images)), np.int64)
    if recipe.longest_seconds is not None:  # All trainings together take as long as one.
        recipe = replace(recipe, longest_seconds=recipe.longest_seconds / FOLDS)
    for fold in range(FOLDS):
        is_left_out = folds == fold
        own = replace(data, train=images.take(np.flatnonzero(~is_left_out)))
        left_out = images.take(np.flatnonzero(is_left_out))
        probe = probed_network(architecture, published, own, seed=seed, device=device)
        start = published_state(architecture, published, own, seed=seed, device=device)
        report = part_of(progress, fold, FOLDS, "compared with a linear probe")
        trained = train_standalone(
            architecture.graph, own, recipe, seed=seed, start=start, progress=report
        )
        by_probe[is_left_out] = predict_network(probe, own, left_out)
        by_training[is_left_out] = predict_network(trained, own, left_out)
    return data.score(by_probe, images.labels) > data.score(by_training, images.labels)
