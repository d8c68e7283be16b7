"""The linear probes of a job: what its published networks reach without training, by image size."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from nas.data import ImageDataset, Images
from nas.data.loading import SAMPLED_PARTS, decode_sample
from nas.display.formatting import listed
from nas.errors import BudgetError, InfeasibleError, TableError
from nas.figures import LATENCY
from nas.job.inputs import JobSpaces, load_images, load_job_spaces
from nas.job.plan import JobPlan, make_plan
from nas.job.planning import MIN_FINALIST_EPOCHS
from nas.latency import LatencyTable, Runtime
from nas.latency.build_estimate import network_latencies_us
from nas.pretrained import PublishedWeights
from nas.run.judged import judging_parts
from nas.run.objectives import run_objectives
from nas.run.probes import ProbeAtSize, ProbeSummary, loss, losses_text, worthwhile
from nas.run.progress import JobProgress
from nas.run.settings import JobSettings
from nas.space import SearchSpace
from nas.supernet.pretrained import published_features
from nas.supernet.probe import fit_probe, probe_images
from nas.torch_network import resize

PROBE_SIZES = (64, 96, 128, 160, 192, 224)
"""Image sizes in pixels at which probes are fitted."""

MAX_ENLARGEMENT = 7
"""Most that photos are enlarged for a probe: 2,000 photos of CIFAR-10, of 32 pixels, have 54% at
their own size with EfficientNet-Lite0, 65% at 64, 69% at 128, and 74% at 192 and 224 pixels."""

PROBES_SHARE = 0.1
"""Largest share of the budget for probes: larger sizes are left out, which it would not pay for."""

MAX_SAMPLE = 300
"""Most images of each part that a probe learns or classifies where sizes are compared."""

MIN_EPOCHS = 5
"""Fewest epochs of a supernet from published weights that an image size has to leave. The rankings
of docs/ranking.md are of eight epochs and more; published weights need fewer."""

MIN_NETWORKS = 100
"""Fewest networks of a search that an image size has to leave. After so many, `guided` misses 0 to
2% of the hypervolume of four known fronts, and 0.3 to 4% after half as many; see docs/search.md."""


HOPELESS = 0.5
"""Share of what is enough below which no plan is made of a size, by the operations at the last."""

Compared = Mapping[str, Sequence[ProbeAtSize]]
"""Probes of the same few images at several sizes, by space."""


def choose_image_size(
    settings: JobSettings,
    progress: JobProgress,
    known: int | None = None,
    *,
    open_runtimes: Callable[[], Sequence[Runtime]],
) -> tuple[int | None, Compared | None]:
    """Return the image size of a job at the first start of its run; None for that of its settings.

    With `image_size = "auto"`, it is the size with the fewest operations at which the probe is
    within a point of the best one, less what networks lose by being as small as the limits want,
    see `_losses`. With several published networks, it is the largest of theirs. If the budget pays
    for too little at this size, it is the size with the most operations at which it pays for
    enough, see `MIN_EPOCHS`, `MIN_NETWORKS` and `MIN_FINALIST_EPOCHS`; of those that are better
    than all with fewer operations.

    Args:
        settings: the settings of the job.
        progress: receives progress, and why the size was chosen.
        known: the size at an earlier start of the run, which is returned.
        open_runtimes: returns the runtimes of the job's device, whose latency tables take a part of
            the budget; none if they are not needed.

    Returns:
        The size, and the probes if it is chosen now.

    Raises:
        JobFileError: the job has no published weights.
    """
    if known is not None or not settings.chooses_image_size:
        return (known if settings.chooses_image_size else None), None
    start = time.perf_counter()
    data = load_images(settings, progress, write_cache=False)
    spaces = load_job_spaces(settings, data)
    sample, probes = _compare(settings, data, _probe_sizes(data), spaces, progress)
    runtimes, why, wanted = open_runtimes(), [""], 0
    macs, values = defaultdict[int, int](int), defaultdict[int, float](float)
    for name, each in probes.items():
        network = spaces.published[name].reference.name
        losses = _losses(settings, spaces.searched[name], network, each, runtimes)
        wanted = max(wanted, worthwhile(each, losses).image_size)
        why[0] = losses_text(each, losses) or why[0]
        for probe, lost in zip(each, losses, strict=True):
            macs[probe.image_size] += probe.macs
            values[probe.image_size] += probe.accuracy - lost
    sizes: list[int] = []
    for size in sorted(macs, key=lambda size: (macs[size], -values[size])):
        if macs[size] < macs[wanted] and not (sizes and values[size] <= values[sizes[-1]]):
            sizes.append(size)
    sizes.append(wanted)
    planned, enough = wanted, math.inf
    while (size := sizes.pop()) and sizes:  # The last one is left in any case.
        if enough * macs[planned] < HOPELESS * macs[size]:
            continue
        at_size, timed, planned = _at_size(spaces, size), _resized(sample, size), size
        prepare_s = time.perf_counter() - start
        try:
            plan = make_plan(settings, data, at_size, runtimes, progress, prepare_s, timed=timed)
        except (BudgetError, InfeasibleError, TableError) as error:
            is_slow = isinstance(error, BudgetError)
            reason = "its latency table takes too much time" if is_slow else "no network is allowed"
            why.append(f"at {size} px {reason}")
            continue
        enough, bought = _bought(settings, plan)
        if enough >= 1:
            break
        why.append(f"at {size} px the budget pays for {bought}")
    text = f"{wanted} px has the fewest operations within a point of the best probe{why.pop(0)}"
    if why:
        text += (
            f", but {listed(why)}; {MIN_EPOCHS} epochs of a supernet, {MIN_NETWORKS} networks of "
            f"the search and {MIN_FINALIST_EPOCHS} epochs of a finalist are the fewest that are "
            "worth it"
        )
    progress.note(f'image_size = "auto" chooses {size} px: {text}')
    return size, probes


def _losses(
    settings: JobSettings,
    space: SearchSpace,
    network: str,
    probes: Sequence[ProbeAtSize],
    runtimes: Sequence[Runtime],
) -> list[float]:
    """Return about what networks within the limits lose against a published one, by image size.

    The limits of latencies and of multiply-accumulates leave a share of the published network, see
    `nas.run.probes.loss`. With two dtypes, the second one counts, which is the faster one.
    """
    search, device = settings.search, settings.device
    spaces = [space.adapt(image_size=each.image_size) for each in probes]
    allowed = {each.figure.name: each.limit for each in run_objectives(search, ())}
    shares = np.array([min(1.0, (allowed.get("macs") or each.macs) / each.macs) for each in probes])
    limits: list[tuple[float | None, LatencyTable | None, Runtime | None]] = [
        (allowed[LATENCY.name], LatencyTable.find(device.tables, each), each)
        for each in runtimes[-1:]
    ] + [(each.max_latency_ms, LatencyTable.open(each.table), None) for each in search.device]
    networks, timed = [each.reference(network) for each in spaces], worthwhile(probes)
    for limit_ms, table, runtime in limits:
        if limit_ms is not None:
            own_us = network_latencies_us(
                networks, probes.index(timed), table, runtime, batch=device.batch
            )
            shares /= np.maximum(1.0, shares * own_us / (1000 * limit_ms))
    smallest = [own.smallest.macs / each.macs for own, each in zip(spaces, probes, strict=True)]
    return [*map(loss, shares.tolist(), smallest)]


def _bought(settings: JobSettings, plan: JobPlan) -> tuple[float, str]:
    """Return how much a budget pays for, over what is enough; and what that is, in words."""
    epochs, networks, finalist_epochs = min(plan.epochs.values()), plan.trials, plan.finalist_epochs
    most, trials = settings.training.epochs or math.inf, settings.search.trials or math.inf
    enough = min(epochs / min(MIN_EPOCHS, most), networks / min(MIN_NETWORKS, trials))
    if plan.retrain:
        enough = min(enough, finalist_epochs / min(MIN_FINALIST_EPOCHS, most))
    return enough, (
        f"{epochs:.2g} epochs, about {networks} networks and {finalist_epochs} epochs of a finalist"
    )


def _at_size(spaces: JobSpaces, size: int) -> JobSpaces:
    """Return the spaces that a job searches for images of another size."""
    return spaces._replace(
        searched={name: each.adapt(image_size=size) for name, each in spaces.searched.items()}
    )


def _probe_sizes(data: ImageDataset) -> list[int]:
    """Return the sizes at which probes are fitted; that of the images if they are tiny."""
    pixels = 0 if data.inventory is None else np.median(data.inventory.sizes.min(1))
    possible = [size for size in PROBE_SIZES if size <= MAX_ENLARGEMENT * pixels]
    return possible or [data.image_size]


def _published(spaces: JobSpaces) -> dict[str, PublishedWeights]:
    """Return the weights of published networks. A trained one of a run may know the images."""
    return {name: each for name, each in spaces.published.items() if each.origin is None}


def measure_probes(
    settings: JobSettings,
    data: ImageDataset,
    spaces: JobSpaces,
    progress: JobProgress,
    compared: Compared | None = None,
) -> dict[str, ProbeSummary]:
    """Return the probes of the published networks of a job, by space.

    A trained network of a run has none: it may have learned the images that would judge its probe.

    Args:
        settings: the settings of the job.
        data: its images.
        spaces: its spaces.
        progress: receives progress.
        compared: probes that compare sizes, if `choose_image_size` has fitted them.
    """
    published = _published(spaces)
    if not published:
        return {}
    sizes = {*_probe_sizes(data), data.image_size}
    if compared is None:
        _, compared = _compare(settings, data, sorted(sizes), spaces, progress)
    summaries = {}
    for name, weights in published.items():
        own = _probe(weights, spaces.searched[name], data)
        key = attrgetter("image_size", "images")
        other = [each for each in compared[name] if key(each) != key(own)]
        summaries[name] = ProbeSummary(
            network=weights.reference.name,
            image_size=data.image_size,
            sizes=tuple(sorted([*other, own], key=key)),
        )
    return summaries


def _compare(
    settings: JobSettings,
    data: ImageDataset,
    sizes: Sequence[int],
    spaces: JobSpaces,
    progress: JobProgress,
) -> tuple[ImageDataset, Compared]:
    """Fit the probes of published networks at some sizes, on the same few images.

    Returns:
        These images at the largest size, and the probes by space.
    """
    start, published = time.perf_counter(), _published(spaces)
    rows: dict[str, list[ProbeAtSize]] = {name: [] for name in published}
    progress.begin("linear probes", "size")
    largest, own = max(sizes, default=0), settings.data
    if largest <= data.image_size:
        sample = _resized(data, data.image_size)
    else:
        sample = decode_sample(data, own.source, largest, MAX_SAMPLE, own.class_folders, own.extra)
    for done, size in enumerate(sizes, start=1):
        images, at_size = _resized(sample, size), _at_size(spaces, size)
        for name, weights in published.items():
            rows[name].append(_probe(weights, at_size.searched[name], images))
        progress.advance(done, len(sizes), f"{size} px")
        next_s = (time.perf_counter() - start) * (done + 1) / done
        if next_s > PROBES_SHARE * settings.budget_s:
            break
    return sample, rows


def _probe(published: PublishedWeights, space: SearchSpace, data: ImageDataset) -> ProbeAtSize:
    """Fit the probe of a published network, and classify images that it does not learn.

    The hold-out images only judge: an image size is chosen by the others.
    """
    learned = probe_images(data)
    features = published_features(published, space, data, learned)
    probe = fit_probe(features, learned, data)
    unseen = data.part("search", "holdout")
    answers = probe.classify(published_features(published, space, data, unseen))
    choosing = np.concatenate([probe.predicted, answers[: len(data.search)]])
    judged = slice(0 if "search" in judging_parts(len(data.holdout)) else len(data.search), None)
    return ProbeAtSize(
        image_size=data.image_size,
        accuracy=data.score(choosing, np.concatenate([learned.labels, data.search.labels])),
        images=len(choosing),
        judged=data.score(answers[judged], unseen.labels[judged]),
        macs=space.reference(published.reference.name).graph.macs,
    )


def _resized(data: ImageDataset, size: int) -> ImageDataset:
    """Return a dataset with at most `MAX_SAMPLE` smaller images in each part."""

    def smaller(images: Images) -> Images:
        order = np.random.default_rng(0).permutation(len(images))
        chosen = images.take(np.sort(order[:MAX_SAMPLE]))
        pixels = torch.from_numpy(np.asarray(chosen.pixels)).permute(0, 3, 1, 2)
        pixels = torch.cat([resize(part.float(), (size, size)) for part in pixels.split(100)])
        rounded = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        return replace(chosen, pixels=rounded.contiguous().numpy())

    parts: dict[str, Any] = {part: smaller(getattr(data, part)) for part in SAMPLED_PARTS}
    return replace(data, **parts)
