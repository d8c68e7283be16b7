"""The linear probes of a job: what its published networks reach without training, by image size."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from nas.data import ImageDataset, Images, Part
from nas.display.formatting import listed
from nas.errors import BudgetError, InfeasibleError
from nas.job.inputs import JobSpaces, load_images, load_job_spaces
from nas.job.plan import make_plan
from nas.latency import Runtime
from nas.pretrained import PublishedWeights
from nas.run.judged import judging_parts
from nas.run.probes import ProbeAtSize, ProbeSummary
from nas.run.progress import JobProgress, SilentProgress
from nas.run.settings import JobSettings
from nas.space import SearchSpace
from nas.supernet.pretrained import published_features
from nas.supernet.probe import fit_probe, probe_images
from nas.torch_network import resize

PROBE_SIZES = (64, 96, 128, 160, 192, 224)
"""Image sizes in pixels at which probes are fitted, as far as the photos have them."""

MAX_OTHER_IMAGES = 300
"""Most images of each part that a probe at another size than the job's learns or classifies."""

MIN_EPOCHS = 5
"""Fewest epochs of a supernet from published weights that an image size has to leave. The rankings
of docs/ranking.md are of eight epochs and more; published weights need fewer."""

MIN_NETWORKS = 100
"""Fewest networks of a search that an image size has to leave. After so many, `guided` misses 0 to
2% of the hypervolume of four known fronts, and 0.3 to 4% after half as many; see docs/search.md."""

MAX_DATASET_IMAGES = 5000
"""Most images of a dataset that is decoded a second time for other sizes."""


def choose_image_size(
    settings: JobSettings,
    progress: JobProgress,
    known: int | None = None,
    *,
    open_runtimes: Callable[[], Sequence[Runtime]],
) -> int | None:
    """Return the image size of a job at the first start of its run; None for that of its settings.

    With `image_size = "auto"`, it is the size with the fewest operations at which the probe is
    within a point of the best one. With several published networks, it is the largest of theirs.
    The probes of all sizes have the same images, at most `MAX_OTHER_IMAGES` of each part. If the
    budget pays for too few epochs or networks at this size, it is the size with the most operations
    at which it pays for enough, see `MIN_EPOCHS` and `MIN_NETWORKS`.

    Args:
        settings: the settings of the job.
        progress: receives progress, and why the size was chosen.
        known: the size at an earlier start of the run, which is returned.
        open_runtimes: returns the runtimes of the job's device, whose latency tables take a part of
            the budget; none if they are not needed.

    Raises:
        JobFileError: the job has no published weights.
    """
    if settings.data.image_size != "auto":
        return None
    if known is not None:
        return known
    start = time.perf_counter()
    data = load_images(settings, progress, write_cache=False)
    data = load_images(settings, progress, image_size=_photo_sizes(data)[-1], write_cache=False)
    spaces = load_job_spaces(settings, data)
    probes = measure_probes(settings, _resized(data, data.image_size), spaces, progress)
    wanted = max(each.worthwhile.image_size for each in probes.values())
    macs: Counter[int] = Counter()
    for each in probes.values():
        macs.update({probe.image_size: probe.macs for probe in each.compared})
    smaller = sorted((size for size in macs if macs[size] < macs[wanted]), key=macs.__getitem__)
    runtimes, why, size = open_runtimes(), [], wanted
    for size in (wanted, *reversed(smaller)):
        at_size = spaces._replace(
            searched={name: each.adapt(image_size=size) for name, each in spaces.searched.items()}
        )
        prepare_s = time.perf_counter() - start
        part = _resized(data, size)
        try:
            plan = make_plan(settings, data, at_size, runtimes, progress, prepare_s, timed=part)
        except (BudgetError, InfeasibleError) as error:
            is_slow = isinstance(error, BudgetError)
            reason = "its latency table takes too much time" if is_slow else "no network is allowed"
            why.append(f"at {size} px {reason}")
            continue
        epochs, networks = min(plan.epochs.values()), plan.trials
        if epochs >= min(MIN_EPOCHS, settings.training.epochs or MIN_EPOCHS) and networks >= min(
            MIN_NETWORKS, settings.search.trials or MIN_NETWORKS
        ):
            break
        why.append(
            f"at {size} px the budget pays for {epochs:.2g} epochs and about {networks} networks"
        )
    text = f"{wanted} px has the fewest operations within a point of the best probe"
    if why:
        text += (
            f", but {listed(why)}; {MIN_EPOCHS} epochs of a supernet and {MIN_NETWORKS} networks "
            "of the search are the fewest that are worth it"
        )
    progress.note(f'image_size = "auto" chooses {size} px: {text}')
    return size


def _photo_sizes(data: ImageDataset) -> list[int]:
    """Return the size of some images, and those of `PROBE_SIZES` that most photos have, sorted."""
    pixels = 0 if data.inventory is None else int(np.median(data.inventory.sizes.min(1)))
    return sorted({data.image_size, *(size for size in PROBE_SIZES if size <= pixels)})


def measure_probes(
    settings: JobSettings, data: ImageDataset, spaces: JobSpaces, progress: JobProgress
) -> dict[str, ProbeSummary]:
    """Return the probes of the published networks of a job, by space.

    A trained network of a run has none: it may have learned the images that would judge its probe.

    Args:
        settings: the settings of the job.
        data: its images.
        spaces: its spaces.
        progress: receives progress.
    """
    published = {name: each for name, each in spaces.published.items() if each.origin is None}
    if not published:
        return {}
    sizes, large = _photo_sizes(data), data
    if data.inventory is not None and len(data.inventory.sizes) > MAX_DATASET_IMAGES:
        sizes = [size for size in sizes if size <= data.image_size]
    judges = judging_parts(len(data.holdout))
    progress.begin("linear probes", "size")
    if max(sizes) > data.image_size:
        large = load_images(settings, SilentProgress(), image_size=max(sizes), write_cache=False)
    rows: dict[str, list[ProbeAtSize]] = {name: [] for name in published}
    has_more = max(map(len, (data.train, data.search, data.holdout))) > MAX_OTHER_IMAGES
    for number, size in enumerate(sizes):
        is_own = size == data.image_size
        images = [data] if is_own else []
        if not is_own or (has_more and len(sizes) > 1):  # Equal numbers of images are compared.
            images.insert(0, _resized(large, size))
        for name, weights in published.items():
            space = spaces.searched[name].adapt(image_size=size)
            rows[name] += [_probe(weights, space, each, judges) for each in images]
        progress.advance(number + 1, len(sizes), f"{size} px")
    return {
        name: ProbeSummary(
            network=published[name].reference.name, image_size=data.image_size, sizes=tuple(own)
        )
        for name, own in rows.items()
    }


def _probe(
    published: PublishedWeights, space: SearchSpace, data: ImageDataset, judges: Sequence[Part]
) -> ProbeAtSize:
    """Fit the probe of a published network, and classify images that it does not learn.

    The hold-out images only judge: an image size is chosen by the others.
    """
    learned = probe_images(data)
    features = published_features(published, space, data, learned)
    probe = fit_probe(features, learned, data)
    unseen = data.part("search", "holdout")
    answers = probe.classify(published_features(published, space, data, unseen))
    choosing = np.concatenate([probe.predicted, answers[: len(data.search)]])
    judged = slice(0 if "search" in judges else len(data.search), None)
    return ProbeAtSize(
        image_size=data.image_size,
        accuracy=data.score(choosing, np.concatenate([learned.labels, data.search.labels])),
        images=len(choosing),
        judged=data.score(answers[judged], unseen.labels[judged]),
        macs=space.reference(published.reference.name).graph.macs,
    )


def _resized(data: ImageDataset, size: int) -> ImageDataset:
    """Return a dataset with at most `MAX_OTHER_IMAGES` smaller images in each part."""

    def smaller(images: Images) -> Images:
        order = np.random.default_rng(0).permutation(len(images))
        chosen = images.take(np.sort(order[:MAX_OTHER_IMAGES]))
        pixels = torch.from_numpy(np.asarray(chosen.pixels)).permute(0, 3, 1, 2)
        pixels = torch.cat([resize(part.float(), (size, size)) for part in pixels.split(100)])
        rounded = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        return replace(chosen, pixels=rounded.contiguous().numpy())

    return replace(
        data,
        train=smaller(data.train),
        search=smaller(data.search),
        holdout=smaller(data.holdout),
    )
