"""`split_run`: the split of a network of a run, with what is measured on the run's images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas.deploy.model import TrainedModel
from nas.deploy.networks import is_trained, load_trained
from nas.deploy.robustness import as_jpeg
from nas.deploy.verify import batches, sample_images
from nas.errors import RequestError, TableDeviceError
from nas.graph import Graph
from nas.latency import LatencyTable
from nas.latency.build import add_missing_kernels
from nas.plans.split import Link, SplitPlan, Way, find_cuts, halves, plan_split
from nas.plans.split_export import export_split
from nas.plans.split_wire import TRANSFERS, pack, unpack
from nas.quantisation.simulation import run_batches
from nas.run.progress import JobProgress
from nas.run.run import Run
from nas.statistics import Interval
from nas.torch_network import FoldedWeights

JPEG_QUALITY = 75
"""Quality of the JPEG files that a device could send instead, Pillow's default."""

MAX_IMAGES = 2000
"""Most images on which accuracies are measured: the standard error is then at most 1.1 points."""


@dataclass(frozen=True)
class SplitReport:
    """The split of a network of a run.

    Attributes:
        digest: digest of the network.
        plan: its cuts and their rivals.
        transfer: type of the values that are sent.
        chosen: the cut that was asked for, or the fastest; None if the network has none.
        best: the fastest cut if it is faster than all rivals; None if there is none.
        accuracies: the accuracy of the whole network (`float32`, which sending float32 values does
            not change), of each other type of values at the fastest or chosen cut, and of JPEG
            files; empty for a network that is not trained. Of one that was refitted, they are of
            the weights before the refit, which did not learn these images.
        images: the images that they were measured on, in words, and whether before a refit.
        folder: folder of the two parts; None if they were not exported.
    """

    digest: str
    plan: SplitPlan
    transfer: str
    chosen: Way | None
    best: Way | None
    accuracies: Mapping[str, Interval | None]
    images: str
    folder: Path | None


def split_run(
    run: Run,
    pick: str,
    device: Path,
    server: Path,
    link: Link,
    progress: JobProgress,
    *,
    transfer: str = "float32",
    position: int | None = None,
    build: bool = False,
    out: Path | None = None,
) -> SplitReport:
    """Return the best split of a network of a run, and export it if a folder is given.

    Args:
        run: the run.
        pick: the beginning of the network's digest.
        device, server: latency tables of the two machines.
        link: the link between them.
        progress: receives stages and progress.
        transfer: type of the values that are sent, one of `TRANSFERS`.
        position: where to cut; by default where the latency is least.
        build: whether to time kernels that the table of this machine lacks first.
        out: folder for the two parts, which must not exist or be empty.

    Raises:
        RequestError: the type is unknown, there is no cut at the position, or none to export; or
            the network is to be exported and is not trained.
        ExportError: the two parts do not compute what the network does.
        NasError: see `plan_split`, `Run.architecture` and `Run.data`.
    """
    if transfer not in TRANSFERS:
        raise RequestError(
            f"Values cannot be sent as {transfer!r}.", remedy=f"Types: {', '.join(TRANSFERS)}."
        )
    network = run.architecture(pick)
    tables = LatencyTable.open(device), LatencyTable.open(server)
    if build:
        tables = _complete(tables, network.graph.folded, progress)
    model = load_trained(run, network.digest) if is_trained(run, network.digest) else None
    if out is not None and model is None:
        raise RequestError(
            f"{pick} is not trained, so that there are no weights to export.",
            remedy=f"Train it with `nas retrain {run.path} --pick {pick}`.",
        )
    parts = run.images.judging_parts
    images = sample_images(run.data.part(*parts), MAX_IMAGES)
    pixels = np.asarray(images.pixels[: len(images)])
    jpegs, sizes = as_jpeg(pixels, JPEG_QUALITY)
    image_bytes = {"pixels": float(pixels[0].size), "jpeg": float(np.mean(sizes))}
    plan = plan_split(network, *tables, link, image_bytes)
    cuts = {
        each: plan.fastest_cut(each) if position is None else plan.cut_at(position, each)
        for each in TRANSFERS
    }
    chosen, logits = cuts[transfer], dict[str, np.ndarray]()
    if model is not None:
        own = model.judged
        logits = {"float32": own.pixel_logits(pixels), "jpeg": own.pixel_logits(jpegs)}
        for name, cut in cuts.items():
            if name != "float32" and cut is not None:
                sent = partial(logits_of_sent, own, cut.position, name)
                logits[name] = np.concatenate([*map(sent, batches(images, own.preprocessing))])
    folder = None
    if out is not None and model is not None:
        if chosen is None:
            raise RequestError("The network has no cut to export.", remedy="Leave --out out.")
        folder = export_split(run, model, chosen, plan, out, progress)
    return SplitReport(
        network.digest,
        plan,
        transfer,
        chosen,
        plan.best(transfer),
        {
            name: run.images.interval(
                run.data.score(each.argmax(1), images.labels), *parts, images=len(images)
            )
            for name, each in logits.items()
        },
        f"{len(images):,} {run.images.judging_name} images"
        + (" before the refit" if model is not None and model.judged is not model else ""),
        folder,
    )


def logits_of_sent(
    model: TrainedModel, position: int | None, transfer: str, images: np.ndarray
) -> np.ndarray:
    """Return the logits of normalised images if the tensor at a cut is sent as another type.

    Args:
        model: the trained network.
        position: position of the cut in the folded graph.
        transfer: type of the values that are sent.
        images: the images `N x C x H x W`.
    """

    def send(at: int, x: Tensor) -> Tensor:
        if at != position:
            return x
        sent = [unpack(pack(values, transfer)).reshape(values.shape) for values in x.numpy()]
        return torch.from_numpy(np.stack(sent))

    weights = FoldedWeights({name: torch.from_numpy(w) for name, w in model.weights.items()})
    return run_batches(model.graph, images, weights, send)


def _complete(
    tables: tuple[LatencyTable, LatencyTable], graph: Graph, progress: JobProgress
) -> tuple[LatencyTable, LatencyTable]:
    """Return tables, of which those of this machine have all kernels of the parts of a graph."""
    positions, _ = find_cuts(graph, [table.runtime for table in tables])
    parts = [graph, *(part for position in positions for part in halves(graph, position))]
    progress.begin("latency table", "timing")

    def complete(table: LatencyTable) -> LatencyTable:
        table.runtime.open()
        try:
            writable = LatencyTable.open(table.path, runtime=table.runtime)
        except TableDeviceError:
            progress.note(f"{table.path.name} is of another machine: nothing is added to it")
            return table
        add_missing_kernels(writable, parts, table.runtime, progress=progress.advance)
        return writable

    return complete(tables[0]), complete(tables[1])
