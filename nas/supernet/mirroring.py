"""Decides by a short experiment whether mirrored training images keep their class.

Small networks are trained on images that are not mirrored, and classify images that they were not
trained on: as they are, and mirrored. Where left and right mean nothing, as on most photos, a
mirrored image is as good an image of the data as any other, and both are classified equally well.
Mirrored text, digits and directions are classified worse. Other than two trainings, with mirroring
and without, this compares the same network on the same images, so that few images suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset, Images
from nas.display.progress import Advance, part_of
from nas.graph import Graph
from nas.machine.torch_device import limit_threads
from nas.space.blocks.plain import linear_classifier
from nas.space.builder import Builder
from nas.space.elastic import Elastic
from nas.supernet.evaluation import predict_network
from nas.supernet.recipe import Recipe
from nas.supernet.records import MirroringExperiment
from nas.supernet.standalone import train_standalone

MAX_IMAGES = 6000
"""Most training images that take part."""

MIN_IMAGES = 10
"""Fewest training images; too few of fewer could be classified wrongly for a decision."""

FOLDS = 3
"""Number of parts of the images; each network is trained on all parts but the one it classifies."""

ENOUGH_CLASSIFIED = 1000
"""Number of classified images after which no further part is classified."""

MAX_SIZE = 48
"""Side in pixels to which larger images are reduced. The time of a step grows with its square."""

STEPS = 200
"""Training steps of a network. After so many, it classifies 8-pixel digits, letters and arrows to
95% and more, and CIFAR-10 to 45%; docs/data.md has the decisions that follow."""

MAX_P_VALUE = 0.005
"""Largest probability of a loss as large as that measured if mirroring changed nothing.

Then 13 images of one of twenty classes suffice, if all of them are lost."""

MIN_LOSS = 0.2
"""Smallest loss of accuracy by mirroring, as a share of the accuracy above chance, that counts.

It is 0.5 and more for letters, digits and arrows, and up to 0.14 for photos. Photos of things that
are mostly seen from one side lose a little, although their class stays.
"""

MIN_CLASS_LOSS = 2 / 3
"""Smallest loss of one class's accuracy by mirroring, as a share of it, that counts: classes such
as the arrows among many signs."""

MIN_LEARNED_IMAGES = 20
"""Fewest images that the networks must classify correctly beyond those that chance does."""

_WIDTHS = (16, 32, 64, 96)
"""Output channels of the network's convolutions."""

_MIN_STRIDED_SIZE = 12
"""Side in pixels from which the first convolution has a stride, too."""

_REDUCED_AT_ONCE = 256
"""Images that are reduced at once."""

_RECIPE = Recipe(learning_rate=0.3, flip=False, device="cpu")


def run_mirroring_experiment(
    data: ImageDataset, *, seed: int, progress: Advance | None = None
) -> MirroringExperiment:
    """Find out whether mirrored images keep their class.

    The same arguments give the same result on the same machine: the number of steps is fixed. It
    takes a few seconds of one core, whatever the number and the size of the images.

    Args:
        data: only its training split is used.
        seed: seed of the parts, the weights and the order of the images.
        progress: called after every step with the number of steps done and of all steps.
    """
    if len(data.train) < MIN_IMAGES:
        return MirroringExperiment(
            images=0,
            accuracy=0.0,
            mirrored_accuracy=0.0,
            changed_classes=[],
            changes_class=False,
            is_reliable=False,
        )
    images = _choose_images(data.train, np.random.default_rng([seed, 2]))
    fold = images.folds(FOLDS, np.random.default_rng([seed, 3]))
    classified = np.cumsum(np.bincount(fold))
    folds = min(len(classified), int(np.searchsorted(classified, ENOUGH_CLASSIFIED)) + 1)
    plain, mirrored = np.zeros((2, len(images)), bool)
    for number in range(folds):
        is_held_out = fold == number
        own = replace(data, train=images.take(np.flatnonzero(~is_held_out)), metric="accuracy")
        held_out = images.take(np.flatnonzero(is_held_out))
        epochs = STEPS * min(_RECIPE.batch_size, len(own.train)) / len(own.train)
        recipe = replace(_RECIPE, epochs=epochs)
        report = part_of(progress, number, folds)
        graph = _network(own)
        with limit_threads(0):  # The steps are too short for a second core.
            network = train_standalone(graph, own, recipe, seed=seed + number, progress=report)
        pixels = np.ascontiguousarray(np.flip(np.asarray(held_out.pixels), 2))
        mirror = replace(held_out, pixels=pixels)
        plain[is_held_out] = predict_network(network, own, held_out) == held_out.labels
        mirrored[is_held_out] = predict_network(network, own, mirror) == held_out.labels
    done = fold < folds
    return judge_mirroring(plain[done], mirrored[done], images.labels[done], data.classes)


def judge_mirroring(
    plain: NDArray[np.bool_],
    mirrored: NDArray[np.bool_],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> MirroringExperiment:
    """Return what the answers of networks say about mirroring.

    Losses are tested by the sign test on the images of which only one version is classified
    correctly (McNemar 1947), and those of classes with Bonferroni's correction.

    Args:
        plain: whether each image is classified correctly, `n`.
        mirrored: whether its mirror image is classified correctly, `n`.
        labels: positions of the images' classes in `classes`, `n`.
        classes: names of the classes.
    """
    accuracy, mirrored_accuracy = float(plain.mean()), float(mirrored.mean())
    counts = np.bincount(labels, minlength=len(classes))
    above_chance = accuracy - float(counts.max()) / len(labels)
    changed: dict[str, float] = {}
    for label, name in enumerate(classes):
        own, own_mirrored = plain[labels == label], mirrored[labels == label]
        loss = 1 - float(own_mirrored.sum()) / max(1, int(own.sum()))
        p_value = _p_value(own, own_mirrored) * len(classes)
        if loss >= MIN_CLASS_LOSS and p_value <= MAX_P_VALUE:
            changed[name] = loss
    is_lossy = (
        accuracy - mirrored_accuracy >= MIN_LOSS * above_chance
        and _p_value(plain, mirrored) <= MAX_P_VALUE
    )
    changes_class = bool(changed) or is_lossy
    return MirroringExperiment(
        images=len(labels),
        accuracy=accuracy,
        mirrored_accuracy=mirrored_accuracy,
        changed_classes=sorted(changed, key=lambda name: -changed[name]),
        changes_class=changes_class,
        is_reliable=changes_class or above_chance * len(labels) >= MIN_LEARNED_IMAGES,
    )


def _p_value(plain: NDArray[np.bool_], mirrored: NDArray[np.bool_]) -> float:
    """Return the probability of so many losses if mirroring changed nothing, by the sign test."""
    from scipy.stats import binom

    lost, gained = int((plain & ~mirrored).sum()), int((~plain & mirrored).sum())
    return float(binom.sf(lost - 1, lost + gained, 0.5))


def _choose_images(images: Images, rng: np.random.Generator) -> Images:
    """Return at most `MAX_IMAGES` images in random order, reduced to at most `MAX_SIZE` pixels."""
    images = images.take(rng.permutation(len(images))[:MAX_IMAGES])
    if images.pixels.shape[1] <= MAX_SIZE:
        return images
    parts = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).split(_REDUCED_AT_ONCE)
    reduced = [F.interpolate(part.float(), size=MAX_SIZE, mode="area") for part in parts]
    pixels = torch.cat(reduced).round().to(torch.uint8).permute(0, 2, 3, 1)
    return replace(images, pixels=np.ascontiguousarray(pixels.numpy()))


def _network(data: ImageDataset) -> Graph:
    """Return the small network of the experiment."""
    shape = data.channels, data.image_size, data.image_size
    build = Builder(shape, classes=len(data.classes), norm=True, activation="relu")
    x = build.input
    for number, width in enumerate(_WIDTHS):
        stride = 2 if number or data.image_size >= _MIN_STRIDED_SIZE else 1
        x = build.conv_unit(x, f"conv{number}", width, kernel=Elastic(3, 1, 3), stride=stride)
    linear_classifier(build, x, "head")
    return build.graph()
