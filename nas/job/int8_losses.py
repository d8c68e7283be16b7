"""What int8 loses in each space of a job with two dtypes, measured before its search.

A search scores a network once, in float32. Of its accuracy in int8 it expects that less the mean
loss of the space. Losses do not follow the latency: in three spaces, their means on digits were
0.02 to 0.17 points, with standard deviations of 0.13 to 0.73 points.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

import numpy as np

from nas.data import ImageDataset
from nas.deploy.int8 import quantise_within
from nas.deploy.model import TrainedModel, preprocessing_of
from nas.errors import KernelError
from nas.job.folder import JobRun
from nas.run.record import Int8Loss
from nas.space import Architecture, SearchSpace
from nas.statistics import spread
from nas.supernet.evaluation import calibrated_state
from nas.supernet.weights import Supernet
from nas.torch_network import to_torch

LOSS_NETWORKS = 10
"""Networks of a space whose losses are measured."""

DRAWN_NETWORKS = 200
"""Networks that are drawn at random, among which these are spread over the latencies."""


def measure_losses(run: JobRun, supernets: Mapping[str, Supernet]) -> None:
    """Quantise some networks of each space with the supernet's weights, and record their losses.

    Args:
        run: the run.
        supernets: the trained supernets by space.
    """
    run.progress.begin("losses of int8", "network")
    chosen = {name: _choose(run, space) for name, space in run.spaces.items()}
    done, count = 0, sum(map(len, chosen.values()))
    measured = {}
    for name, networks in chosen.items():
        losses = []
        for architecture in networks:
            losses.append(_loss(run.data, supernets[name], architecture))
            done += 1
            run.progress.advance(done, count, name)
        measured[name] = loss = Int8Loss(losses=losses)
        run.progress.note(
            f"{name}: int8 loses {100 * loss.mean:.2f} points on average of {len(losses)} "
            f"networks, with a standard deviation of {100 * loss.deviation:.2f}"
        )
    run.record.int8_losses = measured
    run.save()


def measure_losses_s(supernets: Iterable[Supernet], data: ImageDataset, seed: int) -> float:
    """Return the seconds in which `measure_losses` does its work, by two networks of each space.

    The first one takes longer, because torch then chooses its code for the layers.
    """
    rng = np.random.default_rng(seed)
    seconds = 0.0
    for supernet in supernets:
        for networks in (1, LOSS_NETWORKS - 1):
            start = time.perf_counter()
            _loss(data, supernet, supernet.space.sample(rng, uniform_over="choices"))
            seconds += networks * (time.perf_counter() - start)
    return seconds


def _choose(run: JobRun, space: SearchSpace) -> list[Architecture]:
    """Return networks of a space that are spread over the latencies in float32."""
    rng = np.random.default_rng(run.settings.seed)
    drawn = {space.sample(rng, uniform_over="choices") for _ in range(DRAWN_NETWORKS)}

    def latency_us(architecture: Architecture) -> float:
        try:
            return run.table.predict(architecture, run.settings.device.batch).latency_us
        except KernelError:
            return math.inf  # Its weights can be quantised nevertheless.

    return spread(sorted(drawn, key=lambda each: (latency_us(each), each.digest)), LOSS_NETWORKS)


def _loss(data: ImageDataset, supernet: Supernet, architecture: Architecture) -> float:
    """Return the accuracy of a network in float32 minus that in int8, on the search's images."""
    graph = architecture.graph
    network = to_torch(architecture)
    network.load_state_dict(calibrated_state(supernet, graph, data))
    model = TrainedModel(architecture, network, preprocessing_of(data, graph.input_shape[1]))
    summary = quantise_within(model, data).summary
    return round(summary.float_accuracy - summary.accuracy, 6)
